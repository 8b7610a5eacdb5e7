package token_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/watchword-auth/watchword/internal/token"
)

// foreignKeys are keys of other issuers by the algorithm that each is for.
func foreignKeys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	keys := map[string]crypto.Signer{}
	var err error
	add := func(key crypto.Signer, made error, algorithms ...string) {
		err = errors.Join(err, made)
		for _, a := range algorithms {
			keys[a] = key
		}
	}
	_, ed, e := ed25519.GenerateKey(rand.Reader)
	add(ed, e, "EdDSA")
	for a, curve := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		key, e := ecdsa.GenerateKey(curve, rand.Reader)
		add(key, e, a)
	}
	key, e := rsa.GenerateKey(rand.Reader, 2048)
	add(key, e, "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// compact signs a header and a payload, as they are.
func compact(t testing.TB, key crypto.Signer, alg, header, payload string) string {
	t.Helper()
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	signature, err := jwt.GetSigningMethod(alg).Sign(input, key)
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// errNoKey is the error of find in these tests.
var errNoKey = errors.New("no such key")

// Every asymmetric algorithm passes with its own key, and fails with every other key and under
// every other algorithm.
func TestForeignAlgorithms(t *testing.T) {
	keys := foreignKeys(t)
	find := func(signed string) func(token.Foreign) (crypto.PublicKey, error) {
		return func(says token.Foreign) (crypto.PublicKey, error) {
			if says != (token.Foreign{Issuer: "https://issuer.test", Algorithm: signed, KID: "k"}) {
				return nil, errNoKey
			}
			return keys[signed].Public(), nil
		}
	}
	const payload = `{"iss":"https://issuer.test","deep":{"n":[1.5,true,null,"x"]}}`
	for alg, key := range keys {
		raw := compact(t, key, alg, `{"alg":"`+alg+`","kid":"k"}`, payload)
		claims, err := token.ParseForeign(raw, find(alg))
		if err != nil || fmt.Sprint(claims) != "map[deep:map[n:[1.5 true <nil> x]] iss:https://issuer.test]" {
			t.Errorf("%s: %v, %v", alg, claims, err)
		}
		for other := range keys {
			if other == alg {
				continue
			}
			if _, err := token.ParseForeign(raw, find(other)); !errors.Is(err, errNoKey) {
				t.Errorf("%s with a key for %s: %v", alg, other, err)
			}
			// The header names the other algorithm, and the key is for the other algorithm.
			renamed := compact(t, key, alg, `{"alg":"`+other+`","kid":"k"}`, payload)
			if _, err := token.ParseForeign(renamed, find(other)); !errors.Is(err, token.ErrInvalid) {
				t.Errorf("signed by %s, named %s: %v", alg, other, err)
			}
		}
	}
}

// Each malformed token is refused, although the signature is right.
func TestForeignForm(t *testing.T) {
	key := foreignKeys(t)["ES256"]
	find := func(says token.Foreign) (crypto.PublicKey, error) {
		if says.KID != "k" {
			return nil, errNoKey
		}
		return key.Public(), nil
	}
	const header, payload = `{"alg":"ES256","kid":"k"}`, `{"iss":"i"}`
	deep := func(n int) string { return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1) }
	long := strings.Repeat("x", token.MaxForeignLength)
	for _, c := range []struct {
		name, header, payload string
		ok                    bool
	}{
		{"plain", header, payload, true},
		{"typ JWT", `{"alg":"ES256","kid":"k","typ":"JWT"}`, payload, true},
		{"typ jose", `{"alg":"ES256","kid":"k","typ":"jose"}`, payload, true},
		{"typ of the draft", `{"alg":"ES256","kid":"k","typ":"authorization-grant+jwt"}`, payload, true},
		{"typ as a media type", `{"alg":"ES256","kid":"k","typ":"application/authorization-grant+JWT"}`, payload, true},
		{"unknown parameters", `{"alg":"ES256","kid":"k","x5t":"x","jku":"https://evil.test","jwk":{}}`, payload, true},
		{"the deepest", header, `{"iss":"i","d":` + deep(15) + `}`, true},
		{"the same name in two objects", header, `{"iss":"i","a":{"n":1},"b":{"n":1}}`, true},

		{"typ at+jwt", `{"alg":"ES256","kid":"k","typ":"at+jwt"}`, payload, false},
		{"typ of a logout token", `{"alg":"ES256","kid":"k","typ":"logout+jwt"}`, payload, false},
		{"typ empty", `{"alg":"ES256","kid":"k","typ":""}`, payload, false},
		{"typ null", `{"alg":"ES256","kid":"k","typ":null}`, payload, false},
		{"crit", `{"alg":"ES256","kid":"k","crit":["exp"]}`, payload, false},
		{"crit empty", `{"alg":"ES256","kid":"k","crit":[]}`, payload, false},
		{"b64", `{"alg":"ES256","kid":"k","b64":true}`, payload, false},
		{"alg none", `{"alg":"none","kid":"k"}`, payload, false},
		{"alg HS256", `{"alg":"HS256","kid":"k"}`, payload, false},
		{"alg in another case", `{"alg":"es256","kid":"k"}`, payload, false},
		{"alg twice", `{"alg":"none","alg":"ES256","kid":"k"}`, payload, false},
		{"no alg", `{"kid":"k"}`, payload, false},
		{"no kid", `{"alg":"ES256"}`, payload, false},
		{"kid a number", `{"alg":"ES256","kid":1}`, payload, false},
		{"kid too long", `{"alg":"ES256","kid":"` + long[:257] + `"}`, payload, false},
		{"too deep", header, `{"iss":"i","d":` + deep(16) + `}`, false},
		{"too deep, arrays", header, `{"iss":"i","d":` + strings.Repeat("[", 16) + strings.Repeat("]", 16) + `}`, false},
		{"a name twice", header, `{"iss":"i","sub":"a","sub":"b"}`, false},
		{"a name twice, with an escape", header, `{"iss":"i","sub":"a","\u0073ub":"a"}`, false},
		{"a name twice, within", header, `{"iss":"i","a":[{"n":1,"n":1}]}`, false},
		{"no iss", header, `{}`, false},
		{"iss a number", header, `{"iss":1}`, false},
		{"iss with half a surrogate pair", header, `{"iss":"\ud800"}`, false},
		{"an array", header, `[]`, false},
		{"two values", header, payload + payload, false},
		{"not UTF-8", header, "{\"iss\":\"i\",\"a\":\"\xff\"}", false},
		{"a comma at the end", header, `{"iss":"i",}`, false},
		{"too long", header, `{"iss":"i","a":"` + long + `"}`, false},
	} {
		_, err := token.ParseForeign(compact(t, key, "ES256", c.header, c.payload), find)
		if c.ok && err != nil || !c.ok && !errors.Is(err, token.ErrInvalid) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	good := compact(t, key, "ES256", header, payload)
	for name, raw := range map[string]string{
		"empty": "", "two parts": good[:strings.LastIndex(good, ".")], "four parts": good + ".x", "no signature": good[:strings.LastIndex(good, ".")+1],
		"padded": good + "=", "a line break": strings.Replace(good, ".", ".\n", 1), "five parts, encrypted": "a.b.c.d.e",
		"another last bit of the signature": good[:len(good)-1] + string(good[len(good)-1]^1),
	} {
		if _, err := token.ParseForeign(raw, find); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParseForeign checks that no text makes the parser panic, and that no text passes that
// the key has not signed.
func FuzzParseForeign(f *testing.F) {
	key := foreignKeys(f)["EdDSA"]
	good := compact(f, key, "EdDSA", `{"alg":"EdDSA","kid":"k","typ":"JWT"}`, `{"iss":"i","a":{"b":[1,{"c":null}]}}`)
	f.Add(good)
	f.Add(strings.ToUpper(good))
	f.Fuzz(func(t *testing.T, raw string) {
		_, err := token.ParseForeign(raw, func(token.Foreign) (crypto.PublicKey, error) { return key.Public(), nil })
		if err == nil && raw != good {
			t.Errorf("%q passes", raw)
		}
	})
}
