package authntest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func reason(v *authn.Verifier, token string) string {
	_, err := v.Verify(context.Background(), token)
	if err == nil {
		return "ok"
	}
	return strings.TrimPrefix(authn.Reason(err).String(), "ERROR_REASON_")
}

// When a method that changes the issuer returns, every verifier has applied the change.
func TestEveryChangeIsKnownAtOnce(t *testing.T) {
	alice := authntest.User{Name: "alice", Roles: []string{"writer"}}
	for name, c := range map[string]struct {
		change            func(i *authntest.Issuer, token string)
		before, afterward string // the answer for a token minted before the change, and after
	}{
		"nothing":        {func(*authntest.Issuer, string) {}, "ok", "ok"},
		"session ends":   {func(i *authntest.Issuer, token string) { i.EndSession(token) }, "TOKEN_REVOKED", "ok"},
		"user ends":      {func(i *authntest.Issuer, _ string) { i.EndUser(alice) }, "TOKEN_REVOKED", "ok"},
		"rights change":  {func(i *authntest.Issuer, _ string) { i.ChangeRights(alice) }, "TOKEN_STALE", "ok"},
		"another user":   {func(i *authntest.Issuer, _ string) { i.EndUser(authntest.User{Name: "bob"}) }, "ok", "ok"},
		"key rotates":    {func(i *authntest.Issuer, _ string) { i.RotateKey() }, "ok", "ok"},
		"key withdrawn":  {func(i *authntest.Issuer, token string) { i.WithdrawKey(token) }, "TOKEN_INVALID", "ok"},
		"old withdrawn":  {func(i *authntest.Issuer, token string) { i.RotateKey(); i.WithdrawKey(token) }, "TOKEN_INVALID", "ok"},
		"almost expired": {func(i *authntest.Issuer, _ string) { i.Advance(authntest.MaxLifetime - 2*time.Second) }, "ok", "ok"},
		"expired":        {func(i *authntest.Issuer, _ string) { i.Advance(authntest.MaxLifetime) }, "TOKEN_EXPIRED", "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			i := authntest.New()
			verifiers := []*authn.Verifier{i.NewVerifier(t, authn.WithAudience("test")), i.NewVerifier(t, authn.WithAnyAudience())}
			token := i.Token(alice)
			for _, v := range verifiers {
				if got := reason(v, token); got != "ok" {
					t.Fatal(got)
				}
			}
			c.change(i, token)
			verifiers = append(verifiers, i.NewVerifier(t, authn.WithAudience("test"))) // the test also checks a verifier that connects later
			for n, v := range verifiers {
				if got := reason(v, token); got != c.before {
					t.Errorf("verifier %d: %s, want %s", n, got, c.before)
				}
				if got := reason(v, i.Token(alice)); got != c.afterward {
					t.Errorf("verifier %d, a new token: %s, want %s", n, got, c.afterward)
				}
			}
		})
	}
}

func TestToken(t *testing.T) {
	i := authntest.New()
	v := i.NewVerifier(t, authn.WithAudience("notes"))
	p, err := v.Verify(t.Context(), i.Token(authntest.User{ID: "u1", Name: "alice", Roles: []string{"a", "b"}, Audience: []string{"x", "notes"},
		SessionID: "s1", Lifetime: time.Minute}))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s %s %s %s %s %s", p.Subject(), p.Username(), p.Roles(), p.Audience(), p.SessionID(), p.Issuer())
	if got != "u1 alice [a b] [x notes] s1 "+authntest.Name {
		t.Error(got)
	}
	if got := p.ExpiresAt().Sub(p.IssuedAt()); got != time.Minute {
		t.Error(got)
	}
	if got := reason(v, i.Token(authntest.User{})); got != "AUDIENCE_MISMATCH" {
		t.Error(got)
	}
	if got := reason(v, authntest.New().Token(authntest.User{Audience: []string{"notes"}})); got != "TOKEN_INVALID" {
		t.Errorf("the token of another issuer: %s", got)
	}
}

const service = watchwordv1.UserKind_USER_KIND_SERVICE

