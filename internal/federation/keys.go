package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// rereadEvery is the time between two readings of the issuers' rows if no call asks for a
	// reading: so the server has the keys of a new issuer before the first call, and fetches
	// the keys of a removed issuer no longer.
	rereadEvery = time.Minute
	// rereadShare and longestPause bound what forged assertions cost the database: between the
	// starts of two readings lies rereadShare times the duration of the first reading, up to
	// longestPause. The readings therefore take a tenth of the time of one connection. All
	// calls that wait share a reading.
	rereadShare  = 10
	longestPause = 100 * time.Millisecond
)

// errClosed is the error of [Keys.reread] after Close.
var errClosed = fmt.Errorf("%w: the server is stopping", store.ErrUnavailable)

// Keys keeps the trusted issuers and their public keys in memory. Each issuer with a URL has
// a goroutine of its own that fetches, so that an issuer that is slow or away delays no other
// issuer. The keys of maxIssuers issuers take some 30 MB together at most. A Keys is
// safe for concurrent use.
type Keys struct {
	store  *store.Store
	logger *slog.Logger
	dialer func(allowPrivate bool) dial
	tally  tally

	ctx   context.Context // the context of every goroutine; ends at Close
	close context.CancelFunc
	tasks sync.WaitGroup

	reading sync.Mutex // held during a reading of the rows; locked before mu
	next    time.Time  // no reading begins before next; the mutex reading guards next

	mu      sync.Mutex          // guards the fields below
	closed  bool                // Close was called: no new goroutine begins
	asked   *reading            // the reading that calls wait for and that has not begun; nil: no call waits
	issuers map[string]*trusted // the trusted issuers, by the claim iss
}

// trusted is a trusted issuer in memory. A trusted never changes.
type trusted struct {
	row    *store.Issuer
	source *source
}

// reading is one reading of the issuers' rows, for all callers that asked before the reading
// began.
type reading struct {
	done chan struct{}
	err  error
}

// OpenKeys returns a Keys that knows no issuer yet. The caller must call Close.
func OpenKeys(s *store.Store, logger *slog.Logger) *Keys {
	k := &Keys{store: s, logger: logger, dialer: dialer, issuers: map[string]*trusted{}}
	k.ctx, k.close = context.WithCancel(context.Background())
	return k
}

