package federation

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

const (
	// refreshEvery is the time between two fetches that succeed. As long as the issuer answers,
	// the server therefore accepts a withdrawn key of the issuer for refreshEvery at most.
	refreshEvery = 5 * time.Minute
	// fetchPause is the shortest time between the starts of two fetches of an issuer, whatever
	// clients ask. A fetch that failed is repeated after fetchPause.
	fetchPause = 10 * time.Second
	// keepKeys is how long the server accepts the keys of the newest fetch while the issuer is
	// away, so that an outage of a night ends no exchange. For keepKeys, the server also
	// accepts a key that the issuer has withdrawn.
	keepKeys = 24 * time.Hour
	// firstWait bounds how long a call waits for the very first fetch of an issuer, which
	// commonly takes a tenth of a second. No call waits for another fetch.
	firstWait = 2 * time.Second
	// arrival is what a client adds to the wait until a fetch begins, so that the fetch has
	// ended when the client comes back.
	arrival = time.Second
	// maxAsked bounds the remembered unknown kids of an issuer, 64 KiB together at most. An
	// assertion with an unknown kid beyond maxAsked gets ISSUER_UNAVAILABLE until a fetch
	// brings the kid.
	maxAsked = 256
	// maxError bounds the text of a failed fetch, in bytes: an issuer chooses parts of the text,
	// such as the names in a certificate.
	maxError = 1024
)

// source holds the keys of one issuer, and fetches the keys if the row names no document. If
// the row takes the keys from another place, a new source replaces the source.
//
// Each fetch brings the whole key set, for whatever kid the fetch was made. An attacker with
// forged kids therefore causes a fetch every [fetchPause], and each fetch also brings a key
// that the issuer has rotated to.
//
// A source is safe for concurrent use.
type source struct {
	name   string                                 // the name of the issuer
	fetch  func(context.Context) (*keySet, error) // nil: the row has the keys
	tally  *tally
	logger *slog.Logger
	stop   context.CancelFunc
	first  chan struct{} // closed when the first fetch has ended
	wanted chan struct{} // holds one element while an unknown kid asks for a fetch

	mu      sync.Mutex // guards the fields below
	set     *keySet    // the keys in use; nil: no fetch has brought a key set yet
	began   time.Time  // when the newest fetch began
	fetched time.Time  // the beginning of the newest fetch that brought a key set
	err     error      // the error of the newest fetch
	// asked holds the unknown kids of calls since the newest fetch began. missed holds the kids
	// that were asked for before the newest successful fetch, and that the fetch did not bring.
	asked, missed map[string]bool
}

// tally counts the fetches of all issuers, for metrics.
type tally struct{ succeeded, failed atomic.Uint64 }

func (t *tally) count(err error) {
	if err == nil {
		t.succeeded.Add(1)
	} else {
		t.failed.Add(1)
	}
}

// newSource returns a source that does not run yet. For an issuer with a URL, open makes the
// connections.
func newSource(row *store.Issuer, t *tally, open dial, logger *slog.Logger) *source {
	s := &source{
		name: row.Name, tally: t, logger: logger, stop: func() {}, first: make(chan struct{}), wanted: make(chan struct{}, 1),
		asked: map[string]bool{},
	}
	if row.Jwks != "" {
		s.set, s.err = parseKeySet([]byte(row.Jwks))
		close(s.first)
		return s
	}
	f, err := newFetcher(row, open)
	if err != nil {
		s.fetch = func(context.Context) (*keySet, error) { return nil, err }
		return s
	}
	s.fetch = f.fetch
	return s
}

// run fetches the keys until ctx ends: at once, and then when a fetch is due or an unknown kid
// asks for a fetch.
func (s *source) run(ctx context.Context) {
	for {
		due := s.refresh(ctx)
		wait := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
		case <-wait.C:
		case <-s.wanted:
			s.mu.Lock()
			wait.Reset(time.Until(s.began.Add(fetchPause)))
			s.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-wait.C:
			}
		}
		wait.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// refresh fetches the keys, and returns when the next fetch is due.
