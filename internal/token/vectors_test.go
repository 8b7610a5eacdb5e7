package token_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

var update = flag.Bool("update", false, "write tokentest/tokens.json anew, with the keys of the present file")

// TestVectors gives every token of the committed file to Parse, and compares the
// committed file with the generator's output.
func TestVectors(t *testing.T) {
	generated := generate(t)
	if *update {
		if err := os.WriteFile(suiteFile, generated, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Skip("wrote tokens.json; this test binary still embeds the old file")
	}
	committed, err := os.ReadFile(suiteFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(generated, committed) {
		t.Error("tokens.json differs from the generator's output: run with -update")
	}
	suite := tokentest.Load(t)
	find := finder(suiteKeys(t, suite)...)
	seen := map[string]bool{}
	for _, c := range suite.Cases {
		if seen[c.Name] {
			t.Errorf("two cases have the name %q", c.Name)
		}
		seen[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			got, err := token.Parse(c.Token, find)
			if c.Parse == tokentest.OK {
				wantClaims(t, got, err)
				return
			}
			wantInvalid(t, c.Token, got, err)
		})
	}
}

func wantClaims(t *testing.T, got *token.Claims, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("Parse refused a good token: %v", err)
	}
	if got.Subject != "Vg5qT0yZc3RhbmRz" || got.SessionID != "b8Xw-1pLrS_4nQe0" && got.SessionID != "" || got.ID != "kF3x9_Qm-2A" {
		t.Errorf("wrong claims: %+v", got)
	}
}

// wantInvalid checks that err matches ErrInvalid, and that the error's text repeats no
// part of the token: the text may end up in a log.
func wantInvalid(t *testing.T, raw string, got *token.Claims, err error) {
	t.Helper()
	if !errors.Is(err, token.ErrInvalid) {
		t.Fatalf("error %v does not match ErrInvalid", err)
	}
	if got != nil {
		t.Errorf("Parse returned claims beside the error: %+v", got)
	}
	text := err.Error()
	if strings.ContainsAny(text, "\"'\n\\") || len(text) > 100 {
		t.Errorf("the error seems to quote the token: %q", text)
	}
	for _, secret := range append(strings.Split(raw, "."), issuer, "evil", "alice", "billing", "AAAAAAAA") {
		if len(secret) >= 5 && strings.Contains(text, secret) && secret != "token" {
			t.Errorf("the error %q repeats %q of the token", text, secret)
		}
	}
}

// TestParseRefusesEveryChange changes each character of a good token. For the two slower
// algorithms the test takes every seventh change, which is still several changes of each
// character.
func TestParseRefusesEveryChange(t *testing.T) {
	suite := tokentest.Load(t)
	find := finder(suiteKeys(t, suite)...)
	for alg, good := range suite.Good() {
		n := 0
		for raw := range tokentest.Changes(good) {
			if n++; alg != "EdDSA" && n%7 != 0 {
				continue
			}
			if claims, err := token.Parse(raw, find); claims != nil || !errors.Is(err, token.ErrInvalid) {
				t.Fatalf("%s: Parse accepted change %d: %q: %v", alg, n, raw, err)
			}
		}
		if n < 60*len(good) {
			t.Errorf("%s: only %d changes", alg, n)
		}
	}
}

func TestParseRefusesWycheproofTokens(t *testing.T) {
	find := finder(suiteKeys(t, tokentest.Load(t))...)
	for _, raw := range tokentest.Wycheproof(t) {
		got, err := token.Parse(raw, find)
		wantInvalid(t, raw, got, err)
	}
}

// suiteKeys returns the suite's keys: EdDSA, ES256, RS256.
func suiteKeys(t testing.TB, suite tokentest.Suite) []*token.PublicKey {
	t.Helper()
	var keys []*token.PublicKey
	for _, k := range suite.Keys {
		key, err := token.FromJWK(k.JWK)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return keys
}

func finder(keys ...*token.PublicKey) func(string) *token.PublicKey {
	byID := map[string]*token.PublicKey{}
	for _, k := range keys {
		byID[k.KID()] = k
	}
	return func(kid string) *token.PublicKey { return byID[kid] }
}
