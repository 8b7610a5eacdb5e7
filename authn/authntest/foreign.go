package authntest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"time"
)

// A ForeignIssuer signs assertions like a platform that gives its processes names, such as
// Kubernetes, SPIRE or a CI system. So a test of tokensource.Workload needs no platform:
//
//	platform := authntest.NewForeignIssuer("https://platform.example")
//	// trust platform at the Watchword server: `watchword issuer add`, with platform.JWKS()
//	assertion := func(context.Context) (string, error) {
//		return platform.Assertion("system:serviceaccount:shop:notes", issuer, nil), nil
//	}
//
// A ForeignIssuer is an http.Handler for a test server at the address Name: the handler serves
// the keys at /jwks, and the metadata for OpenID Connect discovery. Any number of goroutines
// can use a ForeignIssuer at once.
type ForeignIssuer struct {
	Name string // the claim iss
	key  *ecdsa.PrivateKey
}

// NewForeignIssuer returns an issuer with a new key for ES256. name becomes the claim iss.
func NewForeignIssuer(name string) *ForeignIssuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // the system has no randomness
	}
	return &ForeignIssuer{name, key}
}

// Assertion returns a JWT for a subject and one audience. The JWT expires in ten minutes.
// claims adds claims and replaces claims of the same name; a nil value removes a claim. A
// Watchword server accepts an assertion with the server's own issuer as the audience.
func (f *ForeignIssuer) Assertion(subject, audience string, claims map[string]any) string {
	now := time.Now().Unix()
	all := map[string]any{
		"iss": f.Name, "sub": subject, "aud": []string{audience}, "iat": now, "exp": now + 600, "jti": randomID(12),
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	input := segment(map[string]any{"alg": "ES256", "typ": "JWT", "kid": f.kid()}) + "." + segment(all)
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, f.key, digest[:])
	if err != nil {
		panic(err) // the system has no randomness
	}
	signature := make([]byte, 64) // r and s in 32 bytes each (RFC 7518 section 3.4)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// JWKS returns the public key as a JSON Web Key Set (RFC 7517).
func (f *ForeignIssuer) JWKS() string {
	point := f.point()
	return string(encode(map[string]any{"keys": []any{map[string]any{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": f.kid(),
		"x": base64.RawURLEncoding.EncodeToString(point[:32]), "y": base64.RawURLEncoding.EncodeToString(point[32:]),
	}}}))
}

// ServeHTTP serves /jwks and /.well-known/openid-configuration.
func (f *ForeignIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/jwks":
		_, _ = w.Write([]byte(f.JWKS()))
	case "/.well-known/openid-configuration":
		_, _ = w.Write(encode(map[string]any{"issuer": f.Name, "jwks_uri": f.Name + "/jwks"}))
	default:
		http.NotFound(w, r)
	}
}

// point returns the coordinates x and y of the public key.
func (f *ForeignIssuer) point() []byte {
	raw, err := f.key.PublicKey.Bytes()
	if err != nil {
		panic(err) // GenerateKey makes no key without coordinates
	}
	return raw[1:] // the first byte only says that both coordinates follow
}

func (f *ForeignIssuer) kid() string {
	sum := sha256.Sum256(f.point())
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

func segment(v any) string { return base64.RawURLEncoding.EncodeToString(encode(v)) }

func encode(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("authntest: a claim has no JSON form: " + err.Error())
	}
	return raw
}
