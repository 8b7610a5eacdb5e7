// Package opa tests the policy of deploy/opa by OPA itself, on tokens of a real server. The package
// is a module of its own, because OPA is large.
package opa

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown/cache"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const (
	root     = "../../.."
	policies = root + "/deploy/opa"
	list     = "/notes.v1.NotesService/ListNotes"
	add      = "/notes.v1.NotesService/AddNote"
	public   = "/notes.v1.NotesService/About"
)

var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "watchword-opa-")
	if err != nil {
		return "", err
	}
	built = dir
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "watchword"), "./cmd/watchword")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	return filepath.Join(dir, "watchword"), cmd.Run()
})

var built string // the folder of the server's program

func TestMain(m *testing.M) {
	status := m.Run()
	_ = os.RemoveAll(built)
	os.Exit(status)
}

// server is a running Watchword server.
type server struct {
	dir, http string
	auth      watchwordv1.AuthServiceClient
	password  string // the password of the user admin
}

// run runs a command of watchword on the database of s.
func (s *server) run(t *testing.T, stdin string, args ...string) {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdin = s.dir, strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("watchword %q: %v\n%s", args, err, out)
	}
}

// serve starts a server on free ports, with an empty database in the server's folder.
func serve(t *testing.T, flags ...string) *server {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{dir: t.TempDir()}
	cmd := exec.Command(path, append([]string{"serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0",
		"--audience", "internal", "--audience", "press", "--initial-password-file", "password"}, flags...)...)
	cmd.Dir = s.dir
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	ready := regexp.MustCompile(`\bready\b.*\bgrpc=(\S+) http=(\S+)`)
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if m := ready.FindStringSubmatch(lines.Text()); m != nil {
			go func() {
				for lines.Scan() { // so that the server never waits for a reader of its log
				}
			}()
			conn, err := grpc.NewClient(m[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			password, err := os.ReadFile(filepath.Join(s.dir, "password"))
			if err != nil {
				t.Fatal(err)
			}
			s.http, s.auth, s.password = "http://"+m[2], watchwordv1.NewAuthServiceClient(conn), strings.TrimSpace(string(password))
			return s
		}
	}
	t.Fatal("the server ended before the line ready")
	return nil
}

// token returns a new access token of the user admin.
func (s *server) token(t *testing.T, audience ...string) string {
	t.Helper()
	return s.login(t, &watchwordv1.LoginRequest{Username: "admin", Password: s.password, Audience: audience})
}

// login returns the access token of a login.
func (s *server) login(t *testing.T, req *watchwordv1.LoginRequest) string {
	t.Helper()
	resp, err := s.auth.Login(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetTokens().GetAccessToken()
}

// opa is OPA with the policy of deploy/opa, and with settings for a server.
type opa struct {
	query rego.PreparedEvalQuery
	cache cache.InterQueryCache
}

func newOPA(t *testing.T, issuer, jwksURI string) *opa {
	t.Helper()
	text, err := os.ReadFile(policies + "/watchword.rego")
	if err != nil {
		t.Fatal(err)
	}
	data := map[string]any{"settings": map[string]any{"issuer": issuer, "jwks_uri": jwksURI, "audience": "internal"}}
	query, err := rego.New(rego.Query("data.watchword.allow"), rego.Module("watchword.rego", string(text)), rego.StrictBuiltinErrors(true),
		rego.Store(inmem.NewFromObject(data))).PrepareForEval(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	config, err := cache.ParseCachingConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return &opa{query, cache.NewInterQueryCacheWithContext(ctx, config)}
}

// opa returns OPA for the tokens of a server.
func (s *server) opa(t *testing.T) *opa {
	t.Helper()
	return newOPA(t, s.http, s.http+"/.well-known/jwks.json")
}

// allows asks OPA about a call with values of the metadata authorization, at a time from now.
func (o *opa) allows(t *testing.T, after time.Duration, method string, authorization ...string) bool {
	t.Helper()
	input := map[string]any{"method": method, "authorization": authorization}
	results, err := o.query.Eval(t.Context(), rego.EvalInput(input), rego.EvalTime(time.Now().Add(after)),
		rego.EvalInterQueryBuiltinCache(o.cache))
	if err != nil {
		t.Logf("OPA: %v", err) // OPA fails closed: the caller of OPA takes this error for a refusal
		return false
	}
	return results.Allowed()
}

// OPA judges tokens of every algorithm as the policy says.
func TestTokens(t *testing.T) {
	for _, algorithm := range []string{"EdDSA", "ES256", "RS256"} {
		t.Run(algorithm, func(t *testing.T) {
			s := serve(t, "--signing-alg", algorithm)
			o, token := s.opa(t), s.token(t)
			good := "Bearer " + token
			head, signature, _ := strings.Cut(token[strings.Index(token, ".")+1:], ".")
			forged := "Bearer " + token[:strings.Index(token, ".")+1] + head + "." + strings.Repeat("A", len(signature))
			for _, c := range []struct {
				what          string
				want          bool
				after         time.Duration
				method        string
				authorization []string
			}{
				{"a valid token", true, 0, list, []string{good}},
				{"the scheme in lower case", true, 0, list, []string{"bearer " + token}},
				{"a token with the role", true, 0, add, []string{good}},
				{"before the expiry", true, 270 * time.Second, list, []string{good}},
				{"after the expiry", false, 301 * time.Second, list, []string{good}},
				{"another audience", false, 0, list, []string{"Bearer " + s.token(t, "press")}},
				{"an admin's token for the server", false, 0, list, []string{"Bearer " + s.token(t, "watchword")}},
				{"a forged signature", false, 0, list, []string{forged}},
				{"no JWT", false, 0, list, []string{"Bearer rubbish"}},
				{"no token", false, 0, list, nil},
				{"two values", false, 0, list, []string{good, good}},
				{"another scheme", false, 0, list, []string{"Basic " + token}},
				{"a method without a rule", false, 0, "/notes.v1.NotesService/Other", []string{good}},
				{"a public method without a token", true, 0, public, nil},
			} {
				if got := o.allows(t, c.after, c.method, c.authorization...); got != c.want {
					t.Errorf("%s: %v, want %v", c.what, got, c.want)
				}
			}
			if newOPA(t, "https://other.example", s.http+"/.well-known/jwks.json").allows(t, 0, list, good) {
				t.Error("a token of another issuer is accepted")
			}
			for _, uri := range []string{"http://127.0.0.1:1/jwks.json", s.http + "/readyz"} {
				if newOPA(t, s.http, uri).allows(t, 0, list, good) {
					t.Errorf("a token is accepted without a key set, from %s", uri)
				}
			}
		})
	}
}

// A user without the role is refused.
func TestRoles(t *testing.T) {
	s := serve(t)
	const password = "a password of bob"
	s.run(t, password, "user", "create", "bob", "--password-stdin")
	o, bob := s.opa(t), "Bearer "+s.login(t, &watchwordv1.LoginRequest{Username: "bob", Password: password})
	if !o.allows(t, 0, list, bob) || o.allows(t, 0, add, bob) {
		t.Error("the roles of the token do not decide")
	}
}

// OPA trusts a withdrawn key until OPA reads the key set again, and then no longer. The key that
// signs after the withdrawal is accepted at once: it was in the key set before.
func TestWithdrawnKey(t *testing.T) {
	s := serve(t)
	o, before := s.opa(t), "Bearer "+s.token(t)
	if !o.allows(t, 0, list, before) { // reads the key set
		t.Fatal("the token is refused")
	}
	head, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(strings.Split(before, ".")[0], "Bearer "))
	if err != nil {
		t.Fatal(err)
	}
	var header struct{ Kid string }
	if err := json.Unmarshal(head, &header); err != nil {
		t.Fatal(err)
	}
	s.run(t, "", "key", "revoke", "--", header.Kid)
	for err == nil { // the running server reads the withdrawal from the database within a second
		_, err = s.auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: strings.TrimPrefix(before, "Bearer ")})
	}
	if !o.allows(t, 30*time.Second, list, before) {
		t.Error("the key set is read again before --jwks-max-age")
	}
	after := "Bearer " + s.token(t)
	if !o.allows(t, 30*time.Second, list, after) {
		t.Error("the key that signs now was not in the key set before")
	}
	if o.allows(t, 90*time.Second, list, before) {
		t.Error("a withdrawn key is trusted after the key set was read again")
	}
	if !o.allows(t, 90*time.Second, list, after) {
		t.Error("the key that signs now is refused")
	}
}
