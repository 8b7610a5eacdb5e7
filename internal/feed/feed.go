// Package feed owns the numbered events by which verifiers learn what has been
// revoked: appending them to the store, and handing them out as the trust
// bundle, a snapshot and then changes.
//
// Each replica tails the store on its own: it polls by number, which misses
// nothing, and a hint after its own commits makes it prompt. All watchers share
// one in-memory state and one bounded log; who falls behind the log is dropped
// and must come back for a snapshot.
package feed

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
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
	// chunkSize entries in its connection's buffers.
	maxWatchers = 10_000
	// logSize bounds how far a watcher may fall behind.
	logSize = 4096
	// applyTimeout bounds how long an acknowledgement waits for this server's
	// own verifier. It is memory work, so this never ends unless a fault does it.
	applyTimeout = 5 * time.Second
)

var (
	// ErrBehind says that a watcher fell behind and must begin anew.
	ErrBehind = errors.New("watcher fell behind")
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
	poll   time.Duration
	beats  time.Duration

	mu       sync.Mutex
	seq      int64 // of the newest event in the state
	tag      []byte
	asOf     time.Time
	trust    *watchwordv1.TrustState
	snapshot []*watchwordv1.WatchBundleResponse // of the state, made when it is asked for; nil: the state has changed
	watchers int
	ended    map[string]time.Time // session id → until
	raised   map[subject]raise
	log      []entry
	first    int           // the index of log[0], counted from the start of the process
	changed  chan struct{} // closed and replaced when the log grows
	applied  int64         // what our own verifier has applied
	progress chan struct{} // closed and replaced when applied grows
}

// subject is a user's tokens below a version: those that are stale, or those
// that are revoked.
type subject struct {
	userID  string
	revoked bool
}

type raise struct {
	version int64
	until   time.Time
}

// entry is a message for all watchers; seq is the state's number behind it.
type entry struct {
	seq     int64
	message *watchwordv1.WatchBundleResponse
}

// Open reads the state of the database. Run keeps it up to date.
func Open(ctx context.Context, s *store.Store, issuer, databaseID string, logger *slog.Logger) (*Feed, error) {
	f := &Feed{
		store: s, issuer: issuer, origin: []byte(databaseID), logger: logger, hint: make(chan struct{}, 1),
		ended: map[string]time.Time{}, raised: map[subject]raise{},
		changed: make(chan struct{}), progress: make(chan struct{}),
		onKeys: func(context.Context) error { return nil }, poll: pollEvery, beats: heartbeatEvery,
	}
	err := s.Read(ctx, func(tx *store.Tx) error { return f.readKeys(tx) })
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
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.hint:
		case <-poll.C:
		case <-beat.C:
			f.beat()
			continue
		}
		if err := f.catchUp(ctx); err != nil && ctx.Err() == nil {
			f.logger.WarnContext(ctx, "cannot read events; verifiers go on with what they know", "error", err)
		}
	}
}

// Write runs fn in a transaction, and returns when this server's own verifier
// has applied every event that the transaction saw, its own among them: what
// has been acknowledged, Verify knows, also when there was nothing left to do.
func (f *Feed) Write(ctx context.Context, fn func(*store.Tx) error) error {
	var head int64
	err := f.store.Write(ctx, func(tx *store.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		var err error
		head, err = tx.Head()
		return err
	})
	if err != nil {
		return err
	}
	return f.wait(ctx, head)
}

// Sync returns when this server's own verifier has applied every event that is
// committed now.
func (f *Feed) Sync(ctx context.Context) error {
	var head int64
	err := f.store.Read(ctx, func(tx *store.Tx) (err error) {
		head, err = tx.Head()
		return err
	})
	if err != nil {
		return err
	}
	return f.wait(ctx, head)
}

