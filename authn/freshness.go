package authn

import (
	"log/slog"
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// freshness says how far the bundle has come, how old the bundle is by the server's
// clock, and whether the bundle may be judged by.
//
// Every field is atomic or never changes, so no method takes a lock. One goroutine, the
// feed's, calls the methods that write: beat, resumeAt and restore. Any goroutine may
// read, and close.
type freshness struct {
	log      *slog.Logger
	limit    staleness
	clock    *clock
	position atomic.Pointer[position]
	complete atomic.Bool // a first bundle has come whole; never false again
	closed   atomic.Bool // nothing is judged any more; never false again
	wasStale atomic.Bool // as last logged
	watchdog *time.Timer // looks for staleness when no heartbeat comes
}

// staleness is the age from which a bundle is stale, and what follows.
type staleness struct {
	after  time.Duration
	policy StalePolicy
}

// position says how far the bundle has come. A position never changes, a new one
// replaces it. The bundle may know more than its position says, and never less.
type position struct {
	resume []byte    // where a later stream goes on
	asOf   int64     // everything up to this server time is known here, ns since 1970
	server time.Time // the server's time at the newest heartbeat, as the clock knew it
	local  time.Time // this machine's time then, as the machine's clock was set
}

func newFreshness(log *slog.Logger, limit staleness) *freshness {
	f := &freshness{log: log, limit: limit, clock: newClock()}
	f.position.Store(new(position))
	f.watchdog = time.AfterFunc(limit.after, f.logStaleness)
	f.watchdog.Stop() // until the first heartbeat
	return f
}

// beat takes in a heartbeat. whole says whether everything before the heartbeat has
// come. beat returns whether the heartbeat completes the first bundle.
func (f *freshness) beat(beat *watchwordv1.Heartbeat, whole bool) (first bool) {
	server := beat.GetServerTime().AsTime()
	next := *f.position.Load()
	// Where a clock that was ahead is set right, the bundle must not become younger.
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

// resumeAt takes in where a later stream goes on. Everything before is known by now.
func (f *freshness) resumeAt(resume []byte) {
	next := *f.position.Load()
	next.resume = resume
	f.position.Store(&next)
}

// restore takes in the position of a snapshot file. The bundle is complete from then on.
func (f *freshness) restore(at position) {
	f.clock.guess(at.server, at.local)
	f.position.Store(&at)
	f.complete.Store(true)
	f.watch()
}

// close ends all judging, and the watchdog. It may be called again.
func (f *freshness) close() {
	f.closed.Store(true)
	f.watchdog.Stop()
}

// judging returns whether there is a bundle to judge by.
func (f *freshness) judging() bool {
	return f.complete.Load() && !f.closed.Load() && (f.limit.policy != RefuseWhenStale || !f.stale())
}

// age returns for how long the bundle has not been brought up to date.
func (f *freshness) age() time.Duration {
	_, latest := f.clock.read()
	return f.ageAt(latest)
}

// ageAt is age at a moment of the server's time, in ns since 1970.
func (f *freshness) ageAt(latest int64) time.Duration {
	return max(0, time.Duration(latest-f.position.Load().asOf))
}

func (f *freshness) stale() bool { return f.age() > f.limit.after }

// watch looks for staleness now, and again when the bundle gets stale, if no heartbeat
// comes until then.
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
		f.log.Warn("the trust bundle is stale: going on with the newest keys and revocations known", "after", f.limit.after)
	default:
		f.log.Info("the trust bundle is fresh again")
	}
}
