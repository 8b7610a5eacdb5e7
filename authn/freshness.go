package authn

import (
	"log/slog"
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// freshness holds the position of the trust bundle in the server's stream and the age of
// the bundle by the server's clock, and decides whether the bundle may be used to verify
// tokens.
//
// Every field is atomic or never changes, so no method takes a lock. One goroutine, the
// feed's, calls the methods that write: beat, resumeAt and restore. Any goroutine may call
// close and the methods that read.
type freshness struct {
	log      *slog.Logger
	limit    staleness
	clock    *clock
	position atomic.Pointer[position]
	complete atomic.Bool // the first bundle is complete; stays true
	closed   atomic.Bool // every guarded call is refused; stays true
	wasStale atomic.Bool // the last message in the log said stale
	watchdog *time.Timer // logs that the bundle is stale when no heartbeat comes
}

// staleness holds the age from which a trust bundle is stale, and the policy for a stale
// bundle, of [WithMaxStaleness].
type staleness struct {
	after  time.Duration
	policy StalePolicy
}

// position says which changes the trust bundle contains. A position never changes; a new
// position replaces the old one. The bundle contains every change up to its position, and
// perhaps later changes.
type position struct {
	resume []byte    // the resume token for the next stream
	asOf   int64     // the bundle has every change up to this server time, ns since 1970
	server time.Time // the server's time at the newest heartbeat, as the clock estimated it
	local  time.Time // this machine's clock at the same moment
}

func newFreshness(log *slog.Logger, limit staleness) *freshness {
	f := &freshness{log: log, limit: limit, clock: newClock()}
	f.position.Store(new(position))
	f.watchdog = time.AfterFunc(limit.after, f.logStaleness)
	f.watchdog.Stop() // until the first heartbeat
	return f
}

// beat stores the times of a heartbeat. whole says whether everything before the heartbeat
// has been received. beat returns whether the heartbeat completes the first bundle.
func (f *freshness) beat(beat *watchwordv1.Heartbeat, whole bool) (first bool) {
	server := beat.GetServerTime().AsTime()
	next := *f.position.Load()
	// The age of the trust bundle is the clock's time minus position.asOf. If the heartbeat
	// sets the clock back, asOf is set back by the same time: the age must not shrink.
	next.asOf -= int64(f.clock.heard(server))
	if whole {
		known := server // a server knows nothing later than its own time
		if at := beat.GetAsOf(); at.IsValid() && at.AsTime().Before(server) {
			known = at.AsTime()
		}
		next.asOf = max(next.asOf, known.UnixNano())
	}
	next.server, next.local = f.clock.now(), time.Now().Round(0) // no monotonic reading
	f.position.Store(&next)
	f.watch()
	return whole && !f.complete.Swap(true)
}

// resumeAt stores the resume token for a later stream. The bundle has everything before the
// token.
func (f *freshness) resumeAt(resume []byte) {
	next := *f.position.Load()
	next.resume = resume
	f.position.Store(&next)
}

// restore sets the position from a snapshot file. From then on the bundle is complete.
func (f *freshness) restore(at position) {
	f.clock.guess(at.server, at.local)
	f.position.Store(&at)
	f.complete.Store(true)
	f.watch()
}

// close makes the verifier refuse every later guarded call as BUNDLE_STALE, and stops the
// watchdog timer. close may be called again.
func (f *freshness) close() {
	f.closed.Store(true)
	f.watchdog.Stop()
}

// judging returns whether tokens can be verified by the trust bundle: the bundle is
// complete, the verifier is open, and under RefuseWhenStale the bundle is also fresh. If
// judging returns false, calls are refused as BUNDLE_STALE.
func (f *freshness) judging() bool {
	return f.complete.Load() && !f.closed.Load() && (f.limit.policy != RefuseWhenStale || !f.stale())
}

// age returns the age of the trust bundle: the time from position.asOf to the latest
// possible time of the server.
func (f *freshness) age() time.Duration {
	_, latest := f.clock.read()
	return f.ageAt(latest)
}

// ageAt returns the age at a moment of the server's time, in ns since 1970.
func (f *freshness) ageAt(latest int64) time.Duration {
	return max(0, time.Duration(latest-f.position.Load().asOf))
}

func (f *freshness) stale() bool { return f.age() > f.limit.after }

// watch logs a change of staleness, and sets the watchdog timer to the moment when the
// bundle gets stale if no heartbeat comes until then.
func (f *freshness) watch() {
	f.logStaleness()
	f.watchdog.Reset(max(0, f.limit.after-f.age()) + time.Millisecond)
	if f.closed.Load() { // close may have stopped the watchdog before Reset
		f.watchdog.Stop()
	}
}

// logStaleness logs when the bundle gets stale, and when the bundle is fresh again.
func (f *freshness) logStaleness() {
	switch stale := f.stale(); {
	case f.wasStale.Swap(stale) == stale:
	case stale && f.limit.policy == RefuseWhenStale:
		f.log.Warn("the trust bundle is stale: refusing every call until the server answers", "after", f.limit.after)
	case stale:
		f.log.Warn("the trust bundle is stale: continuing with the newest keys and revocations known", "after", f.limit.after)
	default:
		f.log.Info("the trust bundle is fresh again")
	}
}
