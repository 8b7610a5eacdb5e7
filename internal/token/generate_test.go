package token_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

// The suite's tokens are made here with the standard library alone, so that they
// are a second opinion on what the package makes. All signatures are
// deterministic: the same keys give the same file, byte for byte.

const (
	suiteFile = "tokentest/tokens.json"
	issuer    = "https://auth.example.internal"
	audience  = "internal"
	// issued is 2000-01-01T00:00:00Z, where the clock of testing/synctest starts.
	issued = 946684800
)

// suiteJSON is the suite's file.
type suiteJSON struct {
	Comment     string           `json:"comment"`
	Issuer      string           `json:"issuer"`
	Audience    string           `json:"audience"`
	Now         string           `json:"now"`
	MaxLifetime string           `json:"max_lifetime"`
	Keys        []keyJSON        `json:"keys"`
	Cases       []tokentest.Case `json:"cases"`
}

type keyJSON struct {
	JWK   json.RawMessage `json:"jwk"`
	PKCS8 []byte          `json:"pkcs8"`
}

// generate makes the suite's file with the keys of the present one.
func generate(t *testing.T) []byte {
	t.Helper()
	present, err := os.ReadFile(suiteFile)
	if err != nil {
		t.Fatal(err)
	}
	var suite suiteJSON
	if err := json.Unmarshal(present, &suite); err != nil {
		t.Fatal(err)
	}
	if len(suite.Keys) == 0 {
		suite.Keys = generateKeys(t)
	}
	suite.Comment = "Access tokens, good and hostile. Made by go test ./internal/token -run TestVectors -update; the keys stay. Test keys: they guard nothing."
	suite.Issuer, suite.Audience = issuer, audience
	suite.Now, suite.MaxLifetime = "2000-01-01T00:01:00Z", "5m"
	suite.Cases = allCases(newForge(t, suite.Keys))
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(suite); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func generateKeys(t *testing.T) []keyJSON {
	t.Helper()
	var keys []keyJSON
	for _, alg := range []token.Algorithm{token.EdDSA, token.ES256, token.RS256} {
		key, err := token.GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, err := key.MarshalPKCS8()
		if err != nil {
			t.Fatal(err)
		}
		jwk, err := json.Marshal(key.Public().JWK())
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, keyJSON{JWK: jwk, PKCS8: pkcs8})
	}
	return keys
}

// smith signs whatever it is told to.
type smith struct {
	t        testing.TB
	alg, kid string
	key      crypto.Signer
}

// forge is the issuer's three keys, and one of an attacker.
type forge struct {
	ed, ec, rsa, attacker smith
}

func newForge(t testing.TB, keys []keyJSON) forge {
	t.Helper()
	var smiths []smith
	for _, k := range keys {
		var jwk struct{ Alg, Kid string }
		if err := json.Unmarshal(k.JWK, &jwk); err != nil {
			t.Fatal(err)
		}
		key, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
		if err != nil {
			t.Fatal(err)
		}
		smiths = append(smiths, smith{t, jwk.Alg, jwk.Kid, key.(crypto.Signer)})
	}
	evil := ed25519.NewKeyFromSeed([]byte("the attacker's own seed, 32 byte"))
	// The attacker claims the id of a good key.
	return forge{smiths[0], smiths[1], smiths[2], smith{t, "EdDSA", smiths[0].kid, evil}}
}

// sign returns the signature over the input (RFC 7515 section 5.1).
func (s smith) sign(input string) []byte {
	s.t.Helper()
	digest := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch key := s.key.(type) {
	case ed25519.PrivateKey:
		signature = ed25519.Sign(key, []byte(input))
	case *ecdsa.PrivateKey:
		signature = fixedWidth(s.t, s.der(input))
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return signature
}

// der returns an ECDSA signature as other formats than JWS have it. Without a
// source of randomness it is deterministic (RFC 6979).
func (s smith) der(input string) []byte {
	s.t.Helper()
	digest := sha256.Sum256([]byte(input))
	der, err := s.key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	return der
}

// fixedWidth turns DER into the form of RFC 7518 section 3.4.
func fixedWidth(t testing.TB, der []byte) []byte {
	t.Helper()
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 64)
	sig.R.FillBytes(out[:32])
	sig.S.FillBytes(out[32:])
	return out
}

func encode[T string | []byte](s T) string {
	return base64.RawURLEncoding.EncodeToString([]byte(s))
}

// raw signs two parts that are base64url already, or nearly.
func (s smith) raw(header, payload string) string {
	input := header + "." + payload
	return input + "." + encode(s.sign(input))
}

func (s smith) text(header, payload string) string {
	return s.raw(encode(header), encode(payload))
}

func (s smith) jws(header, payload object) string {
	return s.text(header.String(), payload.String())
}

// header is a good header of the smith's key.
func (s smith) header() object {
	return object{{"alg", quote(s.alg)}, {"kid", quote(s.kid)}, {"typ", quote(token.Type)}}
}

// mint is a token with a good header.
func (s smith) mint(payload object) string {
	return s.jws(s.header(), payload)
}

// object is a JSON object in order, its values in JSON.
type object []struct{ name, value string }

func (o object) String() string {
	var members []string
	for _, m := range o {
		members = append(members, quote(m.name)+":"+m.value)
	}
	return "{" + strings.Join(members, ",") + "}"
}

// with replaces a member, or adds it.
func (o object) with(name, value string) object {
	o = slices.Clone(o)
	for i := range o {
		if o[i].name == name {
			o[i].value = value
			return o
		}
	}
	return o.and(name, value)
}

// and adds a member, also a second of a name.
func (o object) and(name, value string) object {
	return append(slices.Clone(o), struct{ name, value string }{name, value})
}

func (o object) without(name string) object {
	o = slices.Clone(o)
	for i := range o {
		if o[i].name == name {
			return slices.Delete(o, i, i+1)
		}
	}
	return o
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// claims are good ones.
func claims() object {
	return object{
		{"iss", quote(issuer)},
		{"sub", `"Vg5qT0yZc3RhbmRz"`},
		{"aud", `["internal"]`},
		{"exp", "946685100"},
		{"iat", "946684800"},
		{"jti", `"kF3x9_Qm-2A"`},
		{"sid", `"b8Xw-1pLrS_4nQe0"`},
		{"username", `"alice"`},
		{"roles", `["admin","editor"]`},
		{"ver", "946684000"},
	}
}
