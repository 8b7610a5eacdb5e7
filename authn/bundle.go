package authn

import (
	"log/slog"
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// A bundle is everything a verifier knows, in three parts. Each part has one discipline
// of locking, stated at its type:
//
//   - trust, the keys: immutable behind an atomic pointer. A new trust state replaces
//     the old one whole, so a withdrawn key is gone at once.
//   - revoked, the [revocations]: behind a lock of their own. Revocations only add up.
//   - fresh, the [freshness]: atomic fields.
//
// One goroutine, the feed's, applies messages. Any number of goroutines judge.
//
// A judgement reads the parts one after the other, while the feed may be changing them.
// Three rules make every mixture harmless:
//
//  1. learn stores the revocations of a message before the message's trust state, and
//     judge reads in the opposite order. So a judgement by a trust state knows at least
//     the revocations up to the same message; later revocations can only refuse more.
//  2. learn raises the epoch after both are stored, and judge reads the epoch before
//     both. A judgement of old knowledge therefore carries an old epoch, however late
//     it is remembered: once learn has returned, no remembered judgement from before
//     the message counts.
//  3. judge reads the clock last. An entry forgotten before the look-up concerns only
//     tokens already expired then, and judge finds the token expired.
//
// So the answer is one of the answers possible between the beginning and the end of the
// call, and a call that begins after learn has returned judges by the message.
type bundle struct {
	log     *slog.Logger
	leeway  time.Duration         // as WithLeeway asks; see trust.leeway
	epoch   atomic.Uint64         // counts the messages learned
	trust   atomic.Pointer[trust] // nil before the first
	revoked revocations
	fresh   *freshness

	// keysChanged holds an element from a change of the trust state, or the first
	// complete bundle, until the keeper of the snapshot file takes the element.
	keysChanged chan struct{}
}

// authentic is a token with a good form and signature. Only [bundle.judge] says whether
// the token is accepted.
type authentic struct {
	principal *Principal
	key       *token.PublicKey
	accepted  *atomic.Pointer[judgement] // the last one; nil: none
	own       bool                       // the token is for the verifier's own audience
}

// judgement says for how long an accepted token stays accepted: while the bundle's epoch
// is epoch, and before the server's time until, in ns since 1970. The audience is no
// part of a judgement.
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

// authenticate checks a token's form, and its signature by a key of the trust state. The
// trust state may change during the check, so judge asks for the key again.
func (b *bundle) authenticate(raw string) (authentic, watchwordv1.ErrorReason) {
	if !b.fresh.judging() {
		return authentic{}, bundleStale
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
		return authentic{}, tokenInvalid
	}
	return authentic{principal: &Principal{claims: *claims}, key: used, accepted: new(atomic.Pointer[judgement])}, accepted
}

// stillAccepted returns whether the last judgement of a token holds. It is the path of
// nearly every call: no lock and no allocation.
func (b *bundle) stillAccepted(t *authentic) bool {
	last := t.accepted.Load()
	if last == nil || last.epoch != b.epoch.Load() || b.fresh.closed.Load() {
		return false
	}
	now, latest := b.fresh.clock.read()
	return now < last.until && (b.fresh.limit.policy != RefuseWhenStale || b.fresh.ageAt(latest) <= b.fresh.limit.after)
}

// judge returns the reason to refuse an authentic token, or accepted. forAudience says
// whether the token is for the audience asked for. The order of the questions is part of
// the contract; the order of the reads is explained at [bundle].
func (b *bundle) judge(t *authentic, forAudience bool) watchwordv1.ErrorReason {
	epoch := b.epoch.Load()
	if !b.fresh.judging() {
		return bundleStale
	}
	c := &t.principal.claims
	trust := b.trust.Load()
	ended, user := b.revoked.of(c.SessionID, c.Subject)
	now, _ := b.fresh.clock.read()
	key := trust.keys[t.key.KID()]
	expires := nanosOf(c.ExpiresAt.Add(trust.leeway))
	switch {
	case key == nil, key.public != t.key, now >= key.until, c.Issuer != trust.issuer:
		return tokenInvalid
	// A revocation is kept for as long as the issuer's longest token lives, so a token
	// with a longer life would outlive its revocation.
	case c.ExpiresAt.Sub(c.IssuedAt) > trust.maxLifetime:
		return tokenInvalid
	case !forAudience:
		return audienceMismatch
	case now >= expires:
		return tokenExpired
	case ended || c.Version < user.revokedBelow:
		return tokenRevoked
	case c.Version < user.staleBelow:
		return tokenStale
	}
	t.accepted.Store(&judgement{epoch: epoch, until: min(expires, key.until)})
	return accepted
}
