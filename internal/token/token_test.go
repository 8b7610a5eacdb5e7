package token_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

var algorithms = []token.Algorithm{token.EdDSA, token.ES256, token.RS256}

// typical returns the claims of a user with three roles.
func typical() *token.Claims {
	start := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	return &token.Claims{
		Issuer:    "https://login.example.internal",
		Subject:   "Vg5qT0yZc3RhbmRz",
		ID:        "kF3x9_Qm-2A",
		SessionID: "b8Xw-1pLrS_4nQe0",
		Username:  "margaret",
		Audience:  []string{"internal", "billing"},
		Roles:     []string{"admin", "editor", "viewer"},
		IssuedAt:  start,
		ExpiresAt: start.Add(5 * time.Minute),
		Version:   start.Unix(),
	}
}

// actors returns a number of actors, each with a name of its own.
func actors(n int) (list []token.Actor) {
	for i := range n {
		list = append(list, token.Actor{Subject: fmt.Sprintf("service-id-%05d", i), Username: fmt.Sprintf("service-name-%07d", i), Version: 1782907200 + int64(i)})
	}
	return list
}

func generateKey(t testing.TB, alg token.Algorithm) *token.SigningKey {
	t.Helper()
	key, err := token.GenerateKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, key *token.SigningKey, c *token.Claims) string {
	t.Helper()
	raw, err := token.Sign(key, c)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestParseReturnsTheSignedClaims(t *testing.T) {
	for _, alg := range algorithms {
		t.Run(string(alg), func(t *testing.T) {
			key := generateKey(t, alg)
			raw := sign(t, key, typical())
			got, err := token.Parse(raw, finder(key.Public()))
			if err != nil {
				t.Fatal(err)
			}
			if want := typical(); !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			wantHeader(t, raw, key.Public())
		})
	}
}

// wantHeader checks that the header has exactly alg, typ and kid.
func wantHeader(t *testing.T, raw string, key *token.PublicKey) {
	t.Helper()
	part, _, _ := strings.Cut(raw, ".")
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		t.Fatal(err)
	}
	var header map[string]any
	if err := json.Unmarshal(text, &header); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"alg": string(key.Algorithm()), "typ": "at+jwt", "kid": key.KID()}
	if !reflect.DeepEqual(header, want) {
		t.Errorf("header %v, want %v", header, want)
	}
}

func TestSignCutsFractionsOfASecond(t *testing.T) {
	key := generateKey(t, token.EdDSA)
	c := typical()
	c.IssuedAt = c.IssuedAt.Add(999 * time.Millisecond).In(time.FixedZone("", 3600))
	c.ExpiresAt = c.ExpiresAt.Add(time.Nanosecond)
	got, err := token.Parse(sign(t, key, c), finder(key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	if want := typical(); got.IssuedAt != want.IssuedAt || got.ExpiresAt != want.ExpiresAt {
		t.Errorf("times %v and %v, want %v and %v", got.IssuedAt, got.ExpiresAt, want.IssuedAt, want.ExpiresAt)
	}
}

// A token keeps the order of its actors, the one that called last first, and writes them as RFC
// 8693 section 4.1 does. A token without a session has no claim sid.
func TestActors(t *testing.T) {
	key := generateKey(t, token.EdDSA)
	for n := range token.MaxActors + 1 {
		c := typical()
		c.Actors, c.SessionID = actors(n), ""
		raw := sign(t, key, c)
		got, err := token.Parse(raw, finder(key.Public()))
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%d actors: %+v, %v", n, got, err)
		}
		text, _ := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
		if strings.Contains(string(text), "sid") {
			t.Errorf("a token without a session has the claim sid: %s", text)
		}
		if n == 2 && !strings.Contains(string(text), `"act":{"act":{"sub":"service-id-00001",`) {
			t.Errorf("the actor that called first is not inside: %s", text)
		}
	}
}

// The claim client_id comes after aud. The claim adds its length and 14 bytes to the JSON, and a
// third more than that to the token. A claim that Parse would refuse is not signed.
func TestClientID(t *testing.T) {
	key := generateKey(t, token.EdDSA)
	c := typical()
	without := len(sign(t, key, c))
	c.ClientID = "web"
	raw := sign(t, key, c)
	if got, err := token.Parse(raw, finder(key.Public())); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%+v, %v", got, err)
	}
	text, _ := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
	if !strings.Contains(string(text), `],"client_id":"web","exp":`) || len(raw)-without > 26 {
		t.Errorf("%s, %d bytes more", text, len(raw)-without)
	}
	for _, id := range []string{"a\x00", "a\xff"} {
		c.ClientID = id
		if _, err := token.Sign(key, c); err == nil {
			t.Errorf("Sign accepts the client id %q", id)
		}
	}
}

