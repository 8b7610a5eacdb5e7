// Package feed reads the numbered events (revocations and changes of keys) from the database
// and publishes the events into a [hub.Hub], which sends revocations and keys to the verifiers.
//
// Each replica reads the tail of the events (the events after the last one read) by number, and
// so sees every event. A hint (a notification of PostgreSQL, or a commit in the same process)
// starts the reading at once. Package feed notices when the database has another history of
// events than before, as after the restore of a backup, and calls [hub.Hub.Fork]. Events are
// appended through [Tx] alone.
//
// When [Feed.Write] returns, the process's own verifier knows the change.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/spans"
	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// pollEvery is the time between two reads of the newest events (the tail), and so bounds
	// how long a change made by another process goes unnoticed. A poll without new events reads
	// one row by its key.
	pollEvery = 200 * time.Millisecond
	// heartbeatEvery is the time between two heartbeats to the verifiers: a fraction of the
	// minute after which a verifier without heartbeats has a stale trust bundle.
	heartbeatEvery = 5 * time.Second
	// keysEvery is the number of heartbeats from one read of the signing keys to the next: a
	// minute. If somebody has changed rows of the table signing_keys by hand, no event tells of
	// the change, and only this read notices and logs the change.
	keysEvery = 12
	// tailBatch bounds the events that one transaction reads, and so the size of a message to
	// watchers.
	tailBatch = 1000
	// provenFor is the time after a commit for which the feed takes for granted that the
	// database can still commit. The next commit begins after [store.TickEvery]; two more
	// seconds let a busy machine finish that commit.
	provenFor = store.TickEvery + 2*time.Second
	// applyTimeout bounds the wait until the verifier of this process has applied an event.
	// Applying an event is work in memory, so only a fault takes longer.
	applyTimeout = 5 * time.Second
)

// Feed reads the newest events from the database and publishes the events into a hub. Feed is
// safe for concurrent use and has no lock: the fields of the first group do not change while
// Run is running, one goroutine at a time (of Open, and later of Run) uses the fields of the
// second group, and the fields of the third group are atomic.
type Feed struct {
	store    *store.Store
	hub      *hub.Hub
	hint     chan struct{} // has room for one element, which makes Run read the tail now
	tick     chan struct{} // has room for one element, which makes countTicks count a tick now
	issuer   string
	keys     Keys
	logger   *slog.Logger
	poll     time.Duration
	beats    time.Duration
	proven   time.Duration              // provenFor, or another time in tests
	question func(asked, now time.Time) // see [Feed.OnQuestion]

	at          hub.Position // every event up to this position is published
	floor       int64        // the floor for versions (no new token has a lower version), as read last
	greatest    int64        // the greatest of all floors and of all versions in events, also of histories that the database has lost
	trustUnread bool         // the last batch of the next reading must read the trust state (the public keys)
	keysAgain   bool         // the function keys has asked to be called again; see [KeySet]
	warned      bool         // the log has a line about the errors of readTail
	asked       time.Time    // the newest question of [store.Tx.AskReplicas], as read last

	next      atomic.Pointer[reading]   // the read of the tail that begins next
	failing   atomic.Bool               // the last read of the tail ended with an error
	committed atomic.Int64              // when the newest transaction of countTicks began that was committed, in ns of hub.Elapsed
	late      atomic.Pointer[time.Time] // the moment that [Feed.noteMoment] has noted; nil: no moment
	stats     struct{ failedReadings, failedTicks, forks, clockSet atomic.Uint64 }
}

// Origin describes the installation of Watchword of which a feed publishes the events.
type Origin struct {
	Issuer     string
	DatabaseID string
	Keys       Keys // nil: the trust state has no key
}

// Keys reads the signing keys to publish, at the beginning and after each change of the keys,
// before a watcher receives the change. A feed cannot trust the rows of the table signing_keys
// alone: package issuer checks the rows under the master key.
//
// Errors: those of the store; if [Open] calls Keys, also any other error.
type Keys func(context.Context, *store.Tx) (KeySet, error)

// KeySet holds the signing keys to publish.
type KeySet struct {
	Rows      []*store.SigningKey
	Withdrawn []string // ids of withdrawn keys, which no verifier may trust again
	Again     bool     // the database has a newer key set that cannot be used now: the feed reads the keys again at each heartbeat
}

