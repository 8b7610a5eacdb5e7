package verify

import (
	"bufio"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

const audience = "internal"

var built string // the folder of the program; empty before the first test that needs the program

// watchword builds the program once.
var watchword = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "watchword-verify-")
	if err != nil {
		return "", err
	}
	built = dir
	cmd := exec.Command("go", "build", "-o", dir, "./cmd/watchword")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return filepath.Join(dir, "watchword"), nil
})

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "3") // the tests mostly wait for caches to expire
	code := m.Run()
	os.RemoveAll(built)
	os.Exit(code)
}

// server is a running `watchword serve`.
type server struct {
	Server
	dir, uri string
	http     string // the URL of the HTTP address
	auth     watchwordv1.AuthServiceClient
	password string
	keys     string // a folder with the public key KID.pem of each key
}

var ready = regexp.MustCompile(`msg=ready grpc=(\S+) http=(\S+)`)

// serve starts a server. The first signing key has the algorithm alg.
func serve(t *testing.T, alg string, args ...string) *server {
	t.Helper()
	program, err := watchword()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{dir: t.TempDir(), keys: t.TempDir()}
	s.uri = "sqlite:" + filepath.Join(s.dir, "w.db")
	password := filepath.Join(s.dir, "password")
	cmd := exec.Command(program, "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--datastore-uri", s.uri, "--audience", audience+",billing",
		"--signing-alg", alg, "--jwks-max-age", "1s", "--access-ttl", "1h", "--client-id", "web", "--initial-password-file", password)
	cmd.Args = append(cmd.Args, args...)
	cmd.Env = environment()
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	addresses := make(chan []string, 1)
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if match := ready.FindStringSubmatch(lines.Text()); match != nil {
				addresses <- match
			}
		}
	}()
	select {
	case match := <-addresses:
		conn, err := grpc.NewClient(match[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		s.auth = watchwordv1.NewAuthServiceClient(conn)
		s.http = "http://" + match[2]
		s.Server = Server{Issuer: s.http, Audience: audience, JWKS: s.http + "/.well-known/jwks.json"}
	case <-time.After(30 * time.Second):
		t.Fatal("the server is not ready")
	}
	text, err := os.ReadFile(password)
	if err != nil {
		t.Fatal(err)
	}
	s.password = strings.TrimSpace(string(text))
	return s
}

func environment() (env []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "WATCHWORD_") && !strings.HasPrefix(v, "OTEL_") {
			env = append(env, v)
		}
	}
	return env
}

// command runs a command on the database.
func (s *server) command(t *testing.T, args ...string) {
	t.Helper()
	program, err := watchword()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append(args, "--datastore-uri", s.uri)...)
	cmd.Env = environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func (s *server) login(t *testing.T, audience string) string {
	t.Helper()
	resp, err := s.auth.Login(t.Context(), &watchwordv1.LoginRequest{Username: "admin", Password: s.password, Audience: []string{audience}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetTokens().GetAccessToken()
}

// loginWith logs in until the access token has an algorithm, and a key other than those given.
func (s *server) loginWith(t *testing.T, alg string, others ...string) string {
	t.Helper()
	for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(100 * time.Millisecond) {
		raw := s.login(t, audience)
		if head := header(t, raw); head["alg"] == alg && !strings.Contains(strings.Join(others, " "), head["kid"].(string)) {
			s.exportKeys(t)
			return raw
		}
	}
	t.Fatalf("no key for %s signs", alg)
	return ""
}

// exportKeys writes the JWKS as PEM files, for libraries that read no JWKS.
func (s *server) exportKeys(t *testing.T) {
	t.Helper()
	resp, err := http.Get(s.JWKS)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var set struct{ Keys []*watchwordv1.JsonWebKey }
	if err := json.NewDecoder(resp.Body).Decode(&set); err != nil {
		t.Fatal(err)
	}
	for _, jwk := range set.Keys {
		key, err := token.FromJWK(jwk)
		if err != nil {
			t.Fatal(err)
		}
		der, err := key.MarshalPKIX()
		if err == nil {
			err = os.WriteFile(filepath.Join(s.keys, jwk.GetKid()+".pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// private returns a private key of the server, to sign tokens that the server would not sign.
func (s *server) private(t *testing.T, kid string) crypto.Signer {
	t.Helper()
	db, err := store.Open(t.Context(), s.uri)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	master, err := seal.Load(filepath.Join(s.dir, "w.db.master-key"))
	if err != nil {
		t.Fatal(err)
	}
	var private any
	err = db.Read(context.Background(), func(tx *store.Tx) error {
		rows, err := tx.SigningKeys()
		for _, row := range rows {
			if err == nil && row.KID == kid {
				var der []byte
				if der, err = master.Open("signing key", kid, row.SealedKey); err == nil {
					private, err = x509.ParsePKCS8PrivateKey(der)
				}
			}
		}
		return err
	})
	if err != nil || private == nil {
		t.Fatalf("the key %s: %v", kid, err)
	}
	return private.(crypto.Signer)
}

// part decodes a part of a token.
func part(t *testing.T, raw string, n int) (fields map[string]any) {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[n])
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fields
}

func header(t *testing.T, raw string) map[string]any { t.Helper(); return part(t, raw, 0) }
func claims(t *testing.T, raw string) map[string]any { t.Helper(); return part(t, raw, 1) }
