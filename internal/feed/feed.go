// Package feed owns the numbered events by which verifiers learn what has been
// revoked: appending them to the store, and handing them out as the trust
// bundle, a snapshot and then changes.
//
// Each replica tails the store on its own: it polls by number, which misses
// nothing, and a hint after its own commits makes it prompt. All watchers share
// one in-memory state and one bounded log, both of them encoded once; who falls
// behind the log is dropped and must come back.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// pollEvery bounds how long a change that another process made goes
	// unnoticed. A poll reads one row by its key.
	pollEvery = 200 * time.Millisecond
	// heartbeatEvery is a fraction of the minute after which verifiers call
	// themselves stale.
	heartbeatEvery = 5 * time.Second
	// tailBatch bounds a read, and with chunkSize the size of a message: an
	// entry takes about 40 bytes.
	tailBatch = 1000
	chunkSize = 1000
	// maxWatchers bounds what strangers can hold: each may keep a message of
	// chunkSize entries in its connection's buffers. maxPerPeer leaves room for
	// others beside one that opens all that it can.
	maxWatchers = 10_000
	maxPerPeer  = 2_500
	// snapshotsPerPeer are sent to one peer at a time; its others wait.
	// Each is given snapshotTimeout: a million revocations at 300 kB a second.
	snapshotsPerPeer = 16
	snapshotTimeout  = 2 * time.Minute
	// logSize bounds how far a watcher may fall behind.
	logSize = 4096
	// applyTimeout bounds how long an acknowledgement waits for this server's
	// own verifier. It is memory work, so this never ends unless a fault does it.
	applyTimeout = 5 * time.Second
	// askTimeout bounds how long a watcher waits that knows more than the feed.
	// Another replica can tell it sooner than a database that hangs.
	askTimeout = time.Second
)

var (
	// ErrBehind says that a watcher fell behind and must begin anew.
	ErrBehind = errors.New("watcher fell behind")
	// ErrOutdated says that a watcher knows more than the feed, which cannot ask
	// the database. Another replica may know.
	ErrOutdated = errors.New("this replica is behind the watcher")
	// ErrTooManyWatchers says that no more watchers are served.
	ErrTooManyWatchers = errors.New("too many watchers")
)

// Feed tails the store and serves watchers. It is safe for concurrent use.
type Feed struct {
	store  *store.Store
	issuer string
	origin []byte // the database's id, for resume
	logger *slog.Logger
	hint   chan struct{}
	onKeys func(context.Context) error
	untold bool // onKeys has failed; of the goroutine that reads the tail
	poll   time.Duration
	beats  time.Duration

	mu         sync.Mutex
	at         position // of the newest event in the state
	asOf       time.Time
	ahead      time.Duration // of the database's clock before this process's
	trust      *watchwordv1.TrustState
	revoked    revocations
	trustChunk Message // trust, as snapshots begin with it
	watchers   int
	peers      map[string]*watching
	log        []entry
	first      int           // the index of log[0], counted from the start of the process
	rekeyed    int           // the index behind the newest change of the trust state
	recent     []position    // of the events in the log, in order
	changed    chan struct{} // closed and replaced when the log grows
	rekey      bool          // the trust state is to be read, whatever the events say
	fork       int           // counts the histories that this process has seen, but the first
	applied    int64         // what our own verifier has applied
	begun      int           // counts the readings of the tail
	ended      int           // the last of them that has ended
	failed     error         // why that one failed
	progress   chan struct{} // closed and replaced when applied or ended grows
}

// Message is an encoded WatchBundleResponse. Many watchers share it: it must not
// be changed.
type Message []byte