// Run reads the rows of the issuers at once, and then once in rereadEvery, until ctx ends.
func (k *Keys) Run(ctx context.Context) {
	tick := time.NewTicker(rereadEvery)
	defer tick.Stop()
	for {
		if err := k.reread(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrAway) { // the store itself logs an outage
			k.logger.WarnContext(ctx, "cannot read the trusted issuers; trying again in a minute", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Close ends every goroutine, and waits for the goroutines.
func (k *Keys) Close() error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.close()
	k.tasks.Wait()
	return nil
}

// of returns the issuer with a claim iss, as the newest reading found it; nil if the reading
// found no such issuer.
func (k *Keys) of(iss string) *trusted {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.issuers[iss]
}

// reread waits for a reading of the issuers' rows that began after the call of reread. Calls
// that wait share a reading.
//
// Errors: errors of the store.
func (k *Keys) reread(ctx context.Context) error {
	k.mu.Lock()
	r := k.asked
	switch {
	case k.closed:
		r = &reading{done: make(chan struct{}), err: errClosed}
		close(r.done)
	case r == nil:
		r = &reading{done: make(chan struct{})}
		k.asked = r
		k.tasks.Go(func() { k.read(r) })
	}
	k.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read reads the rows of the issuers, and ends the wait of the callers that have asked for the
// reading r.
func (k *Keys) read(r *reading) {
	k.reading.Lock()
	defer k.reading.Unlock()
	pause := time.NewTimer(time.Until(k.next))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-k.ctx.Done():
	}
	began := time.Now()
	defer func() { k.next = began.Add(min(rereadShare*time.Since(began), longestPause)) }()
	k.mu.Lock()
	k.asked = nil
	k.mu.Unlock()
	defer close(r.done)
	var changed map[string]*store.Issuer
	var stamps []*store.IssuerStamp
	r.err = k.store.Read(k.ctx, func(tx *store.Tx) (err error) {
		changed = map[string]*store.Issuer{}
		if stamps, err = tx.IssuerStamps(maxIssuers); err != nil {
			return err
		}
		for _, s := range stamps {
			if old := k.of(s.Issuer); old != nil && old.row.Name == s.Name && old.row.UpdatedAt.Equal(s.UpdatedAt) {
				continue
			}
			if changed[s.Issuer], err = tx.Issuer(s.Name); err != nil {
				return err
			}
		}
		return nil
	})
	if r.err == nil {
		k.adopt(stamps, changed)
	}
}

// adopt replaces the issuers in memory. A source continues as long as its row takes the keys
// from the same place, so that the keys of an issuer that does not answer stay.
func (k *Keys) adopt(stamps []*store.IssuerStamp, changed map[string]*store.Issuer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.issuers
	k.issuers = map[string]*trusted{}
	for _, s := range stamps {
		before, row := old[s.Issuer], changed[s.Issuer]
		delete(old, s.Issuer)
		switch {
		case row == nil:
			k.issuers[s.Issuer] = before
		case before != nil && sameKeys(before.row, row):
			k.issuers[s.Issuer] = &trusted{row, before.source}
		default:
			k.issuers[s.Issuer] = &trusted{row, k.startLocked(row, before)}
		}
	}
	for _, removed := range old {
		removed.source.stop()
	}
}

// startLocked starts a source for a row, in place of the source of an earlier row.
func (k *Keys) startLocked(row *store.Issuer, before *trusted) *source {
	if before != nil {
		before.source.stop()
	}
	s := newSource(row, &k.tally, k.dialer(row.AllowPrivate), k.logger)
	if s.fetch == nil || k.closed {
		return s
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(k.ctx)
	k.tasks.Go(func() { s.run(ctx) })
	return s
}

// sameKeys reports whether two rows take their keys from the same place.
func sameKeys(a, b *store.Issuer) bool {
	return a.Name == b.Name && a.Issuer == b.Issuer && a.Jwks == b.Jwks && a.JwksURI == b.JwksURI &&
		a.Discovery == b.Discovery && a.CAPEM == b.CAPEM && a.AllowPrivate == b.AllowPrivate
}

// Fetched returns what this process has of the keys of an issuer; the zero Fetched if the row of
// the issuer takes the keys from another place than the newest reading of the rows has found.
func (k *Keys) Fetched(row *store.Issuer) Fetched {
	if t := k.of(row.Issuer); t != nil && sameKeys(t.row, row) {
		return t.source.fetchedNow()
	}
	return Fetched{}
}

// Await waits until this process knows the row of an issuer, and until the first fetch of the
// keys has ended, for firstWait at most. So an admin sees the keys of an issuer that the admin
// has just added or changed.
//
// Errors: errors of the store.
func (k *Keys) Await(ctx context.Context, row *store.Issuer) error {
	t := k.of(row.Issuer)
	if t == nil || !sameKeys(t.row, row) {
		if err := k.reread(ctx); err != nil {
			return err
		}
		t = k.of(row.Issuer)
	}
	if t != nil {
		t.source.awaitFirst(ctx)
	}
	return nil
}

// Stats holds the numbers of the fetched keys, for metrics.
type Stats struct {
	Succeeded, Failed uint64 // the numbers of fetches
	Failing           int    // the number of issuers with a newest fetch that failed
	// Oldest is the time since the newest fetch that succeeded, of the issuer for which that
	// time is longest. Issuers without a successful fetch are left out.
	Oldest time.Duration
}

// Stats returns the numbers of the fetched keys.
func (k *Keys) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Stats{Succeeded: k.tally.succeeded.Load(), Failed: k.tally.failed.Load()}
	for _, t := range k.issuers {
		f := t.source.fetchedNow()
		if f.Err != nil {
			s.Failing++
		}
		if !f.At.IsZero() {
			s.Oldest = max(s.Oldest, time.Since(f.At))
		}
	}
	return s
}
