package authn

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// A bundle is what a verifier knows: whom to trust, and what has been revoked.
//
// The two age differently. The trust state is replaced whole as soon as a new
// one comes, so a withdrawn key is gone at once. Revocations only ever add up:
// a server that restarted from a backup may have forgotten one, and the token
// that it concerns lives on all the same. An entry goes when the last token that
// it can concern has expired.
//
// One goroutine writes, the feed's, and it may therefore read without the lock.
// Any number judge. A judgement takes the lock once, and so sees the keys, the
// revocations and the clock of one moment.
type bundle struct {
	log    *slog.Logger
	leeway time.Duration // as asked for

	mu       sync.RWMutex
	complete bool // a first bundle has come whole; never false again
	closed   bool // judges nothing any more
	clock    clock
	trust    *trust               // nil before the first; never changed, only replaced
	ended    map[string]time.Time // ended session → keep until
	raised   map[string]raised    // user → the versions below which tokens are out

	nextPrune time.Time // the feed's own
}

// trust is one trust state.
type trust struct {
	issuer      string
	keys        map[string]*trustedKey // kid → key
	maxLifetime time.Duration
	margin      time.Duration
}

// trustedKey is a key, and how long it counts. The public key is the same object
// for as long as the server goes on naming it, so a token that was checked with
// it under one trust state can be judged under a later one.
type trustedKey struct {
	jwk           *watchwordv1.JsonWebKey
	public        *token.PublicKey
	verifiesUntil time.Time // zero: no end is known
}

// raised is what is known of a user. A version never falls, so of two bounds the
// higher one counts.
type raised struct {
	revokedBelow int64
	staleBelow   int64
	keep         time.Time
}

// authentic is a token whose form and signature are good, and nothing more: not
// yet one to believe.
type authentic struct {
	principal *Principal
	key       *token.PublicKey
}

func newBundle(log *slog.Logger, leeway time.Duration) *bundle {
	return &bundle{
		log:    log,
		leeway: leeway,
		clock:  newClock(),
		ended:  make(map[string]time.Time),
		raised: make(map[string]raised),
	}
}

// authenticate checks a token's form and its signature by a key that is trusted
// now. It holds no lock while it computes, so judge asks for the key again.
func (b *bundle) authenticate(raw string) (authentic, watchwordv1.ErrorReason) {
	b.mu.RLock()
	judging, trust := b.judging(), b.trust
	b.mu.RUnlock()
	if !judging {
		return authentic{}, bundleStale
	}
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
	return authentic{principal: &Principal{claims: *claims}, key: used}, accepted
}

// judge says what is wrong with an authentic token at this moment, or accepted.
// The order of its questions is part of the contract.
func (b *bundle) judge(t authentic, want audience) watchwordv1.ErrorReason {
	c := &t.principal.claims
	b.mu.RLock()
	defer b.mu.RUnlock()
	if !b.judging() {
		return bundleStale
	}
	now := b.clock.now()
	key := b.trust.keys[t.key.KID()]
	user := b.raised[c.Subject]
	_, ended := b.ended[c.SessionID]
	switch {
	case key == nil || key.public != t.key || key.expired(now):
		return tokenInvalid
	case c.Issuer != b.trust.issuer:
		return tokenInvalid
	// Revocations are kept for as long as the issuer's longest token lives. One
	// that lives longer would outlive them.
	case c.ExpiresAt.Sub(c.IssuedAt) > b.trust.maxLifetime:
		return tokenInvalid
	case !want.accepts(c.Audience):
		return audienceMismatch
	case !now.Before(c.ExpiresAt.Add(min(b.leeway, b.trust.margin))):
		return tokenExpired
	case ended || c.Version < user.revokedBelow:
		return tokenRevoked
	case c.Version < user.staleBelow:
		return tokenStale
	}
	return accepted
}

// judging says whether there is a bundle to judge by. Needs the lock.
func (b *bundle) judging() bool { return b.complete && !b.closed }

func (k *trustedKey) expired(now time.Time) bool {
	return !k.verifiesUntil.IsZero() && now.After(k.verifiesUntil)
}

// close makes every later judgement a refusal.
func (b *bundle) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}

// stage is how far a stream has come.
type stage int

const (
	opened   stage = iota // nothing has come yet
	trusting              // the trust state has come
	told                  // the snapshot has come whole
	current               // and the heartbeat after it: the bundle is complete
)

// apply takes in one message of a stream at the stage given, and returns the
// stage after it. An error means that the server doesn't keep to the protocol;
// nothing that was known before is lost by it.
func (b *bundle) apply(msg *watchwordv1.WatchBundleResponse, at stage) (stage, error) {
	switch m := msg.GetMessage().(type) {
	case *watchwordv1.WatchBundleResponse_SnapshotChunk:
		chunk := m.SnapshotChunk
		if at == opened && chunk.GetTrustState() == nil {
			return at, errors.New("the snapshot does not begin with a trust state")
		}
		if err := b.learn(chunk); err != nil {
			return at, err
		}
		if chunk.GetLast() {
			return max(at, told), nil
		}
		return max(at, trusting), nil
	case *watchwordv1.WatchBundleResponse_Change:
		if at == opened {
			return at, errors.New("a change came before the trust state")
		}
		return at, b.learn(m.Change)
	case *watchwordv1.WatchBundleResponse_Heartbeat:
		if err := m.Heartbeat.GetServerTime().CheckValid(); err != nil {
			return at, fmt.Errorf("a heartbeat without the server's time: %w", err)
		}
		b.beat(m.Heartbeat.GetServerTime().AsTime(), at >= told)
		if at == told {
			at = current
		}
	}
	// A kind of message that a newer server may send is no reason to stop.
	return at, nil
}