func TestSignWithoutRoles(t *testing.T) {
	key := generateKey(t, token.EdDSA)
	c := typical()
	c.Roles = nil
	got, err := token.Parse(sign(t, key, c), finder(key.Public()))
	if err != nil || len(got.Roles) != 0 {
		t.Errorf("Parse returned %+v and error %v, want no roles", got, err)
	}
}

// TestSize bounds the length of typical tokens: every call sends the token, and servers bound
// the length of headers. Names have 20 characters.
func TestSize(t *testing.T) {
	key := generateKey(t, token.EdDSA)
	for name, c := range map[string]struct {
		below int
		set   func(*token.Claims)
	}{
		"a user, two audiences": {500, func(*token.Claims) {}},
		"a service account": {470, func(c *token.Claims) {
			c.SessionID, c.Audience, c.Username = "", []string{"internal"}, actors(1)[0].Username
		}},
		"one actor": {620, func(c *token.Claims) {
			c.Actors, c.Audience, c.Username = actors(1), []string{"internal"}, actors(1)[0].Username
		}},
		"five actors": {1300, func(c *token.Claims) { c.Actors = actors(5) }},
	} {
		claims := typical()
		c.set(claims)
		raw := sign(t, key, claims)
		t.Logf("%s, three roles: %d bytes", name, len(raw))
		if len(raw) >= c.below {
			t.Errorf("%s: %d bytes, want fewer than %d", name, len(raw), c.below)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	key := generateKey(t, token.EdDSA)
	for name, spoil := range map[string]func(*token.Claims){
		"no issuer":            func(c *token.Claims) { c.Issuer = "" },
		"no subject":           func(c *token.Claims) { c.Subject = "" },
		"no id":                func(c *token.Claims) { c.ID = "" },
		"session not UTF-8":    func(c *token.Claims) { c.SessionID = "a\xff" },
		"no username":          func(c *token.Claims) { c.Username = "" },
		"username not UTF-8":   func(c *token.Claims) { c.Username = "a\xff" },
		"no audience":          func(c *token.Claims) { c.Audience = nil },
		"empty audience":       func(c *token.Claims) { c.Audience = []string{"internal", ""} },
		"empty role":           func(c *token.Claims) { c.Roles = []string{""} },
		"no time of issue":     func(c *token.Claims) { c.IssuedAt = time.Time{} },
		"no expiry":            func(c *token.Claims) { c.ExpiresAt = time.Time{} },
		"expiry at issue":      func(c *token.Claims) { c.ExpiresAt = c.IssuedAt.Add(time.Millisecond) },
		"expiry in year 10000": func(c *token.Claims) { c.ExpiresAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"negative version":     func(c *token.Claims) { c.Version = -1 },
		"version beyond JSON":  func(c *token.Claims) { c.Version = 1 << 53 },
		"six actors":           func(c *token.Claims) { c.Actors = slices.Repeat(actors(1), 6) },
		"actor without id":     func(c *token.Claims) { c.Actors[4].Subject = "" },
		"actor without name":   func(c *token.Claims) { c.Actors[0].Username = "" },
		"actor's name a zero":  func(c *token.Claims) { c.Actors[1].Username = "\x00" },
		"actor's version":      func(c *token.Claims) { c.Actors[1].Version = -1 },
		"too many roles":       func(c *token.Claims) { c.Roles = strings.Split(strings.Repeat("role ", 2000)+"end", " ") },
	} {
		t.Run(name, func(t *testing.T) {
			c := typical()
			c.Actors = actors(5)
			spoil(c)
			raw, err := token.Sign(key, c)
			if err == nil || raw != "" || errors.Is(err, token.ErrInvalid) {
				t.Errorf("Sign returned %q and error %v, want an error", raw, err)
			}
		})
	}
	for _, key := range []*token.SigningKey{nil, {}} {
		if _, err := token.Sign(key, typical()); err == nil {
			t.Error("Sign accepted an empty key")
		}
	}
	if _, err := token.Sign(key, nil); err == nil {
		t.Error("Sign accepted nil claims")
	}
}

// TestParseChecksTheFoundKey returns wrong keys from find: Parse accepts a token by the
// key of the token's kid alone.
func TestParseChecksTheFoundKey(t *testing.T) {
	key, other := generateKey(t, token.EdDSA), generateKey(t, token.EdDSA)
	raw := sign(t, key, typical())
	for name, find := range map[string]func(string) *token.PublicKey{
		"nil":         nil,
		"no key":      func(string) *token.PublicKey { return nil },
		"zero key":    func(string) *token.PublicKey { return &token.PublicKey{} },
		"another key": func(string) *token.PublicKey { return other.Public() },
	} {
		t.Run(name, func(t *testing.T) {
			got, err := token.Parse(raw, find)
			wantInvalid(t, raw, got, err)
		})
	}
}

func TestParseFindsNoKeyForATooLongToken(t *testing.T) {
	find := func(string) *token.PublicKey {
		t.Error("Parse called find")
		return nil
	}
	raw := strings.Repeat("A", token.MaxLength+1)
	got, err := token.Parse(raw, find)
	wantInvalid(t, raw, got, err)
}

// Each of the two characters that Go's decoder of base64url skips is refused in every part: two
// spellings of one token would be two tokens for a cache.
func TestParseRefusesLineBreaks(t *testing.T) {
	key := generateKey(t, token.EdDSA)
	good := sign(t, key, typical())
	for i, c := range good {
		if c != '.' {
			continue
		}
		for _, skipped := range []string{"\r", "\n"} {
			for _, raw := range []string{good[:i] + skipped + good[i:], good[:i+1] + skipped + good[i+1:]} {
				if _, err := token.Parse(raw, finder(key.Public())); !errors.Is(err, token.ErrInvalid) {
					t.Errorf("a token with %q at %d: %v", skipped, i, err)
				}
			}
		}
	}
	for _, skipped := range []string{"\r", "\n"} {
		if _, err := token.Parse(good+skipped, finder(key.Public())); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("a token with %q at the end: %v", skipped, err)
		}
	}
}

// TestRefusalIsCheap bounds the allocations for a forged token, and so the cost of a
// flood of forged tokens.
func TestRefusalIsCheap(t *testing.T) {
	suite := tokentest.Load(t)
	raw := suite.Cases[0].Token
	none := func(string) *token.PublicKey { return nil }
	allocs := testing.AllocsPerRun(100, func() { _, _ = token.Parse(raw, none) })
	if allocs > 5 {
		t.Errorf("Parse made %v allocations to refuse a token with an unknown key, want at most 5", allocs)
	}
}

func TestParseAlgorithm(t *testing.T) {
	for _, alg := range algorithms {
		if got, err := token.ParseAlgorithm(string(alg)); err != nil || got != alg {
			t.Errorf("%s: got %s, %v", alg, got, err)
		}
	}
	for _, s := range []string{"", "none", "HS256", "eddsa", "Ed25519", "ES384", "RS512", "PS256"} {
		if got, err := token.ParseAlgorithm(s); err == nil {
			t.Errorf("%q: got %s", s, got)
		}
	}
}
