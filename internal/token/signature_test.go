package token

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token/tokentest"
)

type jwsGroup struct {
	Comment string         `json:"comment"`
	Public  map[string]any `json:"public"`
	Tests   []struct {
		ID      int    `json:"tcId"`
		Comment string `json:"comment"`
		JWS     string `json:"jws"`
		Result  string `json:"result"`
	} `json:"tests"`
}

// TestWycheproofJWS runs Parse's check of the signature on the vectors for JSON Web
// Signatures. FromJWK must refuse a group's key if the key has an unknown algorithm or
// is for encryption. The test skips groups with a shared secret in place of a public
// key.
func TestWycheproofJWS(t *testing.T) {
	var file struct {
		TestGroups []jwsGroup `json:"testGroups"`
	}
	if err := json.Unmarshal(tokentest.Vectors(t, "json_web_signature_test.json"), &file); err != nil {
		t.Fatal(err)
	}
	checked := map[Algorithm]int{}
	for _, group := range file.TestGroups {
		if group.Public == nil {
			continue
		}
		jwk := vectorJWK(group.Public)
		key, err := FromJWK(jwk)
		if alg, unknown := ParseAlgorithm(jwk.GetAlg()); unknown != nil || jwk.GetUse() == "enc" {
			if err == nil {
				t.Errorf("%s: FromJWK accepted a key for algorithm %q, use %q", group.Comment, alg, jwk.GetUse())
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", group.Comment, err)
			continue
		}
		for _, test := range group.Tests {
			p, ok := split(test.JWS)
			_, undecodable := segments.DecodeString(p.payload)
			if got := ok && key.verify(p) == nil && undecodable == nil; got != (test.Result == "valid") {
				t.Errorf("%s, test %d, %s: signature accepted: %v, want a result of %s", group.Comment, test.ID, test.Comment, got, test.Result)
			}
			checked[key.Algorithm()]++
		}
	}
	t.Logf("checked %v", checked)
	if checked[ES256] == 0 || checked[RS256] == 0 {
		t.Error("the file has no vectors for ES256 or RS256")
	}
}

// vectorJWK converts a vector's key, and sets kid to the id from NewPublicKey.
func vectorJWK(members map[string]any) *watchwordv1.JsonWebKey {
	text := func(name string) string { s, _ := members[name].(string); return s }
	jwk := &watchwordv1.JsonWebKey{
		Kty: text("kty"), Use: text("use"), Alg: text("alg"),
		Crv: text("crv"), X: text("x"), Y: text("y"), N: text("n"), E: text("e"),
	}
	if key, err := decodeJWK(jwk); err == nil {
		if public, err := NewPublicKey(key); err == nil {
			jwk.Kid = public.KID()
		}
	}
	return jwk
}

// TestWycheproofEd25519 runs Parse's check of the signature on the vectors for Ed25519.
// The vectors for JSON Web Signatures contain no EdDSA.
func TestWycheproofEd25519(t *testing.T) {
	var file struct {
		TestGroups []struct {
			PublicKey struct {
				PK string `json:"pk"`
			} `json:"publicKey"`
			Tests []struct {
				ID      int    `json:"tcId"`
				Comment string `json:"comment"`
				Msg     string `json:"msg"`
				Sig     string `json:"sig"`
				Result  string `json:"result"`
			} `json:"tests"`
		} `json:"testGroups"`
	}
	if err := json.Unmarshal(tokentest.Vectors(t, "ed25519_test.json"), &file); err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, group := range file.TestGroups {
		key, err := NewPublicKey(ed25519.PublicKey(unhex(t, group.PublicKey.PK)))
		if err != nil {
			t.Errorf("key %s: %v", group.PublicKey.PK, err)
			continue
		}
		for _, test := range group.Tests {
			signature := base64.RawURLEncoding.EncodeToString(unhex(t, test.Sig))
			err := key.verify(parts{input: string(unhex(t, test.Msg)), signature: signature})
			if (err == nil) != (test.Result == "valid") {
				t.Errorf("test %d, %s: error %v, want a result of %s", test.ID, test.Comment, err, test.Result)
			}
			checked++
		}
	}
	if checked == 0 {
		t.Error("the file has no vectors")
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
