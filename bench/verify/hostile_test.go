package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// attempt is a token, and whether a library must accept it.
type attempt struct {
	name, token string
	accepts     func(row) bool
}

func never(row) bool { return false }

// attempts returns tokens that are made from a good token, with the key that has signed it.
func attempts(t *testing.T, good string, key crypto.Signer) (all []attempt) {
	t.Helper()
	head, body := header(t, good), claims(t, good)
	alg := head["alg"].(string)
	method := jwt.GetSigningMethod(alg)
	add := func(name string, head, body map[string]any, method jwt.SigningMethod, key any, accepts func(row) bool) {
		t.Helper()
		token := &jwt.Token{Header: head, Claims: jwt.MapClaims(body), Method: method}
		raw, err := token.SignedString(key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, attempt{name, raw, accepts})
	}
	now := time.Now().Unix()
	claim := func(name string, accepts func(row) bool, changed map[string]any) {
		t.Helper()
		add(name, head, with(body, changed), method, key, accepts)
	}
	claim("again", func(r row) bool { return r.good(alg) }, nil)
	claim("expired", never, map[string]any{"iat": now - 3600, "exp": now - 3000})
	claim("expired two seconds ago", never, map[string]any{"iat": now - 300, "exp": now - 2})
	claim("for another audience", never, map[string]any{"aud": []string{"billing"}})
	claim("of another issuer", never, map[string]any{"iss": "https://elsewhere.test"})
	claim("without client_id", func(r row) bool { return r.good(alg) && !strings.Contains(r.needs, "--client-id") }, map[string]any{"client_id": nil})
	add("of the type JWT", with(head, map[string]any{"typ": "JWT"}), body, method, key, func(r row) bool { return r.verifies(alg) && r.typ != "checked" })

	for _, typ := range []string{"at+jwt", "JWT"} {
		for _, none := range []string{"none", "None", "NONE"} {
			add(typ+" with alg "+none, with(head, map[string]any{"typ": typ, "alg": none}), body, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, never)
		}
		for name, secret := range publicBytes(t, key.Public()) {
			add(typ+" with HS256 and the public key, "+name, with(head, map[string]any{"typ": typ, "alg": "HS256"}), body, jwt.SigningMethodHS256, secret, never)
		}
	}
	add("an unknown algorithm", with(head, map[string]any{"alg": "XS256"}), body, method, key, never)
	stranger := generate(t, key)
	add("signed by a stranger", head, body, method, stranger, never)
	jwk, err := json.Marshal(jose.JSONWebKey{Key: stranger.Public(), KeyID: head["kid"].(string), Algorithm: alg})
	if err != nil {
		t.Fatal(err)
	}
	add("signed by the key in the header", with(head, map[string]any{"jwk": json.RawMessage(jwk)}), body, method, stranger, never)

	parts := strings.Split(good, ".")
	changed, err := json.Marshal(with(body, map[string]any{"roles": []string{"admin", "root"}}))
	if err != nil {
		t.Fatal(err)
	}
	return append(all,
		attempt{"with other claims", parts[0] + "." + base64.RawURLEncoding.EncodeToString(changed) + "." + parts[2], never},
		attempt{"without a signature", parts[0] + "." + parts[1] + ".", never},
		attempt{"in two parts", parts[0] + "." + parts[1], never},
		attempt{"no token", "nonsense", never})
}

// with returns a copy of fields with changes; nil removes a field.
func with(fields, changes map[string]any) map[string]any {
	changed := maps.Clone(fields)
	for name, value := range changes {
		if changed[name] = value; value == nil {
			delete(changed, name)
		}
	}
	return changed
}

// publicBytes returns the forms in which a library may take the public key for a secret.
func publicBytes(t *testing.T, key crypto.PublicKey) map[string][]byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	all := map[string][]byte{"DER": der, "JWK": jwk, "PEM": text, "PEM in one line less": []byte(strings.TrimSpace(string(text)))}
	if raw, ok := key.(ed25519.PublicKey); ok {
		all["raw"] = raw
	}
	return all
}

// generate returns a new key of the type of a key.
func generate(t *testing.T, like crypto.Signer) (key crypto.Signer) {
	t.Helper()
	var err error
	switch like.(type) {
	case ed25519.PrivateKey:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case *ecdsa.PrivateKey:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case *rsa.PrivateKey:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil || key == nil {
		t.Fatalf("%T: %v", like, err)
	}
	return key
}
