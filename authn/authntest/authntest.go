// Package authntest tests services guarded by package authn, with an issuer of tokens in
// memory: tests need no Watchword server, no network and no waiting.
//
//	issuer := authntest.New()
//	verifier := issuer.NewVerifier(t, authn.WithAudience("notes"))
//	token := issuer.Token(authntest.User{Name: "alice", Roles: []string{"writer"}, Audience: []string{"notes"}})
//	ctx := authntest.Bearer(t.Context(), token)  // for a client's call
//	issuer.EndSession(token)                     // from now on the token is TOKEN_REVOKED
//	issuer.Advance(time.Hour)                    // and every earlier token has expired
//
// A service account is a [User] of the kind SERVICE. A delegated token has actors:
//
//	search := authntest.User{Name: "search", Kind: watchwordv1.UserKind_USER_KIND_SERVICE}
//	token := issuer.Token(authntest.User{Name: "alice", Actors: []authntest.User{search}})
//	issuer.EndUser(search) // from now on the token is TOKEN_REVOKED, and so are search's own
//
// A [ForeignIssuer] makes the assertions with which a service account signs in.
//
// The verifiers are those of package authn, and the [Issuer] sends the verifiers the same messages
// as a real server. So a service behaves in a test as it does in production. When a method that
// changes an Issuer returns, every connected verifier knows the change.
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

// Name is the issuer of every token (claim iss).
const Name = "https://issuer.authntest.invalid"

// MaxLifetime is the longest lifetime of a token, and the default of [User].
const MaxLifetime = time.Hour

// An Issuer mints tokens and sends trust bundles to verifiers. [New] makes an Issuer. An Issuer
// needs no closing, and any number of goroutines can use an Issuer at once.
type Issuer struct {
	order sync.Mutex // orders the changes: a change holds order until every verifier has applied the change

	mu       sync.Mutex    // guards the fields below
	ahead    time.Duration // how far the issuer's clock is ahead of time.Now
	readings time.Duration // the number of readings of the clock so far; each reading adds a nanosecond to the process clock
	signing  *token.SigningKey
	trusted  []*token.SigningKey
	ended    []*watchwordv1.EndedSession
	raised   []*watchwordv1.RaisedVersion
	revoked  time.Time        // verifiers refuse delegated tokens with an earlier iat; zero before WithdrawKey
	versions map[string]int64 // the version in the next token (claim ver), by user id
	silent   bool             // true between Disconnect and Reconnect
	streams  map[*stream]bool
}

// New returns an Issuer with a new signing key.
func New() *Issuer {
	i := &Issuer{versions: map[string]int64{}, streams: map[*stream]bool{}}
	i.signing = newKey()
	i.trusted = []*token.SigningKey{i.signing}
	return i
}

func newKey() *token.SigningKey {
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		panic(err) // the system has no randomness
	}
	return key
}

// A User describes the user or the service account of a token. The zero User is a user without
// roles.
type User struct {
	ID        string               // empty: an id made from Name, the same id for the same Name
	Name      string               // empty: "somebody"
	Kind      watchwordv1.UserKind // zero: a user; a service account has no session
	Roles     []string             // nil: no roles
	Audience  []string             // nil: "test"
	SessionID string               // empty: a new session for each token
	Lifetime  time.Duration        // in whole seconds, at most MaxLifetime; zero: MaxLifetime
	// Actors are the service accounts that act for the user (claim act), at most five. The
	// service account that called last comes first. The fields of an actor other than ID and
	// Name are ignored. nil: the user itself calls.
	Actors []User
}

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

// Token returns a new access token for a user or a service account. The token's life begins
// now, by the issuer's clock. Token panics if no such token can exist, such as for a lifetime
// below a second, or for a service account with a session.
func (i *Issuer) Token(u User) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	c := &token.Claims{
		Issuer: Name, Subject: u.id(), ID: randomID(8), SessionID: u.SessionID, Username: u.name(), Audience: u.Audience, Roles: u.Roles,
		IssuedAt: now, ExpiresAt: now.Add(MaxLifetime), Version: i.version(u.id()),
	}
	switch service := u.Kind == watchwordv1.UserKind_USER_KIND_SERVICE; {
	case service && u.SessionID != "":
		panic("authntest: a service account has no session")
	case !service && u.SessionID == "":
		c.SessionID = randomID(12)
	}
	for _, a := range u.Actors {
		c.Actors = append(c.Actors, i.actor(a))
	}
	if len(c.Audience) == 0 {
		c.Audience = []string{"test"}
	}
	if u.Lifetime != 0 {
		c.ExpiresAt = now.Add(u.Lifetime)
	}
	return i.sign(c)
}