// A token can be delegated from service to service, each time for fewer audiences and roles, and
// a revocation of any of the services takes the last token back.
func TestDelegate(t *testing.T) {
	i := authntest.New()
	v := i.NewVerifier(t, authn.WithAudience("c"))
	front, back := authntest.User{Name: "front", Kind: service}, authntest.User{Name: "back", Kind: service}
	alice := i.Token(authntest.User{Name: "alice", Roles: []string{"admin", "reader", "writer"}, Audience: []string{"a"}, SessionID: "s1"})
	last := i.Delegate(i.Delegate(alice, front, "b"), back, "c", "reader", "owner")
	p, err := v.Verify(t.Context(), last)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s %s %s %s %s %v", p.Username(), p.Kind(), p.Roles(), p.Audience(), p.SessionID(), p.Actors())
	if got != "alice USER_KIND_USER [reader] [c] s1 [back (user-back) front (user-front)]" {
		t.Error(got)
	}
	if got := reason(v, i.Delegate(alice, front, "b")); got != "AUDIENCE_MISMATCH" {
		t.Error(got)
	}
	own := i.Token(authntest.User{Name: "front", Kind: service, Audience: []string{"c"}})
	i.ChangeRights(back)
	if got := reason(v, last); got != "TOKEN_STALE" {
		t.Error(got)
	}
	i.EndUser(front)
	if got, gotOwn := reason(v, last), reason(v, own); got != "TOKEN_REVOKED" || gotOwn != "TOKEN_REVOKED" {
		t.Error(got, gotOwn)
	}
	last = i.Token(authntest.User{Name: "alice", Audience: []string{"c"}, Actors: []authntest.User{back, front}})
	if got := reason(v, last); got != "ok" {
		t.Error(got)
	}
	i.RotateKey()
	i.WithdrawKey(i.Token(authntest.User{})) // withdraws the new key; the earlier key has signed last
	if got := reason(v, last); got != "TOKEN_INVALID" {
		t.Error(got)
	}
	if got := reason(v, i.Token(authntest.User{Audience: []string{"c"}, Actors: []authntest.User{front}})); got != "ok" {
		t.Error(got)
	}
}

// The assertions of a foreign issuer have the signature of the key that the issuer serves.
func TestForeignIssuer(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	issuer := authntest.NewForeignIssuer("http://" + server.Listener.Addr().String())
	server.Config.Handler = issuer
	server.Start()
	defer server.Close()
	get := func(path string, into any) {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	var metadata struct {
		Issuer  string `json:"issuer"`
		JwksURI string `json:"jwks_uri"`
	}
	get("/.well-known/openid-configuration", &metadata)
	if metadata.Issuer != issuer.Name || metadata.JwksURI != server.URL+"/jwks" {
		t.Errorf("%+v", metadata)
	}
	var set struct{ Keys []map[string]string }
	get("/jwks", &set)
	raw := issuer.Assertion("notes", authntest.Name, map[string]any{"namespace": "shop", "jti": nil})
	parts := strings.Split(raw, ".")
	var header map[string]string
	var claims map[string]any
	for n, into := range []any{&header, &claims} {
		text, _ := base64.RawURLEncoding.DecodeString(parts[n])
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	point := []byte{4} // the two coordinates of the public key follow this byte
	for _, name := range []string{"x", "y"} {
		b, _ := base64.RawURLEncoding.DecodeString(set.Keys[0][name])
		point = append(point, b...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		t.Error("wrong signature")
	}
	if header["alg"] != "ES256" || header["kid"] != set.Keys[0]["kid"] || claims["iss"] != issuer.Name || claims["sub"] != "notes" ||
		fmt.Sprint(claims["aud"]) != fmt.Sprint([]string{authntest.Name}) || claims["namespace"] != "shop" || claims["jti"] != nil {
		t.Errorf("%v %v", header, claims)
	}
}

func TestContext(t *testing.T) {
	p, ok := authn.FromContext(authntest.New().Context(t, authntest.User{Name: "carol", Roles: []string{"admin"}}))
	if !ok || p.Username() != "carol" || !p.HasRole("admin") {
		t.Errorf("%v, %t", p, ok)
	}
}

func TestDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := authntest.New()
		v := i.NewVerifier(t, authn.WithAudience("test"), authn.WithMaxStaleness(time.Minute, authn.RefuseWhenStale))
		token := i.Token(authntest.User{})
		i.Disconnect()
		i.EndSession(token)
		if got := reason(v, token); got != "ok" {
			t.Errorf("disconnected: %s", got)
		}
		time.Sleep(61 * time.Second)
		if got := reason(v, token); got != "BUNDLE_STALE" || !v.Status().Stale {
			t.Errorf("disconnected for a minute: %s", got)
		}
		i.Reconnect()
		time.Sleep(10 * time.Second)
		if got := reason(v, token); got != "TOKEN_REVOKED" || v.Status().Stale {
			t.Errorf("connected again: %s", got)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	i := authntest.New()
	v := i.NewVerifier(t, authn.WithAudience("test"))
	var tasks sync.WaitGroup
	for n := range 8 {
		tasks.Go(func() {
			for range 20 {
				u := authntest.User{Name: fmt.Sprint(n)}
				token := i.Token(u)
				i.EndSession(token)
				if got := reason(v, token); got != "TOKEN_REVOKED" {
					t.Error(got)
				}
				i.RotateKey()
				i.Advance(time.Millisecond)
			}
		})
	}
	tasks.Wait()
}
