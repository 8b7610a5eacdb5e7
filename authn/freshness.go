package authn

import (
	"log/slog"
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// freshness holds the position of the trust bundle in the server's stream, the age of the
// bundle and the clock, and decides whether the bundle may be used to verify tokens. The age of
// the bundle is the time since the server read its database, by clocks that are never set.
//
// Every field is atomic or never changes, so no method takes a lock. The goroutine of the feed
// calls the methods that write: beat, resumeAt and restore. Any goroutine can call close and
// the methods that read.
type freshness struct {
	log      *slog.Logger
	limit    staleness
	clock    *serverClock
	position atomic.Pointer[position]
	complete atomic.Bool // true after the first bundle is complete; stays true
	closed   atomic.Bool // true after close: every guarded call is refused; stays true
	wasStale atomic.Bool // true if the latest line in the log about staleness said stale
	watchdog *time.Timer // fires when no heartbeat has come in time, and logs that the bundle is stale
}

// staleness holds the two values of [WithMaxStaleness]: the age from which a trust bundle is
// stale, and the policy for a stale bundle.
type staleness struct {
	after  time.Duration
	policy StalePolicy
}

// position tells which changes the trust bundle contains: every change up to the position, and
// perhaps later changes. A position never changes; a new position replaces the old position.
type position struct {
	resume []byte        // the resume token for the next stream
	asOf   time.Duration // the elapsed time (of clock.elapsed) up to which the bundle has every change
}

func newFreshness(log *slog.Logger, limit staleness) *freshness {
	f := &freshness{log: log, limit: limit, clock: newServerClock()}
	f.position.Store(new(position))
	f.watchdog = time.AfterFunc(limit.after, f.logStaleness)
	f.watchdog.Stop() // the watchdog starts with the first heartbeat
	return f
}

// beat stores the times of a heartbeat. whole says whether the stream has brought every message
// before the heartbeat. beat returns by how much the token time was set, and whether the
// heartbeat completes the first bundle.
//
// Errors: those of [serverClock.beat].
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

// resumeAt stores the resume token, by which a later stream continues. The bundle has every
// message before the resume token.
func (f *freshness) resumeAt(resume []byte) {
	next := *f.position.Load()
	next.resume = resume
	f.position.Store(&next)
}

// restore sets the position from a snapshot file, and marks the bundle as complete.
func (f *freshness) restore(at position) {
	f.position.Store(&at)
	f.complete.Store(true)
	f.watch()
}

// close makes the verifier refuse every later guarded call as BUNDLE_STALE, and stops the
// watchdog timer. A second close does nothing.
func (f *freshness) close() {
	f.closed.Store(true)
	f.watchdog.Stop()
}

// judging reports whether tokens can be verified by the trust bundle: the bundle is complete,
// the verifier is not closed, and under RefuseWhenStale the bundle is also fresh. If judging
// returns false, calls are refused as BUNDLE_STALE.
func (f *freshness) judging() bool {
	return f.complete.Load() && !f.closed.Load() && (f.limit.policy != RefuseWhenStale || !f.stale())
}

// age returns the age of the trust bundle: the time since position.asOf.
func (f *freshness) age() time.Duration {
	return max(0, f.clock.elapsed.Now()-f.position.Load().asOf)
}

func (f *freshness) stale() bool { return f.age() > f.limit.after }

// watch logs whether the bundle has become stale or fresh, and sets the watchdog timer to the
// moment from which the bundle is stale if no heartbeat comes before.
func (f *freshness) watch() {
	f.logStaleness()
	f.watchdog.Reset(max(0, f.limit.after-f.age()) + time.Millisecond)
	if f.closed.Load() { // close may have stopped the watchdog before Reset
		f.watchdog.Stop()
	}
}

// logStaleness logs when the bundle becomes stale, and when the bundle is fresh again.
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
