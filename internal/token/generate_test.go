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

// The generator makes the suite's tokens with the standard library alone, so the tokens
// also check package token from outside. All signatures are deterministic: the same
// keys give the same file, byte for byte.

const (
	suiteFile = "tokentest/tokens.json"
	issuer    = "https://auth.example.internal"
	audience  = "internal"
	// issued is 2000-01-01T00:00:00Z, where the clock of testing/synctest starts.
	issued = 946684800
)

// suiteJSON holds the content of the suite's file.
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

// generate returns the new content of the suite's file. The keys come from the
// present file; if the present file has none, generate makes new keys.
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
	suite.Cases = allCases(newKeyring(t, suite.Keys))
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

// jwsSigner signs any text as a JWS, without checks.
type jwsSigner struct {
	t        testing.TB
	alg, kid string
	key      crypto.Signer
}

// keyring holds the issuer's three keys and an attacker's key.
type keyring struct {
	ed, ec, rsa, attacker jwsSigner
}

func newKeyring(t testing.TB, keys []keyJSON) keyring {
	t.Helper()
	var signers []jwsSigner
	for _, k := range keys {
		var jwk struct{ Alg, Kid string }
		if err := json.Unmarshal(k.JWK, &jwk); err != nil {
			t.Fatal(err)
		}
		key, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
		if err != nil {
			t.Fatal(err)
		}
		signers = append(signers, jwsSigner{t, jwk.Alg, jwk.Kid, key.(crypto.Signer)})
	}
	evil := ed25519.NewKeyFromSeed([]byte("the attacker's own seed, 32 byte"))
	// The attacker's header carries the kid of the EdDSA key.
	return keyring{signers[0], signers[1], signers[2], jwsSigner{t, "EdDSA", signers[0].kid, evil}}
}

// sign returns the signature over the input (RFC 7515 section 5.1).
func (s jwsSigner) sign(input string) []byte {
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

// der returns an ECDSA signature in DER, the form outside of JWS. Without a source of
// randomness the signature is deterministic (RFC 6979).
func (s jwsSigner) der(input string) []byte {
	s.t.Helper()
	digest := sha256.Sum256([]byte(input))
	der, err := s.key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	return der
}

// fixedWidth converts DER to the form of RFC 7518 section 3.4.
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

// raw returns a signed token of two parts in base64url. raw does not encode the parts,
// so tests may pass wrong base64url.
func (s jwsSigner) raw(header, payload string) string {
	input := header + "." + payload
	return input + "." + encode(s.sign(input))
}

func (s jwsSigner) text(header, payload string) string {
	return s.raw(encode(header), encode(payload))
}

func (s jwsSigner) jws(header, payload object) string {
	return s.text(header.String(), payload.String())
}

// header returns a good header for the jwsSigner's key.
func (s jwsSigner) header() object {
	return object{{"alg", quote(s.alg)}, {"kid", quote(s.kid)}, {"typ", quote(token.Type)}}
}

// mint returns a signed token with a good header.
func (s jwsSigner) mint(payload object) string {
	return s.jws(s.header(), payload)
}

// object holds a JSON object's members in order, each value as JSON text.
type object []struct{ name, value string }

func (o object) String() string {
	var members []string
	for _, m := range o {
		members = append(members, quote(m.name)+":"+m.value)
	}
	return "{" + strings.Join(members, ",") + "}"
}

// with replaces the member of the same name, or adds a member.
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

// and adds a member even if the object has a member with the name, which makes a duplicate name.
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

// claims returns good claims.
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
