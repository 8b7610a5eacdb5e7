package federation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// members are the members of a JSON Web Key.
type members map[string]any

// with returns a copy with other members; a nil value removes the member.
func (m members) with(other members) members {
	changed := maps.Clone(m)
	for name, value := range other {
		if changed[name] = value; value == nil {
			delete(changed, name)
		}
	}
	return changed
}

// jwkOf returns the members of a key, public or private, without kid, use and alg.
func jwkOf(t *testing.T, key any) (m members) {
	t.Helper()
	text, err := jose.JSONWebKey{Key: key}.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func setOf(t *testing.T, keys ...members) []byte {
	t.Helper()
	text, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func newKey[K any](t *testing.T) func(K, error) K {
	return func(key K, err error) K {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
}

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	return newKey[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(curve, rand.Reader))
}

// rsaPublic returns a public key of a size, with an odd modulus that no private key fits.
func rsaPublic(bits uint) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}
}

func TestEachKeyIsJudged(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed := jwkOf(t, public).with(members{"kid": "k"})
	p256Key := ecKey(t, elliptic.P256())
	p256 := jwkOf(t, p256Key.Public()).with(members{"kid": "k"})
	p384 := jwkOf(t, ecKey(t, elliptic.P384()).Public()).with(members{"kid": "k"})
	p521 := jwkOf(t, ecKey(t, elliptic.P521()).Public()).with(members{"kid": "k"})
	rs := jwkOf(t, rsaPublic(2048)).with(members{"kid": "k"})
	small := jwkOf(t, &rsa.PublicKey{N: rsaPublic(2048).N, E: 3}).with(members{"kid": "k"})
	other := jwkOf(t, ecKey(t, elliptic.P256()).Public())

	for name, c := range map[string]struct {
		key  members
		want string // the algorithm, or a part of the reason
	}{
		"Ed25519 without alg":       {ed, "=EdDSA"},
		"P-256 without alg":         {p256, "=ES256"},
		"RSA without alg":           {rs, "=RS256"},
		"P-384 without alg":         {p384, "no `alg`"},
		"P-521 without alg":         {p521, "no `alg`"},
		"P-384":                     {p384.with(members{"alg": "ES384"}), "=ES384"},
		"P-521":                     {p521.with(members{"alg": "ES512"}), "=ES512"},
		"RSA for PS256":             {rs.with(members{"alg": "PS256"}), "=PS256"},
		"RSA for RS512":             {rs.with(members{"alg": "RS512"}), "=RS512"},
		"use sig":                   {ed.with(members{"use": "sig"}), "=EdDSA"},
		"use jwt-svid":              {p256.with(members{"use": "jwt-svid"}), "=ES256"},
		"key_ops verify":            {ed.with(members{"key_ops": []string{"verify"}}), "=EdDSA"},
		"unknown member":            {ed.with(members{"ext": true, "KTY": "oct", "D": "aa"}), "=EdDSA"},
		"RSA of 4096 bits":          {jwkOf(t, rsaPublic(4096)).with(members{"kid": "k"}), "=RS256"},
		"kid of the largest size":   {ed.with(members{"kid": strings.Repeat("k", maxKIDLength)}), "=EdDSA"},
		"use x509-svid":             {p256.with(members{"use": "x509-svid"}), "`use`"},
		"use enc":                   {rs.with(members{"use": "enc"}), "`use`"},
		"key_ops sign":              {ed.with(members{"key_ops": []string{"sign"}}), "`key_ops`"},
		"key_ops empty":             {ed.with(members{"key_ops": []string{}}), "`key_ops`"},
		"alg none":                  {ed.with(members{"alg": "none"}), "another type"},
		"alg HS256":                 {rs.with(members{"alg": "HS256"}), "another type"},
		"alg of another family":     {p256.with(members{"alg": "RS256"}), "another type"},
		"alg of another curve":      {p256.with(members{"alg": "ES384"}), "another type"},
		"alg for encryption":        {rs.with(members{"alg": "RSA-OAEP"}), "another type"},
		"alg in lower case":         {ed.with(members{"alg": "eddsa"}), "another type"},
		"no kid":                    {ed.with(members{"kid": nil}), "no kid"},
		"kid empty":                 {ed.with(members{"kid": ""}), "no kid"},
		"kid too long":              {ed.with(members{"kid": strings.Repeat("k", maxKIDLength+1)}), "no kid"},
		"kid a number":              {ed.with(members{"kid": 7}), "not a JSON Web Key"},
		"RSA of 1024 bits":          {jwkOf(t, rsaPublic(1024)).with(members{"kid": "k"}), "modulus"},
		"RSA of 8192 bits":          {jwkOf(t, rsaPublic(8192)).with(members{"kid": "k"}), "size"},
		"RSA with exponent 3":       {small, "exponent"},
		"Ed448":                     {ed.with(members{"crv": "Ed448"}), "curve"},
		"X25519":                    {ed.with(members{"crv": "X25519"}), "curve"},
		"secp256k1":                 {p256.with(members{"crv": "secp256k1"}), "curve"},
		"unknown type":              {ed.with(members{"kty": "AES"}), "type"},
		"no type":                   {ed.with(members{"kty": nil}), "fit together"},
		"type in lower case":        {p256.with(members{"kty": "ec"}), "type"},
		"off the curve":             {p256.with(members{"y": other["y"]}), "fit together"},
		"coordinate missing":        {p256.with(members{"y": nil}), "fit together"},
		"Ed25519 of small order":    {ed.with(members{"x": strings.Repeat("A", 43)}), "fit together"},
		"certificate of another":    {p256.with(members{"x5c": []string{"AAAA"}}), "fit together"},
		"shared secret":             {members{"kty": "oct", "k": "c2VjcmV0", "kid": "k", "alg": "HS256"}, "private"},
		"private Ed25519":           {jwkOf(t, private).with(members{"kid": "k"}), "private"},
		"private P-256":             {jwkOf(t, p256Key).with(members{"kid": "k"}), "private"},
		"private part of RSA":       {rs.with(members{"d": "AQAB"}), "private"},
		"private part alone":        {rs.with(members{"qi": "AQAB"}), "private"},
		"private part that is null": {members{"kty": "OKP", "d": nil, "kid": "k"}.with(nil), "private"},
	} {
		document := setOf(t, c.key)
		set, err := parseKeySet(document)
		if want, ok := strings.CutPrefix(c.want, "="); ok {
			if err != nil || len(set.keys) != 1 || string(set.keys[0].algorithm) != want {
				t.Errorf("%s: %+v, %v; want a key for %s", name, set, err, want)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if private := errors.Is(err, errPrivateKey); private != (c.want == "private") {
			t.Errorf("%s: errPrivateKey is %t: %v", name, private, err)
		}
	}
}

func TestKeySetIsReadStrictly(t *testing.T) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed := jwkOf(t, public).with(members{"kid": "k"})
	good := string(setOf(t, ed))
	for name, text := range map[string]string{
		"empty":              "",
		"null":               "null",
		"array":              "[]",
		"no keys":            "{}",
		"keys null":          `{"keys":null}`,
		"keys an object":     `{"keys":{}}`,
		"keys empty":         `{"keys":[]}`,
		"name in upper case": strings.Replace(good, "keys", "Keys", 1),
		"repeated keys":      strings.Replace(good, "{", `{"keys":[],`, 1),
		"repeated name":      strings.Replace(good, `"kid":`, `"kid":"other","kid":`, 1),
		"more text":          good + "{}",
		"not UTF-8":          strings.Replace(good, `"k"`, "\"k\xff\"", 1),
		"no JSON":            good[:len(good)-1],
		"deep":               `{"keys":` + strings.Repeat("[", maxKeySetLength/2),
		"too long":           good + strings.Repeat(" ", maxKeySetLength),
		"too many":           string(setOf(t, slices.Repeat([]members{ed}, maxKeys+1)...)),
		"twins":              string(setOf(t, ed, jwkOf(t, public).with(members{"kid": "k", "use": "sig"}))),
		"no usable key":      string(setOf(t, ed.with(members{"use": "enc"}))),
	} {
		if set, err := parseKeySet([]byte(text)); err == nil {
			t.Errorf("%s: %+v", name, set)
		}
	}
	if set, err := parseKeySet([]byte(" " + good + "\n")); err != nil || set.keys[0].public.(interface{ Equal(crypto.PublicKey) bool }).Equal(public) != true {
		t.Errorf("a good document: %+v, %v", set, err)
	}
}

// A key set can hold other keys, which are left out: a SPIRE server publishes its X.509 keys in
// the same set, and other issuers publish keys for encryption.
func TestOtherKeysOfASetAreLeftOut(t *testing.T) {
	x509 := jwkOf(t, ecKey(t, elliptic.P384()).Public()).with(members{"use": "x509-svid"})
	svid := jwkOf(t, ecKey(t, elliptic.P256()).Public()).with(members{"use": "jwt-svid", "kid": "svid"})
	rs := jwkOf(t, rsaPublic(2048)).with(members{"kid": "two", "alg": "RS256"})
	document := setOf(t, x509, svid, rs, rs.with(members{"alg": "PS256"}))
	set, err := parseKeySet(document)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(set.kids()); got != "[svid two]" {
		t.Errorf("kids: %s", got)
	}
	if len(set.refused) != 1 || set.refused[0].place != 1 {
		t.Errorf("refused: %v", set.refused)
	}
	for _, c := range []struct {
		kid, algorithm string
		found, known   bool
	}{
		{"svid", "ES256", true, true}, {"two", "RS256", true, true}, {"two", "PS256", true, true},
		{"svid", "RS256", false, true}, {"two", "ES256", false, true}, {"", "ES256", false, false}, {"new", "ES256", false, false},
	} {
		k, known := set.find(c.kid, c.algorithm)
		if (k != nil) != c.found || known != c.known || k != nil && (k.kid != c.kid || string(k.algorithm) != c.algorithm) {
			t.Errorf("find(%q, %q) = %+v, %t", c.kid, c.algorithm, k, known)
		}
	}
}
