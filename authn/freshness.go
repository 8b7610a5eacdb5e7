package authn

import (
	"log/slog"
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// freshness holds the position of the trust bundle in the server's stream, the age of the
// bundle and the clock, and decides whether the bundle may be used to verify tokens. The age
// counts from when the server asked its database, by clocks that are never set.
//
// Every field is atomic or never changes, so no method takes a lock. One goroutine, the
// feed's, calls the methods that write: beat, resumeAt and restore. Any goroutine may call
// close and the methods that read.
type freshness struct {
	log      *slog.Logger
	limit    staleness
	clock    *serverClock
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
	resume []byte        // the resume token for the next stream
	asOf   time.Duration // the bundle has every change up to this time of clock.elapsed
}

func newFreshness(log *slog.Logger, limit staleness) *freshness {
	f := &freshness{log: log, limit: limit, clock: newServerClock()}
	f.position.Store(new(position))
	f.watchdog = time.AfterFunc(limit.after, f.logStaleness)
	f.watchdog.Stop() // until the first heartbeat
	return f
}

// beat stores the times of a heartbeat. whole says whether everything before the heartbeat
// has been received. beat returns by how much the token time was set, and whether the
// heartbeat completes the first bundle.
//
// Errors: as [serverClock.beat].
func (f *freshness) beat(beat *watchwordv1.Heartbeat, whole bool) (set time.Duration, first bool, err error) {
	set, since, err := f.clock.beat(beat.GetTimes())
	if err != nil {
		return 0, false, err
	}
	next := *f.position.Load()
	if whole {
		next.asOf = since(beat.GetAsOf().AsDuration())
		if f.complete.Load() {
			next.asOf = max(next.asOf, f.position.Load().asOf)
		}
	}
	f.position.Store(&next)
	f.watch()
	return set, whole && !f.complete.Swap(true), nil
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

// age returns the age of the trust bundle: the time since position.asOf.
func (f *freshness) age() time.Duration {
	return max(0, f.clock.elapsed.Now()-f.position.Load().asOf)
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
