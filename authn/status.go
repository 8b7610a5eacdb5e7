package authn

import (
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// Status holds the state of a Verifier, for health checks and metrics.
type Status struct {
	// Ready: guarded calls can be admitted. The trust bundle is complete, and fresh enough
	// for the policy of WithMaxStaleness.
	Ready bool
	// Stale: the trust bundle is older than WithMaxStaleness allows.
	Stale bool
	// Staleness is the age of the trust bundle, counted as WithMaxStaleness explains; zero
	// without a bundle. A few seconds are ordinary. After a restart, the age of the
	// snapshot file counts.
	Staleness time.Duration
	// SnapshotError is the error of the last attempt to read or write the file of
	// WithSnapshotFile. SnapshotError is nil if that attempt succeeded, or without a file.
	SnapshotError error
	// Keys, EndedSessions and RaisedUsers count the entries of the trust bundle: the keys, the
	// sessions ended, and the users disabled or with changed rights, for as long as some
	// token concerned may live.
	Keys, EndedSessions, RaisedUsers int
	// CachedTokens and CacheBytes are the size of the cache; see WithCacheSize.
	CachedTokens, CacheBytes int
	// AcceptedCached and AcceptedChecked count the tokens accepted: those found in the cache,
	// and those accepted after a check of the signature. The token of an open stream counts
	// twice a second. AcceptedCached is zero without [WithMeterProvider], because the count
	// costs each call some nanoseconds.
	AcceptedCached, AcceptedChecked uint64
	// Checked counts the tokens parsed, with a check of the signature, because the cache
	// did not have them.
	Checked uint64
	// Refused counts, by reason, refused tokens and calls without a token.
	Refused map[watchwordv1.ErrorReason]uint64
	// Streams counts the streams of the trust bundle that the Verifier has opened, the first
	// included. A number that grows shows a server or a proxy that ends the streams.
	Streams uint64
	// ClockOffset tells by how much the server's token time, by which tokens expire, is ahead of
	// this machine's clock; zero without a bundle. The Verifier goes by the token time, so an
	// offset does no harm here. ClockSet counts how often the token time was set.
	ClockOffset time.Duration
	ClockSet    uint64
}

// Status returns the state of the Verifier now. Status waits for no network and no disk,
// and is cheap enough for every scrape of metrics.
func (v *Verifier) Status() Status {
	b := v.bundle
	s := Status{Ready: b.fresh.judging()}
	s.EndedSessions, s.RaisedUsers = b.revoked.sizes()
	if trust := b.trust.Load(); trust != nil {
		s.Keys = len(trust.keys)
	}
	if b.fresh.complete.Load() {
		s.Staleness, s.Stale = b.fresh.age(), b.fresh.stale()
		earliest, latest := b.fresh.clock.read()
		s.ClockOffset = time.Duration(earliest + (latest-earliest)/2 - time.Now().UnixNano())
	}
	if v.keeper != nil {
		s.SnapshotError = *v.keeper.problem.Load()
	}
	s.CachedTokens, s.CacheBytes = v.cache.size()
	s.Streams, s.ClockSet = b.streams.Load(), b.clockSets.Load()
	// A token that is being judged may be in one count and not yet in the other.
	refused := v.counters.foundRefused.Load()
	s.AcceptedCached = max(v.cache.found(), refused) - refused
	s.AcceptedChecked = v.counters.checkedAccepted.Load()
	s.Checked, s.Refused = v.counters.checked.Load(), map[watchwordv1.ErrorReason]uint64{}
	for reason := range v.counters.byReason {
		if n := v.counters.byReason[reason].Load(); n > 0 {
			s.Refused[watchwordv1.ErrorReason(reason)] = n
		}
	}
	return s
}

// counters count rare events, each of which takes microseconds. [cache.found] counts the
// tokens found in the cache, on the path of nearly every call.
type counters struct {
	checked         atomic.Uint64
	checkedAccepted atomic.Uint64
	foundRefused    atomic.Uint64 // tokens found in the cache and not accepted as they were
	byReason        [64]atomic.Uint64
}

// refused counts one more refused token or call, and returns the reason given.
func (c *counters) refused(reason watchwordv1.ErrorReason) watchwordv1.ErrorReason {
	c.byReason[int(reason)%len(c.byReason)].Add(1)
	return reason
}
