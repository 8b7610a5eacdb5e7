package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// plant returns secrets by name, and each secret in every form that the search knows, by
// names with a space.
func plant() map[string][]byte {
	token := func(n int) string {
		raw := make([]byte, n)
		rand.Read(raw)
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	key, signature := token(32), token(64)
	planted := map[string][]byte{}
	for what, secret := range map[string]string{
		"password": "e2e-" + rand.Text(), "short": "shrt7qz", "odd": `pass "word" & ß \ ` + rand.Text(),
		"refresh": "wwrt_" + token(40), "access": "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ1In0." + signature, "key": "wwmk1_" + key,
	} {
		quoted, _ := json.Marshal(secret)
		for form, text := range map[string]string{
			"plain": secret, "hex": hex.EncodeToString([]byte(secret)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(secret))),
			"JSON": string(quoted), "query": url.QueryEscape(secret), "path": url.PathEscape(secret), "Go": strconv.Quote(secret), "ASCII": strconv.QuoteToASCII(secret),
		} {
			planted[what+" "+form] = []byte(text)
		}
		for skip := range 3 { // other bytes come before
			for name, encoding := range map[string]*base64.Encoding{"base64": base64.StdEncoding, "base64url": base64.RawURLEncoding} {
				planted[fmt.Sprint(what, " ", name, " ", skip)] = []byte(encoding.EncodeToString([]byte("xx"[:skip] + secret + "after")))
			}
		}
		planted[what] = []byte(secret)
	}
	planted["key bytes"], planted["key bytes in hex"] = unbase64(key), []byte(hex.EncodeToString(unbase64(key)))
	planted["signature bytes"] = unbase64(signature)
	return planted
}

// The search finds a secret in every form and at every place, names the place, and finds
// nothing else.
func TestSearchFindsSecrets(t *testing.T) {
	planted := plant()
	known := newSecretSet()
	for what, secret := range planted {
		if !strings.Contains(what, " ") {
			known.note(string(secret))
		}
	}
	dir := t.TempDir()
	for what, text := range planted {
		if what == "short base64 1" || what == "short base64url 1" {
			continue // three bytes of the secret in one group of four base64 characters: chance would find such a text
		}
		e, err := newEvidence(dir)
		if err != nil {
			t.Fatal(err)
		}
		const edge = 1 << 10 // a piece of the search ends here
		e.piece = edge
		for _, at := range []int{0, 7, edge - 30, edge - len(text)/2, edge} {
			page := bytes.Repeat([]byte{'.'}, edge+200)
			e.keep("page", fmt.Sprint("page ", at), append(page[:at:at], append(bytes.Clone(text), page[at:]...)...))
		}
		e.keep("page", "an innocent page", []byte("watchword wwrt_ wwmk1_ eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ1In0. 1234567890abcdef"))
		err = e.search(known)
		for _, at := range []int{0, 7, edge - 30, edge - len(text)/2, edge} {
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("page: page %d: ", at)) {
				t.Errorf("%s at %d is not found: %.200v", what, at, err)
			}
		}
		if err != nil && strings.Contains(err.Error(), "innocent") {
			t.Errorf("%s: found in an innocent page: %v", what, err)
		}
		e.file.Close()
	}
}

// The answers, the log and the database of a server become evidence, in which the tests look for
// secrets. An answer with tokens does not become evidence.
func TestEvidenceIsKept(t *testing.T) {
	before := left.kinds()
	t.Run("a server", func(t *testing.T) {
		s := serve(t, t.TempDir(), "--log-level", "debug")
		c := dial(t, s.grpcAddr)
		admin := c.login(t, "admin", s.admin)
		wantRefusal(t, "a login with a wrong password", c.tryLogin(callCtx(t), "admin", newPassword()), "INVALID_CREDENTIALS")
		stream, err := c.WatchBundle(callCtx(t), &watchwordv1.WatchBundleRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		wantExit(t, 0, cli(t, s.dir, "", "user", "list", "--datastore-uri", database(s.dir)))
		wantExit(t, 0, cli(t, s.dir, s.admin, "login", "admin", "--plaintext", "--addr", s.grpcAddr))
		if leaks("Bearer "+admin.GetAccessToken()) == nil {
			t.Error("the access token is not among the secrets")
		}
	})
	after := left.kinds()
	for kind, least := range map[string]int{"log": 1, "output": 1, "SQLite file": 2, "HTTP page": 4, "error": 1} {
		if n := after[kind] - before[kind]; n < least {
			t.Errorf("%d new exhibits are a %s, want %d", n, kind, least)
		}
	}
	if n := after["output"] - before["output"]; n != 1 {
		t.Errorf("%d outputs, want that of user list alone", n)
	}
}
