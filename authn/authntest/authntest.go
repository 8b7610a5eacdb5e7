// Package authntest is an issuer in memory, for the tests of guarded services:
// without a server, a network or a wait.
//
//	issuer := authntest.New()
//	verifier := issuer.NewVerifier(t, authn.WithAudience("notes"))
//	token := issuer.Token(authntest.User{Name: "alice", Roles: []string{"writer"}, Audience: []string{"notes"}})
//	ctx := authntest.Bearer(t.Context(), token)      // for a client's call
//	issuer.EndSession(token)                         // and the token is TOKEN_REVOKED
//	issuer.Advance(time.Hour)                        // and what is left has expired
//
// Its verifiers are those of package authn, fed by the messages that a server
// would send: what a test sees here, the service will see. What changes is known
// to every verifier when the call that changes it returns.
package authntest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/trusttest"
)

// Name is the claim `iss` of every token.
const Name = "https://issuer.authntest.invalid"

// MaxLifetime is how long a token may live, and does unless its User says less.
const MaxLifetime = time.Hour

// An Issuer mints tokens and feeds verifiers. It is made by New, needs no
// closing, and may be used from several goroutines at once.
type Issuer struct {
	order sync.Mutex // held while everybody is told of something

	mu       sync.Mutex
	ahead    time.Duration // of the clock
	signing  *token.SigningKey
	trusted  []*token.SigningKey
	ended    []*watchwordv1.EndedSession
	raised   []*watchwordv1.RaisedVersion
	versions map[string]int64 // user id → the version of their next token
	silent   bool
	streams  map[*stream]bool
}

// New makes an issuer with a key of its own.
func New() *Issuer {
	i := &Issuer{versions: map[string]int64{}, streams: map[*stream]bool{}}
	i.signing = newKey()
	i.trusted = []*token.SigningKey{i.signing}
	return i
}

func newKey() *token.SigningKey {
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		panic(err) // there is no randomness
	}
	return key
}

// A User is whom a token shall speak for. What is left out is made up, or empty.
type User struct {
	ID        string // made of the name, if it is empty
	Name      string
	Roles     []string
	Audience  []string      // none: "test"
	SessionID string        // empty: a new session
	Lifetime  time.Duration // whole seconds; zero: MaxLifetime
}

// id is the user's, the same for the same name.
func (u User) id() string {
	if u.ID != "" {
		return u.ID
	}
	return "user-" + u.name()
}

func (u User) name() string {
	if u.Name == "" {
		return "somebody"
	}
	return u.Name
}

// Token mints an access token, as of the issuer's clock. It panics where the
// user cannot have one, such as for a lifetime of less than a second.
func (i *Issuer) Token(u User) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	c := &token.Claims{
		Issuer: Name, Subject: u.id(), ID: randomID(8), SessionID: u.SessionID, Username: u.name(), Audience: u.Audience, Roles: u.Roles,
		IssuedAt: now, ExpiresAt: now.Add(MaxLifetime), Version: i.version(u.id()),
	}
	if c.SessionID == "" {
		c.SessionID = randomID(12)
	}
	if len(c.Audience) == 0 {
		c.Audience = []string{"test"}
	}
	if u.Lifetime != 0 {
		c.ExpiresAt = now.Add(u.Lifetime)
	}
	raw, err := token.Sign(i.signing, c)
	if err != nil {
		panic("authntest: " + err.Error())
	}
	return raw
}

func randomID(bytes int) string {
	id := make([]byte, bytes)
	rand.Read(id)
	return base64.RawURLEncoding.EncodeToString(id)
}

// Bearer is a context for a client's call that carries a token.
func Bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// Context is what a guarded handler would see in a call by this user, for tests
// that call a handler directly. It is made by a real interceptor.
func (i *Issuer) Context(tb testing.TB, u User) context.Context {
	tb.Helper()
	ctx := metadata.NewIncomingContext(tb.Context(), metadata.Pairs("authorization", "Bearer "+i.Token(u)))
	guarded := ctx
	_, err := i.NewVerifier(tb, authn.WithAnyAudience()).UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/authntest.Service/Method"},
		func(ctx context.Context, _ any) (any, error) { guarded = ctx; return nil, nil })
	if err != nil {
		tb.Fatalf("authntest: a token of our own was refused: %v", err)
	}
	return guarded
}

// NewVerifier makes a verifier that trusts this issuer, and closes it when the
// test ends. The options need an audience, as everywhere.
func (i *Issuer) NewVerifier(tb testing.TB, opts ...authn.Option) *authn.Verifier {
	tb.Helper()
	v, err := authn.NewVerifier(tb.Context(), i.Conn(), opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { v.Close() })
	return v
}

