// Package tokentest holds access tokens, good and hostile, as data. The tests of every
// layer, from package token to the RPCs, check the same tokens. The package serves
// tests alone, and neither makes nor checks tokens.
package tokentest

import (
	_ "embed"
	"encoding/json"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// VectorsEnv names an environment variable. The variable holds the path of Project
// Wycheproof's folder testvectors_v1.
const VectorsEnv = "WATCHWORD_TEST_VECTORS"

//go:embed tokens.json
var tokens []byte

// [Case.Want] and [Case.Parse] have these values; Want can also be the reason of an error.
const (
	OK      = "ok"      // a value of Case.Want and of Case.Parse
	Invalid = "invalid" // a value of Case.Parse alone
)

// Suite holds the tokens, and the settings of a verifier for the tokens.
type Suite struct {
	Comment     string
	Issuer      string
	Audience    string        // the verifier's audience
	Now         time.Time     // within a minute of the start of testing/synctest's clock
	MaxLifetime time.Duration // the longest lifetime that the issuer allows
	Keys        []Key         // a key for each algorithm
	Cases       []Case
}

// Key holds a key of the suite's issuer.
type Key struct {
	JWK   *watchwordv1.JsonWebKey
	PKCS8 []byte // the private key, public because no service uses the key
}

// Case holds a token and the expected results of the checks.
type Case struct {
	Name  string `json:"name"`
	Token string `json:"token"`
	Want  string `json:"want"`  // the result of the whole verification: OK or an error reason
	Parse string `json:"parse"` // the result of token.Parse alone: OK or Invalid
	// Delegated is true for a good token with actors, which a method is allowed to refuse.
	Delegated bool `json:"delegated,omitempty"`
}

// file holds the content of tokens.json.
type file struct {
	Comment     string    `json:"comment"`
	Issuer      string    `json:"issuer"`
	Audience    string    `json:"audience"`
	Now         time.Time `json:"now"`
	MaxLifetime string    `json:"max_lifetime"`
	Keys        []struct {
		JWK   map[string]string `json:"jwk"`
		PKCS8 []byte            `json:"pkcs8"`
	} `json:"keys"`
	Cases []Case `json:"cases"`
}

// Load returns the suite. Each call returns a new copy: the caller may change the copy.
func Load(t testing.TB) Suite {
	t.Helper()
	var f file
	if err := json.Unmarshal(tokens, &f); err != nil {
		t.Fatalf("tokens.json: %v", err)
	}
	lifetime, err := time.ParseDuration(f.MaxLifetime)
	if err != nil {
		t.Fatalf("tokens.json: %v", err)
	}
	s := Suite{
		Comment: f.Comment, Issuer: f.Issuer, Audience: f.Audience,
		Now: f.Now, MaxLifetime: lifetime, Cases: f.Cases,
	}
	for _, k := range f.Keys {
		s.Keys = append(s.Keys, Key{JWK: message(k.JWK), PKCS8: k.PKCS8})
	}
	return s
}

func message(j map[string]string) *watchwordv1.JsonWebKey {
	return &watchwordv1.JsonWebKey{
		Kty: j["kty"], Kid: j["kid"], Use: j["use"], Alg: j["alg"],
		Crv: j["crv"], X: j["x"], Y: j["y"], N: j["n"], E: j["e"],
	}
}

// Changes returns every text that differs from a good token by one character: each
// character replaced by every other character of base64url, by a dot and by a sign that no
// token has; left out; and written twice.
func Changes(good string) iter.Seq[string] {
	const signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.="
	return func(yield func(string) bool) {
		for at := range len(good) {
			before, own, after := good[:at], good[at:at+1], good[at+1:]
			for _, sign := range []byte(signs) {
				if string(sign) != own && !yield(before+string(sign)+after) {
					return
				}
			}
			if !yield(before+after) || !yield(before+own+own+after) {
				return
			}
		}
	}
}

// Good returns a good token for each algorithm.
func (s Suite) Good() map[string]string {
	good := map[string]string{}
	for _, c := range s.Cases {
		for _, k := range s.Keys {
			if c.Name == k.JWK.GetAlg() {
				good[c.Name] = c.Token
			}
		}
	}
	return good
}

// Vectors returns the content of a file of Project Wycheproof. Vectors skips the test
// if the environment variable [VectorsEnv] is empty.
func Vectors(t testing.TB, name string) []byte {
	t.Helper()
	folder := os.Getenv(VectorsEnv)
	if folder == "" {
		t.Skipf("%s is not set: it names the folder that holds Wycheproof's %s", VectorsEnv, name)
	}
	data, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Wycheproof returns every JWS of Project Wycheproof's vectors for JSON Web Signatures. Many of
// them have a good signature, but none has the type of an access token, so a verifier must refuse
// every JWS. The list leaves out the empty string, because a verifier reads the empty string
// as a missing token. Wycheproof skips the test as [Vectors] does.
func Wycheproof(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, name := range []string{"json_web_signature_test.json", "json_web_crypto_test.json"} {
		var file struct {
			TestGroups []struct {
				Tests []struct {
					JWS json.RawMessage `json:"jws"`
				} `json:"tests"`
			} `json:"testGroups"`
		}
		if err := json.Unmarshal(Vectors(t, name), &file); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, group := range file.TestGroups {
			for _, test := range group.Tests {
				// A JWS in the JSON serialization stays as an object's text.
				raw := string(test.JWS)
				if _ = json.Unmarshal(test.JWS, &raw); raw != "" {
					all = append(all, raw)
				}
			}
		}
	}
	if len(all) == 0 {
		t.Fatal("the vectors contain no JWS")
	}
	return all
}
