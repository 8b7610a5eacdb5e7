package authn

import (
	"errors"
	"log/slog"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// trust holds one trust state: the issuer, the issuer's keys, and the limits of tokens.
//
// A trust never changes after [newTrust]. The bundle holds the newest trust behind an
// atomic pointer and replaces the pointer, so a reader takes no lock and sees one trust
// state whole.
type trust struct {
	said        *watchwordv1.TrustState // the message as received, with the withdrawn keys and the not_before of earlier trust states; the snapshot file contains the message
	issuer      string
	keys        map[string]*trustedKey // the keys, by kid
	withdrawn   map[string]bool        // the kids of the keys that this or any earlier trust state has withdrawn
	maxLifetime time.Duration          // the time from iat to exp of the longest-lived token
	margin      time.Duration          // for how long a revocation is kept after the expiry of its tokens
	leeway      time.Duration          // the leeway of WithLeeway; at most margin

	// delegatedNotBefore makes the verifier refuse delegated tokens with an earlier iat: the
	// latest moment that this or any earlier trust state has named.
	delegatedNotBefore time.Time
}

// trustedKey holds a public key and the end of its use. While the server names a key in every
// trust state, every trust has the same public object for the key. So [bundle.judge] compares
// two pointers to see whether the newest trust still has the key that checked a token's
// signature.
type trustedKey struct {
	jwk    *watchwordv1.JsonWebKey
	public *token.PublicKey
	until  int64 // the end of use by the server's time, in ns since 1970; math.MaxInt64: no end is known
}

// newTrust reads a trust state. before is the trust that the new trust replaces, nil for the
// first; if state is nil, newTrust returns before. A key of an unknown kind is logged and left
// out: a newer server may have such a key. A key that any trust state has named as withdrawn is
// left out too: even if the database of the server gets an old key set, verifiers do not trust
// the leaked key again. For the same reason newTrust keeps the latest delegated_not_before of
// all trust states.
//
// Errors: an error if state lacks the issuer or the longest lifetime of a token.
func newTrust(state *watchwordv1.TrustState, before *trust, leeway time.Duration, log *slog.Logger) (*trust, error) {
	if state == nil {
		return before, nil
	}
	next := &trust{
		said:        state,
		issuer:      state.GetIssuer(),
		keys:        make(map[string]*trustedKey, len(state.GetKeys())),
		maxLifetime: state.GetMaxTokenLifetime().AsDuration(),
		margin:      max(0, state.GetMargin().AsDuration()),
	}
	next.leeway = min(leeway, next.margin)
	if next.issuer == "" || next.maxLifetime <= 0 {
		return nil, errors.New("the trust state lacks the issuer or the longest lifetime of a token")
	}
	if before == nil {
		before = &trust{issuer: next.issuer, leeway: leeway}
	}
	next.keepWithdrawn(before)
	next.keepNotBefore(before)
	for _, k := range state.GetKeys() {
		if kid := k.GetKey().GetKid(); next.withdrawn[kid] {
			if !slices.Contains(state.GetWithdrawnKids(), kid) {
				log.Error("the server names a key that was withdrawn before, and the key stays refused: "+
					"run `watchword datastore restored` on the server's database", "kid", kid)
			}
			continue
		}
		key, err := before.readKey(k)
		if err != nil {
			log.Warn("a key of the trust bundle cannot be read", "kid", k.GetKey().GetKid(), "error", err)
			continue
		}
		next.keys[key.public.KID()] = key
	}
	if before.issuer != next.issuer {
		log.Warn("the trust bundle is of another issuer than before", "issuer", next.issuer, "before", before.issuer)
	}
	if next.leeway < leeway && next.leeway != before.leeway {
		log.Warn("the leeway is cut down to the server's margin", "leeway", leeway, "margin", next.margin)
	}
	return next, nil
}

// maxWithdrawn is the largest number of ids of withdrawn keys in memory and in the snapshot
// file.
const maxWithdrawn = 1000

// keepWithdrawn adds the withdrawn keys of the earlier trust to the keys that the trust state
// names as withdrawn, and to the message that the snapshot file contains. Of more than
// maxWithdrawn keys, keepWithdrawn keeps those that the trust state names, and then the latest.
func (t *trust) keepWithdrawn(before *trust) {
	named := t.said.GetWithdrawnKids()
	t.withdrawn = make(map[string]bool, len(named))
	for _, kid := range named {
		t.withdrawn[kid] = true
	}
	kids := slices.DeleteFunc(slices.Clone(before.said.GetWithdrawnKids()), func(kid string) bool { return t.withdrawn[kid] })
	kids = append(kids, named...)
	kids = kids[max(0, len(kids)-maxWithdrawn):]
	if len(kids) != len(named) {
		t.said = proto.CloneOf(t.said)
		t.said.WithdrawnKids = kids
		clear(t.withdrawn)
		for _, kid := range kids {
			t.withdrawn[kid] = true
		}
	}
}

// keepNotBefore takes the later delegated_not_before of the trust state and of the earlier
// trust, and writes the later time into the message that the snapshot file contains.
func (t *trust) keepNotBefore(before *trust) {
	if said := t.said.GetDelegatedNotBefore(); said != nil {
		t.delegatedNotBefore = said.AsTime()
	}
	if before.delegatedNotBefore.After(t.delegatedNotBefore) {
		t.delegatedNotBefore = before.delegatedNotBefore
		t.said = proto.CloneOf(t.said)
		t.said.DelegatedNotBefore = timestamppb.New(t.delegatedNotBefore)
	}
}

// readKey reads a key of the trust state that replaces the trust state of t. For a key that t
// has already, readKey returns the same public object.
func (t *trust) readKey(k *watchwordv1.VerificationKey) (*trustedKey, error) {
	key := &trustedKey{jwk: k.GetKey(), until: math.MaxInt64}
	if end := k.GetVerifiesUntil(); end != nil {
		key.until = nanosOf(end.AsTime())
	}
	if known := t.keys[k.GetKey().GetKid()]; known != nil && proto.Equal(known.jwk, key.jwk) {
		key.public = known.public
		return key, nil
	}
	var err error
	key.public, err = token.FromJWK(key.jwk)
	return key, err
}

// keepUntil returns until when a revocation is kept, in Unix seconds: the margin after the
// expiry of the last token concerned, because with a leeway tokens are valid after their
// expiry. If the server names no time (until is nil), keepUntil assumes that the last token was
// minted now, with the longest lifetime.
func (t *trust) keepUntil(until *timestamppb.Timestamp, now time.Time) int64 {
	end := now.Add(t.maxLifetime)
	if until != nil {
		end = until.AsTime()
	}
	return end.Add(t.margin).Unix() + 1
}

// remembered returns for how long the verifier keeps a server clock in its estimate after it
// has last heard the clock: for as long as the verifier keeps a revocation.
func (t *trust) remembered() time.Duration { return t.maxLifetime + 2*t.margin }

// expiryBefore inverts [trust.keepUntil]: expiryBefore returns the value of until for which
// keepUntil returns keep.
func (t *trust) expiryBefore(keep int64) *timestamppb.Timestamp {
	return timestamppb.New(time.Unix(keep-1, 0).Add(-t.margin))
}

// nanosOf returns a time in ns since 1970. For a time too late for an int64, nanosOf returns
// math.MaxInt64.
func nanosOf(t time.Time) int64 {
	if t.Unix() >= math.MaxInt64/int64(time.Second) {
		return math.MaxInt64
	}
	return t.UnixNano()
}