// EndSession ends the session of a token, as a logout does: it and all others of
// the session are TOKEN_REVOKED.
func (i *Issuer) EndSession(raw string) {
	i.change(func(c *watchwordv1.Change) {
		c.EndedSessions = append(c.EndedSessions, &watchwordv1.EndedSession{SessionId: i.read(raw).SessionID, Until: i.until()})
	})
}

// EndUser ends every session of a user, as disabling them does: their tokens are
// TOKEN_REVOKED. Tokens that are minted later are good.
func (i *Issuer) EndUser(u User) { i.raise(u, true) }

// ChangeRights makes the tokens of a user TOKEN_STALE, as a change of their
// roles does. Tokens that are minted later are good.
func (i *Issuer) ChangeRights(u User) { i.raise(u, false) }

func (i *Issuer) raise(u User, revoked bool) {
	i.change(func(c *watchwordv1.Change) {
		id := u.id()
		i.versions[id] = i.version(id) + 1
		c.RaisedVersions = append(c.RaisedVersions, &watchwordv1.RaisedVersion{
			UserId: id, Version: i.versions[id], Revoked: revoked, Until: i.until(),
		})
	})
}

// RotateKey lets a new key sign. What the old one signed stays good.
func (i *Issuer) RotateKey() {
	i.change(func(c *watchwordv1.Change) {
		i.signing = newKey()
		i.trusted = append(i.trusted, i.signing)
		c.TrustState = i.trustState()
	})
}

// WithdrawKey withdraws the key that signed a token, as after a leak: what it
// signed is TOKEN_INVALID. If it still signed, a new key does from now on.
func (i *Issuer) WithdrawKey(raw string) {
	i.change(func(c *watchwordv1.Change) {
		var kid string
		_, _ = token.Parse(raw, func(id string) *token.PublicKey { kid = id; return nil })
		i.trusted = slices.DeleteFunc(i.trusted, func(k *token.SigningKey) bool { return k.Public().KID() == kid })
		if i.signing.Public().KID() == kid {
			i.signing = newKey()
			i.trusted = append(i.trusted, i.signing)
		}
		c.TrustState = i.trustState()
	})
}

// Advance turns the issuer's clock. Verifiers follow it by its heartbeats, as
// they follow a server's, and never back.
func (i *Issuer) Advance(d time.Duration) {
	if d < 0 {
		panic("authntest: a verifier's clock does not go back")
	}
	i.order.Lock()
	defer i.order.Unlock()
	i.mu.Lock()
	i.ahead += d
	beat := i.heartbeat()
	i.mu.Unlock()
	i.send(beat)
}

// Disconnect cuts all verifiers off: they hear nothing, and find no server, until
// Reconnect. What changes meanwhile they learn of then.
func (i *Issuer) Disconnect() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.silent = true
	for s := range i.streams {
		s.cut()
	}
}

// Reconnect lets verifiers in again. They come back within ten seconds, as they
// do to a server; Status says when they have.
func (i *Issuer) Reconnect() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.silent = false
}

// now is the issuer's time; mu is held.
func (i *Issuer) now() time.Time { return time.Now().Add(i.ahead) }

func (i *Issuer) until() *timestamppb.Timestamp { return timestamppb.New(i.now().Add(MaxLifetime)) }

func (i *Issuer) version(userID string) int64 { return max(1, i.versions[userID]) }

// read reads a token of ours.
func (i *Issuer) read(raw string) *token.Claims {
	claims, err := token.Parse(raw, func(kid string) *token.PublicKey {
		for _, k := range i.trusted {
			if k.Public().KID() == kid {
				return k.Public()
			}
		}
		return nil
	})
	if err != nil {
		panic(fmt.Sprintf("authntest: not a token of this issuer, or of a key that was withdrawn: %v", err))
	}
	return claims
}

// change makes a change and tells every verifier of it.
func (i *Issuer) change(fill func(*watchwordv1.Change)) {
	i.order.Lock()
	defer i.order.Unlock()
	i.mu.Lock()
	c := &watchwordv1.Change{}
	fill(c)
	i.ended, i.raised = append(i.ended, c.GetEndedSessions()...), append(i.raised, c.GetRaisedVersions()...)
	i.mu.Unlock()
	i.send(&message{Message: &watchwordv1.WatchBundleResponse_Change{Change: c}})
}

func (i *Issuer) trustState() *watchwordv1.TrustState {
	state := &watchwordv1.TrustState{
		Issuer: Name, MaxTokenLifetime: durationpb.New(MaxLifetime), Margin: durationpb.New(5 * time.Minute),
	}
	for _, k := range i.trusted {
		state.Keys = append(state.Keys, &watchwordv1.VerificationKey{Key: k.Public().JWK()})
	}
	return state
}

func (i *Issuer) heartbeat() *message { return trusttest.Heartbeat(i.now()) }