// Delegate returns a token delegated from a token of this issuer, as AuthService/DelegateToken
// does. The new token names the same subject and the same session, is for one audience, and
// expires no later than the token raw. The new token has the roles that raw has and that the
// parameter roles names (nil: all roles of raw), and never the role admin. actor is the service
// account that calls. Delegate panics unless this issuer minted the token with a trusted key,
// and for a sixth actor. Delegate ignores revocations: a token delegated from a revoked token is
// TOKEN_REVOKED.
func (i *Issuer) Delegate(raw string, actor User, audience string, roles ...string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	c := i.read(raw)
	c.ID, c.IssuedAt, c.Audience = randomID(8), i.now(), []string{audience}
	c.Roles = slices.DeleteFunc(c.Roles, func(r string) bool {
		return r == "admin" || len(roles) > 0 && !slices.Contains(roles, r)
	})
	c.Actors = append([]token.Actor{i.actor(actor)}, c.Actors...)
	return i.sign(c)
}

// sign signs a token with a time of issue that is not before i.revoked. The caller of sign or
// of actor must hold i.mu.
func (i *Issuer) sign(c *token.Claims) string {
	if len(c.Actors) > 0 {
		c.IssuedAt = latest(c.IssuedAt, i.revoked)
	}
	raw, err := token.Sign(i.signing, c)
	if err != nil {
		panic("authntest: " + err.Error())
	}
	return raw
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// actor returns the member of the claim act for a service account.
func (i *Issuer) actor(u User) token.Actor {
	return token.Actor{Subject: u.id(), Username: u.name(), Version: i.version(u.id())}
}

func randomID(bytes int) string {
	id := make([]byte, bytes)
	rand.Read(id)
	return base64.RawURLEncoding.EncodeToString(id)
}

// Bearer returns ctx with a token for a client's call, as the header "authorization: Bearer
// TOKEN".
func Bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// Context returns the context that a guarded handler has in a call by the user, for tests that
// call a handler directly: authn.FromContext finds the user's principal in the context. An
// interceptor of a real Verifier makes the context.
func (i *Issuer) Context(tb testing.TB, u User) context.Context {
	tb.Helper()
	ctx := metadata.NewIncomingContext(tb.Context(), metadata.Pairs("authorization", "Bearer "+i.Token(u)))
	guarded := ctx
	const method = "/authntest.Service/Method"
	verifier := i.NewVerifier(tb, authn.WithAnyAudience(), authn.WithMethodRule(method, &watchwordv1.Access{}))
	_, err := verifier.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method},
		func(ctx context.Context, _ any) (any, error) { guarded = ctx; return nil, nil })
	if err != nil {
		tb.Fatalf("authntest: the issuer's own token was refused: %v", err)
	}
	return guarded
}

// NewVerifier returns a Verifier that trusts this issuer, with a complete trust bundle. The
// Verifier is closed at the end of the test. As for authn.NewVerifier, one of the options must
// name the audience. NewVerifier ends the test if the options are not valid.
func (i *Issuer) NewVerifier(tb testing.TB, opts ...authn.Option) *authn.Verifier {
	tb.Helper()
	v, err := authn.NewVerifier(tb.Context(), i.Conn(), opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { v.Close() })
	return v
}

// EndSession ends the session of a token, as a logout does: every token of the session is
// TOKEN_REVOKED from now on. EndSession panics unless this issuer minted the token with a
// trusted key.
func (i *Issuer) EndSession(raw string) {
	i.change(func(c *watchwordv1.Change) {
		c.EndedSessions = append(c.EndedSessions, &watchwordv1.EndedSession{SessionId: i.read(raw).SessionID, Until: i.until()})
	})
}