// Open reads the state of the database. Run keeps it up to date.
func Open(ctx context.Context, s *store.Store, issuer, databaseID string, logger *slog.Logger) (*Feed, error) {
	f := &Feed{
		store: s, issuer: issuer, origin: []byte(databaseID), logger: logger, hint: make(chan struct{}, 1),
		peers:   map[string]*watching{},
		changed: make(chan struct{}), progress: make(chan struct{}),
		onKeys: func(context.Context) error { return nil }, poll: pollEvery, beats: heartbeatEvery,
	}
	err := s.Read(ctx, func(tx *store.Tx) error {
		trust, err := f.readKeys(ctx, tx)
		f.setTrust(trust)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	if err := f.catchUp(ctx); err != nil {
		return nil, fmt.Errorf("reading events: %w", err)
	}
	return f, nil
}

// OnKeys calls fn whenever the signing keys have changed, before any watcher
// learns of it. It comes before Run.
func (f *Feed) OnKeys(fn func(context.Context) error) { f.onKeys = fn }

// Pace sets how often Run polls and beats, for tests in which months pass. It
// comes before Run.
func (f *Feed) Pace(poll, beats time.Duration) { f.poll, f.beats = poll, beats }

// Run tails the store until ctx ends.
func (f *Feed) Run(ctx context.Context) {
	poll := time.NewTicker(f.poll)
	defer poll.Stop()
	beat := time.NewTicker(f.beats)
	defer beat.Stop()
	var hints sync.WaitGroup
	defer hints.Wait()
	hints.Go(func() { f.store.Hints(ctx, f.nudge) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.hint:
		case <-poll.C:
		case <-beat.C:
			f.beat()
			if f.untold {
				f.tellKeys(ctx)
			}
			continue
		}
		if err := f.catchUp(ctx); err != nil && ctx.Err() == nil {
			f.logger.WarnContext(ctx, "cannot read events; verifiers go on with what they know", "error", err)
		}
	}
}

// Write is a [Writer] that returns when this server's own verifier has applied every
// event that the transaction saw, its own among them: a change that is acknowledged
// is known to Verify, also when nothing was left to change.
func (f *Feed) Write(ctx context.Context, fn func(*Tx) error) error {
	var head store.Event
	err := f.store.Write(ctx, func(tx *store.Tx) error {
		if err := fn(&Tx{tx}); err != nil {
			return err
		}
		return tx.HeadInto(&head.Seq, &head.Tag)
	})
	if err != nil {
		return err
	}
	return f.wait(ctx, positionOf(&head))
}

// Sync returns when this server's own verifier has applied every event that is
// committed now.
func (f *Feed) Sync(ctx context.Context) error {
	var head position
	err := f.store.Read(ctx, func(tx *store.Tx) error {
		seq, err := tx.Head()
		if err != nil {
			return err
		}
		newest, err := tx.Events(seq-1, 1)
		for _, e := range newest {
			head = positionOf(e)
		}
		return err
	})
	if err != nil {
		return err
	}
	return f.wait(ctx, head)
}

// nudge lets Run read the tail now.
func (f *Feed) nudge() {
	select {
	case f.hint <- struct{}{}:
	default:
	}
}

// wait returns when our own verifier has applied all up to a position. A number
// that was applied before proves nothing if the history has forked since.
func (f *Feed) wait(ctx context.Context, head position) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	f.nudge()
	for {
		f.mu.Lock()
		applied, progress := f.applied >= head.seq && f.holds(head), f.progress
		f.mu.Unlock()
		if applied {
			return nil
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return fmt.Errorf("%w: waiting for our own verifier: %w", store.ErrUnavailable, ctx.Err())
		}
	}
}

// Prune deletes events that concern no token any more, in small steps.
func (f *Feed) Prune(ctx context.Context) error {
	const step = 500 // rows: about a millisecond of the writer's time
	for {
		var n int64
		err := f.store.Write(ctx, func(tx *store.Tx) (err error) {
			n, err = tx.PruneEvents(step)
			return err
		})
		if err != nil || n < step {
			return err
		}
	}
}

// beat sends a heartbeat and forgets what has expired.
func (f *Feed) beat() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked.forget(f.now())
	f.append(heartbeat, f.heartbeat(f.resume()))
}

// now is the database's time, by which tokens are minted and revocations expire,
// also while it cannot be asked; mu is held.
func (f *Feed) now() time.Time { return time.Now().Add(f.ahead) }

func (f *Feed) heartbeat(resume []byte) *watchwordv1.WatchBundleResponse {
	beat := &watchwordv1.Heartbeat{ServerTime: timestamppb.New(f.now()), AsOf: timestamppb.New(f.asOf)}
	return &watchwordv1.WatchBundleResponse{
		Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: beat}, Resume: resume,
	}
}
