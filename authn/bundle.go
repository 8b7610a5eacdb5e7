package authn

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
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
// Any number judge. A judgement takes the lock once, and so sees the keys and the
// revocations of one moment. It holds until the epoch passes, which every change
// of either brings about, or the moment that it names: until then there is
// nothing to look up.
type bundle struct {
	log    *slog.Logger
	leeway time.Duration // as asked for
	stale  staleness
	clock  *clock
	epoch  atomic.Uint64 // counts what may turn a judgement; written under the lock
	asOf   atomic.Int64  // the server's time up to which everything is known here, ns since 1970

	mu       sync.RWMutex
	complete bool          // a first bundle has come whole; never false again
	closed   bool          // judges nothing any more
	trust    *trust        // nil before the first; never changed, only replaced
	resume   []byte        // where a later stream can go on: all before it is known here
	learned  uint64        // counts the messages that said something
	heard    reading       // at the newest heartbeat
	ended    idMap[int64]  // ended session → keep until, Unix seconds
	raised   idMap[raised] // user → the versions below which tokens are out

	nextPrune time.Time // the feed's own

	// keysChanged holds something when the trust state has become another one, or
	// has come for the first time, and who keeps a snapshot has not seen it yet.
	keysChanged chan struct{}

	wasStale atomic.Bool // when somebody last looked
	watchdog *time.Timer // looks when no heartbeat has come for long enough
}

// reading is what two clocks said at one moment.
type reading struct {
	server time.Time // as far as it was known
	local  time.Time // this machine's, as it is set: no monotonic reading
}

// trust is one trust state.
type trust struct {
	said        *watchwordv1.TrustState // what it was read from
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
	keep         int64 // Unix seconds
}

// authentic is a token whose form and signature are good, and nothing more: not
// yet one to believe.
type authentic struct {
	principal *Principal
	key       *token.PublicKey
	accepted  *atomic.Pointer[judgement] // the last one, for the verifier's own audience
}

// judgement says for how long a token is accepted.
type judgement struct {
	epoch uint64 // while it is this one,
	until int64  // and before this moment of the server's time, ns since 1970
}

func newBundle(log *slog.Logger, leeway time.Duration, stale staleness) *bundle {
	b := &bundle{
		log: log, leeway: leeway, stale: stale, clock: newClock(),
		ended: newIDMap[int64](), raised: newIDMap[raised](), keysChanged: make(chan struct{}, 1),
	}
	b.watchdog = time.AfterFunc(stale.after, b.lookStale)
	b.watchdog.Stop() // until the first heartbeat
	return b
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
	return authentic{&Principal{claims: *claims}, used, new(atomic.Pointer[judgement])}, accepted
}

// stillAccepted says whether the last judgement of a token holds: nothing that
// could turn it has changed since, and its time has not come.
func (b *bundle) stillAccepted(t *authentic) bool {
	last := t.accepted.Load()
	if last == nil || last.epoch != b.epoch.Load() {
		return false
	}
	now, latest := b.clock.read()
	return now < last.until && !(b.stale.refuse && b.staleAt(latest))
}

// judge says what is wrong with an authentic token at this moment, or accepted.
// The order of its questions is part of the contract. own says that want is the
// verifier's own audience, for which the judgement is remembered.
func (b *bundle) judge(t *authentic, want audience, own bool) watchwordv1.ErrorReason {
	c := &t.principal.claims
	b.mu.RLock()
	defer b.mu.RUnlock()
	if !b.judging() {
		return bundleStale
	}
	now := b.clock.nanos()
	key := b.trust.keys[t.key.KID()]
	user, _ := b.raised.get(c.Subject)
	_, ended := b.ended.get(c.SessionID)
	expires := nanosOf(c.ExpiresAt.Add(min(b.leeway, b.trust.margin)))
	switch {
	case key == nil || key.public != t.key || now >= key.end():
		return tokenInvalid
	case c.Issuer != b.trust.issuer:
		return tokenInvalid
	// Revocations are kept for as long as the issuer's longest token lives. One
	// that lives longer would outlive them.
	case c.ExpiresAt.Sub(c.IssuedAt) > b.trust.maxLifetime:
		return tokenInvalid
	case !want.accepts(c.Audience):
		return audienceMismatch
	case now >= expires:
		return tokenExpired
	case ended || c.Version < user.revokedBelow:
		return tokenRevoked
	case c.Version < user.staleBelow:
		return tokenStale
	}
	if own {
		t.accepted.Store(&judgement{epoch: b.epoch.Load(), until: min(expires, key.end())})
	}
	return accepted
}