// Open publishes the keys and the revocations in the database into a new hub. [Feed.Run] keeps
// the hub up to date.
func Open(ctx context.Context, s *store.Store, of Origin, logger *slog.Logger) (*Feed, error) {
	f := &Feed{
		store: s, issuer: of.Issuer, keys: of.Keys, logger: logger, hint: make(chan struct{}, 1),
		poll: pollEvery, beats: heartbeatEvery, proven: provenFor, trustUnread: true, tick: make(chan struct{}, 1),
		question: func(time.Time, time.Time) {},
	}
	if f.keys == nil {
		f.keys = func(context.Context, *store.Tx) (KeySet, error) { return KeySet{}, nil }
	}
	f.next.Store(newReading())
	f.hub = hub.New(of.DatabaseID, f.refresh)
	if err := f.readTail(ctx); err != nil {
		return nil, fmt.Errorf("reading events and keys: %w", err)
	}
	return f, nil
}

// Hub returns the hub that the feed publishes into.
func (f *Feed) Hub() *hub.Hub { return f.hub }

// Pace sets how often Run polls the store and sends heartbeats, for tests in which
// months pass. Pace must be called before Run.
func (f *Feed) Pace(poll, beats time.Duration) { f.poll, f.beats = poll, beats }

// OnQuestion makes Run call fn after each reading that finds another question of
// [store.Tx.AskReplicas] than the reading before: asked is the time of the question, and now
// the time of the reading, both by the database's clock. Run finds a new question by the same
// polls and hints as new events. The function fn must not block. OnQuestion must be called
// before Run.
func (f *Feed) OnQuestion(fn func(asked, now time.Time)) { f.question = fn }

// Run reads the tail of the events again and again, until ctx ends.
func (f *Feed) Run(ctx context.Context) {
	poll := time.NewTicker(f.poll)
	defer poll.Stop()
	beat := time.NewTicker(f.beats)
	defer beat.Stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { f.store.Hints(ctx, f.nudge) })
	tasks.Go(func() { f.countTicks(ctx) })
	for beats := 1; ; {
		select {
		case <-ctx.Done():
			return
		case <-f.hint:
		case <-poll.C:
		case <-beat.C:
			f.hub.Beat()
			if beats++; !f.keysAgain && beats%keysEvery != 0 {
				continue
			}
			f.trustUnread = true
		}
		f.warnOnce(ctx, f.readTail(ctx))
	}
}

// warnOnce logs the first of several successive errors of readTail; a nil err tells that
// readTail has succeeded. warnOnce does not log ErrAway, since the store logs an outage of the
// database.
func (f *Feed) warnOnce(ctx context.Context, err error) {
	switch {
	case err == nil:
		f.warned = false
	case !f.warned && ctx.Err() == nil && !errors.Is(err, store.ErrAway):
		f.warned = true
		f.logger.WarnContext(ctx, "cannot read events; verifiers continue with the changes received so far", "error", err)
	}
}

// countTicks counts ticks (units of time in which a server has run) in the table ticks until
// ctx ends: by the ticks, Prune knows how much time has passed (see [store.Tx.Tick]). Each
// commit also proves that the database can commit: see [Feed.mayCommit]. Run reads the tail in
// another goroutine, since a commit can wait for a standby.
func (f *Feed) countTicks(ctx context.Context) {
	every := time.NewTicker(max(store.TickEvery, f.poll)) // after [Feed.Pace], as in tests in which months pass, ticks are as rare as polls
	defer every.Stop()
	for warned := false; ; {
		switch err := f.countTick(ctx); {
		case err == nil:
			warned = false
		case ctx.Err() == nil && !errors.Is(err, store.ErrAway): // the store logs outages
			f.stats.failedTicks.Add(1)
			if !warned {
				f.logger.WarnContext(ctx, "the database does not commit the count of the time that has passed: "+
					"old rows are deleted later, and with PostgreSQL the trust bundles of verifiers get stale", "error", err)
			}
			warned = true
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		case <-f.tick:
		}
	}
}

// countTick counts a tick in the table ticks, and notes that the database could commit when
// countTick began. After a late moment (see [Feed.noteMoment]), countTick also ends the delegated
// tokens, in the same transaction.
func (f *Feed) countTick(ctx context.Context) error {
	began := f.hub.Elapsed()
	late := f.late.Load()
	err := Direct(f.store).Write(ctx, func(tx *Tx) error {
		if err := tx.Tick(); err != nil || late == nil {
			return err
		}
		moment, err := tx.DelegatedNotBefore()
		if err != nil || !moment.Equal(*late) { // another replica has called EndDelegated
			return err
		}
		return errors.Join(tx.EndDelegated(), tx.KeysChanged())
	})
	if err == nil {
		f.late.CompareAndSwap(late, nil)
		f.committed.Store(int64(began))
	}
	return err
}

