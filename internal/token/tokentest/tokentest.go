// Package tokentest holds access tokens, good and hostile, as data, so that every
// layer that a token passes through can be shown the same ones. It is for tests
// alone, and it knows nothing of how tokens are made or checked.
package tokentest

import (
	_ "embed"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// VectorsEnv names the environment variable that says in which folder the Project
// Wycheproof test vectors are (its testvectors_v1).
const VectorsEnv = "WATCHWORD_TEST_VECTORS"

//go:embed tokens.json
var tokens []byte

// What a Case may want.
const (
	OK      = "ok"      // of Want and of Parse
	Invalid = "invalid" // of Parse
)

// Suite is the tokens, and the world in which they are judged.
type Suite struct {
	Comment     string
	Issuer      string
	Audience    string        // what the judge is
	Now         time.Time     // within a minute of where the clock of testing/synctest starts
	MaxLifetime time.Duration // the issuer's longest
	Keys        []Key         // one of each algorithm
	Cases       []Case
}

// Key is a key of the suite's issuer.
type Key struct {
	JWK   *watchwordv1.JsonWebKey
	PKCS8 []byte // the private key, which guards nothing
}

// Case is one token. Want is OK or the error reason that a whole verification
// ends in; Parse is what is said of its form and signature alone, OK or Invalid.
type Case struct {
	Name  string `json:"name"`
	Token string `json:"token"`
	Want  string `json:"want"`
	Parse string `json:"parse"`
}

// file is the suite as tokens.json spells it.
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

// Load returns the suite. What it returns is the caller's own.
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

// Vectors returns a file of Project Wycheproof, and skips the test if no folder is
// named in the environment variable VectorsEnv.
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

// Wycheproof returns every JWS of the vectors for JSON Web Signatures. Many are
// well signed, none is an access token, and so all must be refused as one. The
// empty string among them is left out, because callers take that for no token at
// all. It skips the test as Vectors does.
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
				// Some are in the JSON serialization, as an object.
				raw := string(test.JWS)
				if _ = json.Unmarshal(test.JWS, &raw); raw != "" {
					all = append(all, raw)
				}
			}
		}
	}
	if len(all) == 0 {
		t.Fatal("no JWS in the vectors")
	}
	return all
}
