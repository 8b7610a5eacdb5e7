package authn

import (
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// Status is how a Verifier stands, for health checks and metrics.
type Status struct {
	// Ready: there is a bundle to judge by, and it is not so stale that calls are
	// refused. Calls are judged.
	Ready bool
	// Stale: the bundle has not been brought up to date for longer than
	// WithMaxStaleness says.
	Stale bool
	// Staleness is how long ago the server knew what this Verifier knows; zero
	// without a bundle. What a snapshot file has is as old as its server's word. Up to
	// a few seconds are ordinary.
	Staleness time.Duration
	// SnapshotError is why the file of WithSnapshotFile could not be read at the
	// start, or could not be written the last time. nil: it is well, or there is none.
	SnapshotError error
	// Keys, EndedSessions and RaisedUsers are how many the bundle holds.
	Keys, EndedSessions, RaisedUsers int
	// CachedTokens and CacheBytes are what the cache holds; see WithCacheSize.
	CachedTokens, CacheBytes int
	// Checked counts the tokens that were parsed and whose signature was checked,
	// because the cache did not have them.
	Checked uint64
	// Refused counts refused tokens by reason.
	Refused map[watchwordv1.ErrorReason]uint64
}

// Status says how the Verifier stands now. It is cheap enough for every scrape.
func (v *Verifier) Status() Status {
	b := v.bundle
	b.mu.RLock()
	s := Status{Ready: b.judging(), EndedSessions: b.ended.len(), RaisedUsers: b.raised.len()}
	if b.trust != nil {
		s.Keys = len(b.trust.keys)
	}
	complete := b.complete
	b.mu.RUnlock()
	if complete {
		s.Staleness, s.Stale = b.age(), b.isStale()
	}
	if v.keeper != nil {
		s.SnapshotError = v.keeper.lastError()
	}
	s.CachedTokens, s.CacheBytes = v.cache.size()
	s.Checked, s.Refused = v.counters.checked.Load(), map[watchwordv1.ErrorReason]uint64{}
	for reason := range v.counters.byReason {
		if n := v.counters.byReason[reason].Load(); n > 0 {
			s.Refused[watchwordv1.ErrorReason(reason)] = n
		}
	}
	return s
}

// counters count what is rare. Calls that pass are for the metrics of gRPC.
type counters struct {
	checked  atomic.Uint64
	byReason [64]atomic.Uint64
}

// refused counts a refusal, and returns its reason.
func (c *counters) refused(reason watchwordv1.ErrorReason) watchwordv1.ErrorReason {
	c.byReason[int(reason)%len(c.byReason)].Add(1)
	return reason
}
