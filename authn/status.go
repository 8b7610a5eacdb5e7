package authn

import (
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// Status holds the state of a Verifier, for health checks and metrics.
type Status struct {
	// Ready is true if guarded calls can be admitted: the trust bundle is complete, and fresh
	// enough for the policy of WithMaxStaleness.
	Ready bool
	// Stale is true if the trust bundle is older than WithMaxStaleness allows.
	Stale bool
	// Staleness is the age of the trust bundle, as WithMaxStaleness explains the age; zero
	// without a bundle. An age of a few seconds is ordinary. After a restart, the age includes
	// the age of the snapshot file.
	Staleness time.Duration
	// SnapshotError is the error of the latest attempt to read or write the file of
	// WithSnapshotFile. SnapshotError is nil if the attempt succeeded, or without a file.
	SnapshotError error
	// Keys, EndedSessions and RaisedUsers are the numbers of entries of the trust bundle: the
	// keys, the sessions ended, and the users disabled or with changed rights. An entry stays
	// for as long as a token concerned may be valid.
	Keys, EndedSessions, RaisedUsers int
	// CachedTokens and CacheBytes are the number of tokens in the cache and the size of the
	// cache in bytes; see WithCacheSize.
	CachedTokens, CacheBytes int
	// AcceptedCached is the number of accepted tokens that were found in the cache, and
	// AcceptedChecked the number of tokens accepted after a check of the signature. The token
	// of a stream is counted when the stream begins. AcceptedCached is zero without
	// [WithMeterProvider], because the count costs each call some nanoseconds.
	AcceptedCached, AcceptedChecked uint64
	// Checked is the number of tokens that were parsed, with a check of the signature, because
	// the cache did not have the token.
	Checked uint64
	// Refused is, by reason, the number of refused tokens and of calls without a token.
	Refused map[watchwordv1.ErrorReason]uint64
	// Streams is the number of streams of the trust bundle that the Verifier has opened, the
	// first included. A number that grows shows that a server or a proxy ends the streams.
	Streams uint64
	// ClockOffset is the time by which the server's token time, by which tokens expire, is
	// ahead of this machine's clock; zero without a bundle. The Verifier uses the token time,
	// so an offset does no harm to the Verifier. ClockSet is the number of times that the token
	// time was set.
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
	// A token that a call is checking now may be in one of the two numbers below and not yet in
	// the other.
	refused := v.counters.foundRefused.Load()
	s.AcceptedCached = max(v.cache.found.sum(), refused) - refused
	s.AcceptedChecked = v.counters.checkedAccepted.Load()
	s.Checked, s.Refused = v.counters.checked.Load(), map[watchwordv1.ErrorReason]uint64{}
	for reason := range v.counters.byReason {
		if n := v.counters.byReason[reason].Load(); n > 0 {
			s.Refused[watchwordv1.ErrorReason(reason)] = n
		}
	}
	return s
}

// counters holds the numbers of rare events, each of which takes microseconds. [cache]
// counts the tokens found in the cache, since nearly every call finds its token in the cache.
type counters struct {
	checked         atomic.Uint64
	checkedAccepted atomic.Uint64
	foundRefused    atomic.Uint64 // the number of tokens that were found in the cache, and that verify has refused or checked again
	byReason        [64]atomic.Uint64
}

// refused adds one to the number of tokens and calls refused for a reason, and returns the
// reason.
func (c *counters) refused(reason watchwordv1.ErrorReason) watchwordv1.ErrorReason {
	c.byReason[int(reason)%len(c.byReason)].Add(1)
	return reason
}