// news is what a snapshot chunk and a change have in common.
type news interface {
	GetTrustState() *watchwordv1.TrustState
	GetEndedSessions() []*watchwordv1.EndedSession
	GetRaisedVersions() []*watchwordv1.RaisedVersion
}

// learn takes in what a message says, all of it in one step.
func (b *bundle) learn(n news) error {
	next := b.trust
	if state := n.GetTrustState(); state != nil {
		read, err := b.readTrust(state)
		if err != nil {
			return err
		}
		next = read
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trust = next
	for _, s := range n.GetEndedSessions() {
		b.ended[s.GetSessionId()] = later(b.ended[s.GetSessionId()], b.keep(s.GetUntil()))
	}
	for _, v := range n.GetRaisedVersions() {
		user := b.raised[v.GetUserId()]
		if v.GetRevoked() {
			user.revokedBelow = max(user.revokedBelow, v.GetVersion())
		} else {
			user.staleBelow = max(user.staleBelow, v.GetVersion())
		}
		user.keep = later(user.keep, b.keep(v.GetUntil()))
		b.raised[v.GetUserId()] = user
	}
	return nil
}

// keep is how long a revocation is remembered: for the margin past its time,
// because a leeway lets its tokens live past theirs. Needs the trust state.
func (b *bundle) keep(until *timestamppb.Timestamp) time.Time {
	if until == nil {
		// Not said. No token that exists lives longer than this.
		return b.clock.now().Add(b.trust.maxLifetime + b.trust.margin)
	}
	return until.AsTime().Add(b.trust.margin)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// readTrust checks a trust state. A key that cannot be read is left out, since a
// newer server may have one of a kind that isn't known here.
func (b *bundle) readTrust(state *watchwordv1.TrustState) (*trust, error) {
	next := &trust{
		issuer:      state.GetIssuer(),
		keys:        make(map[string]*trustedKey, len(state.GetKeys())),
		maxLifetime: state.GetMaxTokenLifetime().AsDuration(),
		margin:      max(0, state.GetMargin().AsDuration()),
	}
	if next.issuer == "" || next.maxLifetime <= 0 {
		return nil, errors.New("the trust state lacks the issuer or the longest lifetime of a token")
	}
	for _, k := range state.GetKeys() {
		key, err := b.readKey(k)
		if err != nil {
			b.log.Warn("a key of the trust bundle cannot be read", "kid", k.GetKey().GetKid(), "error", err)
			continue
		}
		next.keys[key.public.KID()] = key
	}
	if b.leeway > next.margin && (b.trust == nil || b.trust.margin != next.margin) {
		b.log.Warn("the leeway is cut down to the server's margin", "leeway", b.leeway, "margin", next.margin)
	}
	return next, nil
}

func (b *bundle) readKey(k *watchwordv1.VerificationKey) (*trustedKey, error) {
	key := &trustedKey{jwk: k.GetKey()}
	if end := k.GetVerifiesUntil(); end != nil {
		key.verifiesUntil = end.AsTime()
	}
	if b.trust != nil {
		if known := b.trust.keys[k.GetKey().GetKid()]; known != nil && proto.Equal(known.jwk, key.jwk) {
			key.public = known.public
			return key, nil
		}
	}
	var err error
	key.public, err = token.FromJWK(key.jwk)
	return key, err
}

// beat takes in a heartbeat. complete says that it ends a bundle.
func (b *bundle) beat(server time.Time, complete bool) {
	b.mu.Lock()
	b.clock.heard(server)
	b.complete = b.complete || complete
	now := b.clock.now()
	b.mu.Unlock()
	b.prune(now)
}

const (
	// pruneEvery is rare enough to cost nothing, and often enough: an entry
	// lives for minutes at least.
	pruneEvery = time.Minute
	// pruneBatch entries are deleted under one lock, which takes some tens of
	// microseconds. Judgements get in between.
	pruneBatch = 256
)

// prune forgets what can concern no token any more. Searching needs no lock,
// since nobody else writes.
func (b *bundle) prune(now time.Time) {
	if now.Before(b.nextPrune) {
		return
	}
	b.nextPrune = now.Add(pruneEvery)
	forget(&b.mu, b.ended, func(keep time.Time) bool { return now.After(keep) })
	forget(&b.mu, b.raised, func(r raised) bool { return now.After(r.keep) })
}

// forget deletes from m what is over.
func forget[V any](mu sync.Locker, m map[string]V, over func(V) bool) {
	var batch []string
	flush := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, name := range batch {
			delete(m, name)
		}
		batch = batch[:0]
	}
	for name, v := range m {
		if !over(v) {
			continue
		}
		if batch = append(batch, name); len(batch) == pruneBatch {
			flush() // deleting while ranging is fine: this goroutine does both
		}
	}
	flush()
}