// countNow makes countTicks count a tick in the table ticks now.
func (f *Feed) countNow() {
	select {
	case f.tick <- struct{}{}:
	default:
	}
}

// mayCommit reports whether the database has committed a tick within the last f.proven. A
// former primary that a standby has replaced can still answer, and lacks the changes of the new
// primary. Only a commit shows that the database is still the primary, if the primary has a
// synchronous standby. SQLite has no standby, and its readers see every commit: for SQLite,
// mayCommit returns true.
func (f *Feed) mayCommit() bool {
	return f.store.Path() != "" || f.hub.Elapsed()-time.Duration(f.committed.Load()) < f.proven
}

// Write runs fn in a write transaction, as a [Writer], and returns when this server's
// own verifier has applied every event up to the commit. So after Write, Verify knows
// the change, also if an earlier transaction had already made the change and fn found
// nothing to do.
//
// Errors: those of [store.Store.Write]; [store.ErrUnavailable] if the change was committed, but
// the verifier did not apply the event in time.
func (f *Feed) Write(ctx context.Context, fn func(*Tx) error) error {
	return f.transact(ctx, f.store.Write, fn)
}

// Standing reads the rows of the session and of the users that a delegated token depends on,
// and returns when this server's own verifier has applied every event that was committed before
// the reading. So the verifier knows at least what the rows say. Errors: those of [Feed.Write].
func (f *Feed) Standing(ctx context.Context, session string, users []string) (*store.Standing, error) {
	var s *store.Standing
	err := f.store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		s, err = tx.Standing(session, users)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, f.waitApplied(ctx, &s.Head)
}

// Sync returns when this server's own verifier has applied every event that is
// committed now. Errors: those of [Feed.Write].
func (f *Feed) Sync(ctx context.Context) error {
	return f.transact(ctx, f.store.Read, func(*Tx) error { return nil })
}

// transact runs fn in a transaction, and waits until this server's own verifier has applied the
// newest event that the transaction saw.
func (f *Feed) transact(ctx context.Context, in func(context.Context, func(*store.Tx) error) error, fn func(*Tx) error) error {
	var head store.Event
	err := in(ctx, func(tx *store.Tx) error {
		if err := fn(&Tx{tx}); err != nil {
			return err
		}
		return tx.HeadInto(&head.Seq, &head.Tag)
	})
	if err != nil {
		return err
	}
	return f.waitApplied(ctx, &head)
}

// waitApplied waits until this server's own verifier has applied the event head. Errors:
// [store.ErrUnavailable].
func (f *Feed) waitApplied(ctx context.Context, head *store.Event) error {
	if f.hub.HasApplied(positionOf(head)) {
		return nil
	}
	ctx, applying := spans.Start(ctx, "feed.apply")
	defer applying.End()
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	f.nudge()
	if err := f.hub.WaitApplied(ctx, positionOf(head)); err != nil {
		return fmt.Errorf("%w: waiting for our own verifier: %w", store.ErrUnavailable, err)
	}
	return nil
}

// nudge makes Run read the newest events from the database now.
func (f *Feed) nudge() {
	select {
	case f.hint <- struct{}{}:
	default:
	}
}

// Prune deletes the events that concern only expired tokens, in small steps.
func (f *Feed) Prune(ctx context.Context) error {
	const step = 500 // rows: about a millisecond of the writer's time
	for {
		var n int64
		err := f.store.Write(ctx, func(tx *store.Tx) error {
			longest, err := tx.MaxLifetime()
			if err != nil {
				return err
			}
			life := longest + Margin // the time from the writing of an event to its expiry
			aged, err := tx.Aged(life)
			if err == nil {
				n, err = tx.PruneEvents(aged.Add(life), step)
			}
			return err
		})
		if err != nil || n < step {
			return err
		}
	}
}

// Stats holds the numbers of a feed, for metrics. The number of the newest published event is
// in [hub.Stats].
type Stats struct {
	FailedReadings uint64 // failed reads of the newest events, for whatever reason
	FailedTicks    uint64 // ticks (see [store.Tx.Tick]) that the database did not commit; so old rows are deleted later
	Forks          uint64 // how often the database had lost events that this process or a verifier knew
	ClockSet       uint64 // how often the clock of the database was set to another time
}

// Stats returns the numbers of the feed.
func (f *Feed) Stats() Stats {
	s := &f.stats
	return Stats{s.failedReadings.Load(), s.failedTicks.Load(), s.forks.Load(), s.clockSet.Load()}
}
