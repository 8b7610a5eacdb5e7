package token

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

// FuzzParse gives any bytes to Parse. It must not panic, and what it accepts must
// be in the one form that a token has: three canonical parts, the key's algorithm,
// and claims that signed again say the same.
func FuzzParse(f *testing.F) {
	suite := tokentest.Load(f)
	keys := map[string]*SigningKey{}
	for _, k := range suite.Keys {
		key, err := ParseSigningKey(k.PKCS8)
		if err != nil {
			f.Fatal(err)
		}
		keys[key.Public().KID()] = key
	}
	for _, c := range suite.Cases {
		f.Add(c.Token)
	}
	var asked *SigningKey
	find := func(kid string) *PublicKey {
		asked = keys[kid]
		return asked.Public()
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := Parse(raw, find)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || got != nil {
				t.Fatalf("claims %v and error %v", got, err)
			}
			return
		}
		wantCanonical(t, raw, asked.Public())
		again, err := Sign(asked, got)
		if err != nil {
			t.Fatalf("accepted what cannot be signed: %v", err)
		}
		wantSame(t, got, again, find)
	})
}

func wantCanonical(t *testing.T, raw string, key *PublicKey) {
	t.Helper()
	split := strings.Split(raw, ".")
	if len(split) != 3 || len(raw) > MaxLength {
		t.Fatalf("accepted %d parts, %d bytes", len(split), len(raw))
	}
	for _, part := range split {
		decoded, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil || base64.RawURLEncoding.EncodeToString(decoded) != part {
			t.Fatalf("accepted %q as base64url", part)
		}
	}
	var header struct{ Alg, Kid string }
	text, _ := base64.RawURLEncoding.DecodeString(split[0])
	if err := json.Unmarshal(text, &header); err != nil {
		t.Fatal(err)
	}
	if header.Alg != string(key.Algorithm()) || header.Kid != key.KID() {
		t.Fatalf("accepted a header of %s and %s", header.Alg, header.Kid)
	}
}

func wantSame(t *testing.T, want *Claims, raw string, find func(string) *PublicKey) {
	t.Helper()
	got, err := Parse(raw, find)
	if err != nil {
		t.Fatalf("signed again, it is refused: %v", err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("signed again, it says %+v, not %+v", got, want)
	}
}

// FuzzClaims goes behind the signature, which keeps a fuzzer's changes from ever
// reaching the claims. What is accepted must say the same to encoding/json, and
// after having been written again.
func FuzzClaims(f *testing.F) {
	for _, c := range tokentest.Load(f).Cases {
		if p, ok := split(c.Token); ok {
			if payload, err := segments.DecodeSegment(p.payload); err == nil {
				f.Add(payload)
			}
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := parts{payload: base64.RawURLEncoding.EncodeToString(payload)}.claims()
		if err != nil {
			if !errors.Is(err, ErrInvalid) || got != nil {
				t.Fatalf("claims %v and error %v", got, err)
			}
			return
		}
		var other map[string]any
		if err := json.Unmarshal(payload, &other); err != nil {
			t.Fatalf("accepted what encoding/json does not: %v", err)
		}
		if other["iss"] != got.Issuer || other["sub"] != got.Subject || other["sid"] != got.SessionID ||
			other["exp"] != float64(got.ExpiresAt.Unix()) || other["ver"] != float64(got.Version) {
			t.Fatalf("read %+v, encoding/json %v", got, other)
		}
		written, err := json.Marshal(got.wire())
		if err != nil {
			t.Fatal(err)
		}
		again, err := parts{payload: base64.RawURLEncoding.EncodeToString(written)}.claims()
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("written again, it says %+v (%v), not %+v", again, err, got)
		}
	})
}

// FuzzObject compares our cutting of JSON with encoding/json's.
func FuzzObject(f *testing.F) {
	for _, c := range tokentest.Load(f).Cases {
		if p, ok := split(c.Token); ok {
			for _, part := range []string{p.header, p.payload} {
				if text, err := segments.DecodeSegment(part); err == nil {
					f.Add(text)
				}
			}
		}
	}
	f.Add([]byte(` { "a" : [ 1 , "]" ] , "\\\"" : { "}" : "\\" } , "c":-1.5e3,"d":null} `))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := decodeObject(base64.RawURLEncoding.EncodeToString(data))
		if !ok {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("accepted what encoding/json does not: %v", err)
		}
		if len(got.members) != len(want) {
			t.Fatalf("%d members, encoding/json has %d", len(got.members), len(want))
		}
		for name, value := range want {
			if string(got.members[name]) != string(value) {
				t.Fatalf("%q is %q, encoding/json has %q", name, got.members[name], value)
			}
		}
	})
}
