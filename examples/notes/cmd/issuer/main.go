// Command issuer takes the place of a platform, such as Kubernetes, on a laptop: issuer writes a
// token that says which process the reader is, and the public key to check the token with.
//
//	issuer --dir platform --subject notes
//
// The first run makes a key in DIR/key.pem. Each run writes DIR/jwks.json, which Watchword has to
// trust (watchword issuer add), and DIR/token, which lives for an hour: run the command again for
// a new token. A real platform renews the token by itself, and no other program can read the
// platform's key.
package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// lifetime is the lifetime of a token: long enough to try the example.
const lifetime = time.Hour

type config struct {
	dir, issuer, subject, audience string
}

func main() {
	var c config
	flag.StringVar(&c.dir, "dir", "platform", "folder of the files")
	flag.StringVar(&c.issuer, "issuer", "https://laptop.example", "name of the platform (claim iss)")
	flag.StringVar(&c.subject, "subject", "notes", "name of the process that reads the token (claim sub)")
	flag.StringVar(&c.audience, "audience", "http://127.0.0.1:8080", "issuer of the Watchword server (claim aud)")
	flag.Parse()
	if err := c.write(time.Now()); err != nil {
		fmt.Fprintln(os.Stderr, "issuer:", err)
		os.Exit(1)
	}
	fmt.Printf("issuer: wrote %s and %s\n", filepath.Join(c.dir, "jwks.json"), filepath.Join(c.dir, "token"))
}

// write writes the public key and a new token.
func (c config) write(now time.Time) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	key, err := signingKey(filepath.Join(c.dir, "key.pem"))
	if err != nil {
		return err
	}
	public := key.Public().(ed25519.PublicKey)
	sum := sha256.Sum256(public)
	kid := base64.RawURLEncoding.EncodeToString(sum[:12])
	jwks := map[string]any{"keys": []any{map[string]any{ // RFC 8037 section 2
		"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": base64.RawURLEncoding.EncodeToString(public),
	}}}
	signed := segment(map[string]any{"alg": "EdDSA", "typ": "JWT", "kid": kid}) + "." + segment(map[string]any{
		"iss": c.issuer, "sub": c.subject, "aud": []string{c.audience}, "iat": now.Unix(), "exp": now.Add(lifetime).Unix(),
	})
	token := signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, []byte(signed)))
	return errors.Join(
		replace(filepath.Join(c.dir, "jwks.json"), encode(jwks)),
		replace(filepath.Join(c.dir, "token"), []byte(token)),
	)
}

// signingKey returns the key in the file at path, and makes the file if there is none.
func signingKey(path string) (ed25519.PrivateKey, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newKey(path)
	}
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(content); block != nil {
		if parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if key, ok := parsed.(ed25519.PrivateKey); ok {
				return key, nil
			}
		}
	}
	return nil, fmt.Errorf("%s holds no Ed25519 key: remove the file for a new key", path)
}

func newKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, replace(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// replace writes a file whole, so that a reader never sees a part.
func replace(path string, content []byte) error {
	draft := path + ".tmp"
	if err := os.WriteFile(draft, content, 0o600); err != nil {
		return err
	}
	return os.Rename(draft, path)
}

func segment(v any) string { return base64.RawURLEncoding.EncodeToString(encode(v)) }

func encode(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // never happens: maps of strings and numbers have a JSON form
	}
	return raw
}