func (s *source) refresh(ctx context.Context) (due time.Time) {
	s.mu.Lock()
	s.began = time.Now()
	asked := s.asked
	s.asked = map[string]bool{}
	select {
	case <-s.wanted: // this fetch also answers the calls that asked before
	default:
	}
	s.mu.Unlock()

	set, err := s.fetch(ctx)
	if ctx.Err() != nil {
		return time.Time{}
	}
	s.tally.count(err)
	err = shortened(err)

	s.mu.Lock()
	defer s.mu.Unlock()
	kept := keepKeys
	if set != nil { // even a set without a key that can be used replaces the old set: the issuer has withdrawn its keys
		s.set, s.fetched, s.missed, kept = set, s.began, asked, 0
	}
	s.logLocked(ctx, err, kept)
	s.err = err
	select {
	case <-s.first:
	default:
		close(s.first)
	}
	if set == nil {
		for kid := range asked {
			s.rememberLocked(kid)
		}
	}
	if err != nil {
		return s.began.Add(fetchPause)
	}
	// A random part, a tenth of refreshEvery at most, keeps replicas from fetching together.
	return s.began.Add(refreshEvery - rand.N(refreshEvery/10))
}

// shortened returns an error with at most maxError bytes of the text; nil for nil.
func shortened(err error) error {
	if err == nil || len(err.Error()) <= maxError {
		return err
	}
	return errors.New(strings.ToValidUTF8(err.Error()[:maxError], "") + " …")
}

// logLocked logs the first failure of several, and the end of the failures. kept is how long the
// earlier keys are still accepted.
func (s *source) logLocked(ctx context.Context, err error, kept time.Duration) {
	switch {
	case err != nil && s.err == nil:
		s.logger.WarnContext(ctx, "cannot fetch the keys of a trusted issuer; trying again every 10 seconds", "issuer", s.name, "error", err, "kept_for", kept.String())
	case err == nil && s.err != nil:
		s.logger.InfoContext(ctx, "the keys of a trusted issuer were fetched again", "issuer", s.name)
	}
}

// key returns the key of an assertion. key never waits.
//
// Errors: ErrInvalid; a *[Unavailable].
func (s *source) key(says token.Foreign) (crypto.PublicKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.usableLocked() {
		if s.fetch == nil {
			return nil, s.invalid("the key set of the issuer cannot be used")
		}
		return nil, s.unavailableLocked("the keys of the issuer cannot be fetched")
	}
	found, known := s.set.find(says.KID, says.Algorithm)
	switch {
	case found != nil:
		return found.public, nil
	case known:
		return nil, s.invalid("the key is for another algorithm")
	case s.fetch == nil:
		return nil, s.invalid("the issuer has no such key")
	}
	// Also a kid that a fetch did not bring asks for the next fetch: an issuer can publish a
	// key some seconds after the first use of the key.
	s.rememberLocked(says.KID)
	select {
	case s.wanted <- struct{}{}:
	default:
	}
	if s.missed[says.KID] {
		return nil, s.invalid("the issuer has no such key")
	}
	return nil, s.unavailableLocked("the key is unknown until the next fetch")
}

// usableLocked reports whether the source has keys that the server accepts now.
func (s *source) usableLocked() bool {
	return s.set != nil && (s.fetch == nil || time.Since(s.fetched) < keepKeys)
}

// unfinished reports whether the first fetch has not ended.
func (s *source) unfinished() bool {
	select {
	case <-s.first:
		return false
	default:
		return true
	}
}

// awaitFirst waits until the first fetch has ended, for firstWait at most.
func (s *source) awaitFirst(ctx context.Context) {
	wait := time.NewTimer(firstWait)
	defer wait.Stop()
	select {
	case <-s.first:
	case <-wait.C:
	case <-ctx.Done():
	}
}

func (s *source) rememberLocked(kid string) {
	if len(s.asked) < maxAsked {
		s.asked[kid] = true
	}
}

// unavailableLocked returns the error with the time until the next fetch has ended. The
// text names an issuer of the database alone, so the security record can hold the text.
func (s *source) unavailableLocked(why string) error {
	return &Unavailable{Issuer: s.name, After: max(0, time.Until(s.began.Add(fetchPause))) + arrival, why: why}
}

func (s *source) invalid(why string) error { return refused{ErrInvalid, s.name, why} }

// Fetched describes the keys of an issuer that this process has.
type Fetched struct {
	KIDs []string  // the ids of the keys that can be used, sorted
	At   time.Time // the time of the newest fetch that brought a key set; zero: no fetch did, or the row has the keys
	Err  error     // the error of the newest fetch
}

func (s *source) fetchedNow() Fetched {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := Fetched{At: s.fetched, Err: s.err}
	if s.usableLocked() {
		f.KIDs = s.set.kids()
	}
	return f
}
