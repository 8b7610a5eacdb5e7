package authn

import (
	"log/slog"
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// A bundle holds the trust bundle: what the server has sent to a verifier, in three parts. The
// comment of the type of each part says how the part is locked:
//
//   - trust, the keys: immutable behind an atomic pointer. A new trust state replaces the
//     old one whole, so a withdrawn key is gone at once.
//   - revoked, the [revocations]: behind a lock of their own. A message only adds
//     revocations.
//   - fresh, the [freshness]: atomic fields.
//
// The goroutine of the feed applies messages. Any number of goroutines call [bundle.judge],
// which decides whether a token is accepted. Such a decision is called a judgement.
//
// judge reads the parts one after the other, while the feed may be changing them. Three
// rules make every mixture of old and new parts harmless:
//
//  1. [bundle.learn] stores the revocations of a message before the message's trust state,
//     and judge reads the trust state before the revocations. So judge knows at least the
//     revocations up to the message of the trust state; later revocations can only refuse
//     more.
//  2. learn raises the epoch after revocations and trust state are stored, and judge reads the
//     epoch before judge reads either.
//     A judgement by old parts therefore carries an old epoch, even if the judgement is
//     stored late: once learn has returned, [bundle.stillAccepted] ignores every judgement
//     from before the message.
//  3. judge reads the clock last. [revocations.prune] deletes a revocation only when the revoked
//     tokens have expired by the times of all servers that the verifier has lately heard. So if
//     judge finds no revocation because prune has deleted the revocation, judge finds the token
//     expired.
//
// So the answer of judge is one of the answers possible between the beginning and the end of
// the call, and a call that begins after learn has returned uses the message.
type bundle struct {
	log     *slog.Logger
	leeway  time.Duration         // the leeway given to WithLeeway; trust.leeway, which may be shorter, is in use
	epoch   atomic.Uint64         // the number of messages that learn has stored, plus the number of times that the token time was set
	trust   atomic.Pointer[trust] // nil before the first trust state
	revoked revocations
	fresh   *freshness

	streams   atomic.Uint64 // the number of streams opened, for Status
	clockSets atomic.Uint64 // how often the server's token time was set, for Status

	// keysChanged gets an element when the trust state changes and when the bundle is
	// complete for the first time. The keeper of the snapshot file takes the element and
	// writes the file.
	keysChanged chan struct{}
}

// authentic holds a token with a good form and a good signature. [bundle.judge] decides whether
// the token is accepted.
type authentic struct {
	principal Principal
	key       *token.PublicKey
	accepted  atomic.Pointer[judgement] // the latest judgement that has accepted the token; nil: no judgement has
	own       bool                      // true if the token is for the audience of WithAudience
}

// judgement remembers that a token was accepted, and for how long the judgement holds: while
// the bundle's epoch equals the field epoch, and before the token time in the field until, in
// ns since 1970. The audience of the token is checked at every call.
type judgement struct {
	epoch uint64
	until int64
}

func newBundle(log *slog.Logger, leeway time.Duration, limit staleness) *bundle {
	return &bundle{
		log: log, leeway: leeway, fresh: newFreshness(log, limit),
		revoked:     revocations{ended: newIDMap[int64](), raised: newIDMap[raised]()},
		keysChanged: make(chan struct{}, 1),
	}
}

// authenticate checks a token's form, and its signature by a key of the trust state. The trust
// state may change during the check, so judge looks up the key again.
func (b *bundle) authenticate(raw string) (*authentic, watchwordv1.ErrorReason) {
	if !b.fresh.judging() {
		return nil, bundleStale
	}
	trust := b.trust.Load()
	var used *token.PublicKey
	claims, err := token.Parse(raw, func(kid string) *token.PublicKey {
		if key := trust.keys[kid]; key != nil {
			used = key.public
		}
		return used
	})
	if err != nil || used == nil {
		return nil, tokenInvalid
	}
	return &authentic{principal: Principal{claims: *claims}, key: used}, accepted
}

// stillAccepted reports whether the last judgement of a token still holds. Nearly every
// call needs stillAccepted alone, so stillAccepted takes no lock and allocates nothing.
func (b *bundle) stillAccepted(t *authentic) bool {
	last := t.accepted.Load()
	if last == nil || last.epoch != b.epoch.Load() || b.fresh.closed.Load() {
		return false
	}
	now, token := b.fresh.clock.elapsed.Now(), b.fresh.clock.token.Load()
	return int64(token.Latest(now)) < last.until &&
		(b.fresh.limit.policy != RefuseWhenStale || now-b.fresh.position.Load().asOf <= b.fresh.limit.after)
}

// judge decides about an authentic token, and returns the reason to refuse the token, or
// accepted. forAudience says whether the token is for the wanted audience. The order of the
// checks is part of the contract; [bundle] explains the order of the reads.
func (b *bundle) judge(t *authentic, forAudience bool) watchwordv1.ErrorReason {
	epoch := b.epoch.Load()
	if !b.fresh.judging() {
		return bundleStale
	}
	c := &t.principal.claims
	trust := b.trust.Load()
	revoked := b.revoked.of(c)
	earliest, latest := b.fresh.clock.read()
	key := trust.keys[t.key.KID()]
	expires := nanosOf(c.ExpiresAt.Add(trust.leeway))
	switch {
	case key == nil, key.public != t.key, latest >= key.until, c.Issuer != trust.issuer:
		return tokenInvalid
	// A revocation is kept for as long as the longest-lived token of the issuer. A token with a
	// life longer than maxLifetime would be accepted again after the revocation was deleted.
	case c.ExpiresAt.Sub(c.IssuedAt) > trust.maxLifetime:
		return tokenInvalid
	case len(c.Actors) > 0 && c.IssuedAt.Before(trust.delegatedNotBefore):
		return tokenInvalid
	case !forAudience:
		return audienceMismatch
	// Only a forger, or a server with a wrong clock, mints a token with an iat further in the
	// future than the margin. Such a token would expire after every revocation of today was
	// deleted.
	case nanosOf(c.IssuedAt) > earliest && nanosOf(c.IssuedAt)-earliest > trust.margin.Nanoseconds():
		return tokenInvalid
	case latest >= expires:
		return tokenExpired
	case revoked != accepted:
		return revoked
	}
	t.accepted.Store(&judgement{epoch: epoch, until: min(expires, key.until)})
	return accepted
}