// judging says whether there is a bundle to judge by. Needs the lock.
func (b *bundle) judging() bool {
	return b.complete && !b.closed && !(b.stale.refuse && b.isStale())
}

// end is when a key stops to count, in ns since 1970.
func (k *trustedKey) end() int64 {
	if k.verifiesUntil.IsZero() {
		return math.MaxInt64
	}
	return nanosOf(k.verifiesUntil)
}

// nanosOf is a time in ns since 1970; of one that is too far away, the last that
// there is.
func nanosOf(t time.Time) int64 {
	if t.Unix() >= math.MaxInt64/int64(time.Second) {
		return math.MaxInt64
	}
	return t.UnixNano()
}

// close makes every later judgement a refusal.
func (b *bundle) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.epoch.Add(1)
	b.watchdog.Stop()
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
	at, err := b.applyContent(msg, at)
	if resume := msg.GetResume(); err == nil && len(resume) > 0 {
		b.mu.Lock()
		b.resume = resume
		b.mu.Unlock()
	}
	return at, err
}

func (b *bundle) applyContent(msg *watchwordv1.WatchBundleResponse, at stage) (stage, error) {
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
		b.beat(m.Heartbeat, at >= told)
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
	next, changed := b.trust, false
	if state := n.GetTrustState(); state != nil {
		read, err := b.readTrust(state)
		if err != nil {
			return err
		}
		next, changed = read, b.trust != nil && !proto.Equal(read.said, b.trust.said)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if changed && b.complete {
		b.tellKeysChanged()
	}
	b.trust = next
	b.learned++
	b.epoch.Add(1)
	for _, s := range n.GetEndedSessions() {
		keep, _ := b.ended.get(s.GetSessionId())
		b.ended.set(s.GetSessionId(), max(keep, b.keep(s.GetUntil())))
	}
	for _, v := range n.GetRaisedVersions() {
		user, _ := b.raised.get(v.GetUserId())
		if v.GetRevoked() {
			user.revokedBelow = max(user.revokedBelow, v.GetVersion())
		} else {
			user.staleBelow = max(user.staleBelow, v.GetVersion())
		}
		user.keep = max(user.keep, b.keep(v.GetUntil()))
		b.raised.set(v.GetUserId(), user)
	}
	return nil
}

// keep is how long a revocation is remembered, in Unix seconds: for the margin
// past its time, because a leeway lets its tokens live past theirs. Needs the
// trust state.
func (b *bundle) keep(until *timestamppb.Timestamp) int64 {
	end := b.clock.now().Add(b.trust.maxLifetime) // no token that exists lives longer
	if until != nil {
		end = until.AsTime()
	}
	return end.Add(b.trust.margin).Unix() + 1
}

// readTrust checks a trust state. A key that cannot be read is left out, since a
// newer server may have one of a kind that isn't known here.
func (b *bundle) readTrust(state *watchwordv1.TrustState) (*trust, error) {
	next := &trust{
		said:        state,
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
	if b.trust != nil && b.trust.issuer != next.issuer {
		b.log.Warn("the trust bundle is of another issuer than before", "issuer", next.issuer, "before", b.trust.issuer)
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

// beat takes in a heartbeat. whole says that all has come that it is about.
func (b *bundle) beat(beat *watchwordv1.Heartbeat, whole bool) {
	server := beat.GetServerTime().AsTime()
	// What is known gets no younger when a clock that was ahead is set right.
	known := b.asOf.Load() - int64(b.clock.heard(server))
	if whole {
		known = max(known, asOf(beat).UnixNano())
	}
	b.asOf.Store(known)
	b.watchStale()
	b.mu.Lock()
	b.heard = reading{b.clock.now(), time.Now().Round(0)}
	if whole && !b.complete {
		b.complete = true
		b.tellKeysChanged()
	}
	b.mu.Unlock()
	b.prune(b.clock.now())
}

// asOf is the server's time up to which all is known that it has sent. It cannot
// know what is yet to come, so it is never later than its own time.
func asOf(beat *watchwordv1.Heartbeat) time.Time {
	server := beat.GetServerTime().AsTime()
	if at := beat.GetAsOf(); at.IsValid() && at.AsTime().Before(server) {
		return at.AsTime()
	}
	return server
}

func (b *bundle) tellKeysChanged() {
	select {
	case b.keysChanged <- struct{}{}:
	default:
	}
}
