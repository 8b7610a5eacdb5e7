package authn

import "time"

// staleness is what is done about a bundle that is not kept up to date.
type staleness struct {
	after  time.Duration
	refuse bool
}

// watchStale looks whether the bundle is stale, and again when it will be, if nothing
// is heard until then.
func (b *bundle) watchStale() {
	b.lookStale()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.watchdog.Reset(max(0, b.stale.after-b.age()) + time.Millisecond)
	}
}

// lookStale logs when the bundle goes stale, and when it is no longer.
func (b *bundle) lookStale() {
	switch stale := b.isStale(); {
	case b.wasStale.Swap(stale) == stale:
	case stale && b.stale.refuse:
		b.log.Warn("the trust bundle is stale: every call is refused until it is heard of again", "after", b.stale.after)
	case stale:
		b.log.Warn("the trust bundle is stale: going on with the keys and revocations that are known", "after", b.stale.after)
	default:
		b.log.Info("the trust bundle is no longer stale")
	}
}

func (b *bundle) isStale() bool {
	_, latest := b.clock.read()
	return b.staleAt(latest)
}

// staleAt says whether the bundle is stale at a moment of the server's time.
func (b *bundle) staleAt(now int64) bool { return now-b.asOf.Load() > int64(b.stale.after) }

// age is how long ago the server knew what is known here.
func (b *bundle) age() time.Duration {
	_, latest := b.clock.read()
	return max(0, time.Duration(latest-b.asOf.Load()))
}