// EndUser ends every session of a user, as disabling the user does: the tokens minted so far
// are TOKEN_REVOKED, including the delegated tokens in which the user is an actor. Tokens that
// are minted after EndUser are accepted.
func (i *Issuer) EndUser(u User) { i.raise(u, true) }

// ChangeRights makes every token that was minted for u TOKEN_STALE, as a change of the roles
// of u does. If u is a service account, every delegated token in which u is an actor is
// TOKEN_STALE too. Tokens that are minted after ChangeRights are accepted.
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

// RotateKey replaces the signing key by a new key. Verifiers still accept tokens that the old
// key has signed.
func (i *Issuer) RotateKey() {
	i.change(func(c *watchwordv1.Change) {
		i.signing = newKey()
		i.trusted = append(i.trusted, i.signing)
		c.TrustState = i.trustState()
	})
}

// WithdrawKey withdraws the key of a token, as an operator does after a leak: every token
// signed by the key is TOKEN_INVALID, and so is every delegated token minted so far, whatever
// key has signed the token. If the key is the present signing key, a new key replaces the key.
func (i *Issuer) WithdrawKey(raw string) {
	i.change(func(c *watchwordv1.Change) {
		var kid string
		_, _ = token.Parse(raw, func(id string) *token.PublicKey { kid = id; return nil })
		i.trusted = slices.DeleteFunc(i.trusted, func(k *token.SigningKey) bool { return k.Public().KID() == kid })
		if i.signing.Public().KID() == kid {
			i.signing = newKey()
			i.trusted = append(i.trusted, i.signing)
		}
		// The moment is a whole second after the iat of every token minted so far; see sign.
		i.revoked = latest(i.now().Truncate(time.Second), i.revoked).Add(time.Second)
		c.TrustState = i.trustState()
	})
}

// Advance sets the issuer's clock ahead by d. The clocks of connected verifiers follow, by a
// heartbeat. Advance panics if d is negative.
func (i *Issuer) Advance(d time.Duration) {
	if d < 0 {
		panic("authntest: Advance goes ahead only")
	}
	i.order.Lock()
	defer i.order.Unlock()
	i.mu.Lock()
	i.ahead += d
	beat := i.heartbeat()
	i.mu.Unlock()
	i.send(beat)
}

// Disconnect ends the streams of all verifiers, and refuses new streams as UNAVAILABLE, until
// Reconnect. After Reconnect, the verifiers receive the changes made since Disconnect.
func (i *Issuer) Disconnect() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.silent = true
	for s := range i.streams {
		s.cut()
	}
}

// Reconnect accepts streams again. As with a real server, the verifiers open new streams within
// ten seconds; authn.Verifier.Status shows when a verifier is up to date.
func (i *Issuer) Reconnect() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.silent = false
}

// now returns the time of the issuer's clock. The caller of now, until, version, read,
// trustState or heartbeat must hold i.mu.
func (i *Issuer) now() time.Time { return time.Now().Add(i.ahead) }

func (i *Issuer) until() *timestamppb.Timestamp { return timestamppb.New(i.now().Add(MaxLifetime)) }

func (i *Issuer) version(userID string) int64 { return max(1, i.versions[userID]) }

// read returns the claims of a token signed by a trusted key, and panics for any other token.
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
		panic(fmt.Sprintf("authntest: not a token of this issuer, or its key was withdrawn: %v", err))
	}
	return claims
}

// change sends a change to every verifier. The function fill sets the fields of the change;
// i.mu is held during fill.
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
	if !i.revoked.IsZero() {
		state.DelegatedNotBefore = timestamppb.New(i.revoked)
	}
	return state
}

func (i *Issuer) heartbeat() *message {
	m, times := trusttest.Heartbeat(i.now()), i.timesLocked()
	m.GetHeartbeat().Times, m.GetHeartbeat().AsOf = times, times.GetNow()
	return m
}

// timesLocked returns the times of the issuer. At each reading the process clock is ahead by a
// nanosecond more: verifiers compare the order of the readings, and in a bubble of
// testing/synctest no time passes between two readings.
func (i *Issuer) timesLocked() *watchwordv1.ServerTimes {
	i.readings++
	t := trusttest.Times(i.now())
	now := durationpb.New(t.GetNow().AsDuration() + i.readings)
	t.Now, t.Asked, t.Answered = now, now, now
	return t
}