func (f *Feed) wait(ctx context.Context, seq int64) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	select {
	case f.hint <- struct{}{}:
	default:
	}
	for {
		f.mu.Lock()
		applied, progress := f.applied, f.progress
		f.mu.Unlock()
		if applied >= seq {
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

// catchUp reads the events behind the state, and publishes them.
func (f *Feed) catchUp(ctx context.Context) error {
	for {
		f.mu.Lock()
		b := batch{after: f.seq}
		f.mu.Unlock()
		if err := f.store.Read(ctx, b.read); err != nil {
			return err
		}
		if err := f.publish(ctx, b); err != nil {
			return err
		}
		if len(b.events) < tailBatch {
			return nil
		}
	}
}

// batch is what one read of the tail has found behind a number.
type batch struct {
	after  int64
	events []*store.Event
	head   int64 // all up to here has been read
	at     time.Time
}

func (b *batch) read(tx *store.Tx) (err error) {
	b.at = tx.Now()
	if b.events, err = tx.Events(b.after, tailBatch); err != nil {
		return err
	}
	if len(b.events) == tailBatch {
		b.head = b.events[tailBatch-1].Seq
		return nil
	}
	b.head, err = tx.Head() // events that were pruned since have numbers too
	return err
}

// publish adds events to the state and to the log.
func (f *Feed) publish(ctx context.Context, b batch) error {
	for _, e := range b.events {
		if e.Kind == store.KeysChanged {
			if err := errors.Join(f.store.Read(ctx, f.readKeys), f.onKeys(ctx)); err != nil {
				return err
			}
			break
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asOf = b.at
	if b.head == f.seq {
		return nil
	}
	change := &watchwordv1.Change{}
	for _, e := range b.events {
		f.add(e, change)
	}
	f.seq, f.snapshot = b.head, nil
	f.append(&watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_Change{Change: change}})
	return nil
}

// add brings one event into the state and into a change; mu is held.
func (f *Feed) add(e *store.Event, change *watchwordv1.Change) {
	f.seq, f.tag = e.Seq, e.Tag
	switch e.Kind {
	case store.KeysChanged:
		change.TrustState = f.trust
	case store.SessionEnded:
		f.ended[e.Subject] = e.ExpiresAt
		change.EndedSessions = append(change.EndedSessions, endedSession(e.Subject, e.ExpiresAt))
	case store.VersionStale, store.VersionRevoked:
		s, r := subject{e.Subject, e.Kind == store.VersionRevoked}, raise{version: e.Version, until: e.ExpiresAt}
		f.raised[s] = r
		change.RaisedVersions = append(change.RaisedVersions, raisedVersion(s, r))
	}
}

// append adds a message to the log and wakes the watchers; mu is held.
func (f *Feed) append(message *watchwordv1.WatchBundleResponse) {
	message.Resume = f.resume()
	if len(f.log) == logSize {
		f.log = append([]entry(nil), f.log[logSize/2:]...)
		f.first += logSize / 2
	}
	f.log = append(f.log, entry{seq: f.seq, message: message})
	close(f.changed)
	f.changed = make(chan struct{})
}

// beat sends a heartbeat and forgets what has expired.
func (f *Feed) beat() {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.snapshot = nil
	for id, until := range f.ended {
		if until.Before(now) {
			delete(f.ended, id)
		}
	}
	for s, r := range f.raised {
		if r.until.Before(now) {
			delete(f.raised, s)
		}
	}
	f.append(f.heartbeat(now))
}

func (f *Feed) heartbeat(now time.Time) *watchwordv1.WatchBundleResponse {
	beat := &watchwordv1.Heartbeat{ServerTime: timestamppb.New(now), AsOf: timestamppb.New(f.asOf)}
	return &watchwordv1.WatchBundleResponse{
		Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: beat}, Resume: f.resume(),
	}
}

// readKeys builds the trust state from the rows.
func (f *Feed) readKeys(tx *store.Tx) error {
	rows, err := tx.SigningKeys()
	if err != nil {
		return err
	}
	longest, err := MaxLifetime(tx)
	if err != nil {
		return err
	}
	trust := &watchwordv1.TrustState{
		Issuer: f.issuer, MaxTokenLifetime: durationpb.New(longest), Margin: durationpb.New(Margin),
	}
	for _, row := range rows {
		if !row.RevokedAt.IsZero() || !row.VerifiesUntil.IsZero() && !row.VerifiesUntil.After(tx.Now()) {
			continue
		}
		key, err := verificationKey(row)
		if err != nil {
			return fmt.Errorf("signing key %s: %w", row.KID, err)
		}
		trust.Keys = append(trust.Keys, key)
	}
	f.mu.Lock()
	f.trust, f.snapshot = trust, nil
	f.mu.Unlock()
	return nil
}

func verificationKey(row *store.SigningKey) (*watchwordv1.VerificationKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(row.PublicKey)
	if err != nil {
		return nil, err
	}
	public, err := token.NewPublicKey(parsed)
	if err != nil {
		return nil, err
	}
	key := &watchwordv1.VerificationKey{Key: public.JWK()}
	if !row.VerifiesUntil.IsZero() {
		key.VerifiesUntil = timestamppb.New(row.VerifiesUntil)
	}
	return key, nil
}
