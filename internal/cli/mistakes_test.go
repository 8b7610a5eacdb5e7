package cli_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A command with a mistyped --datastore-uri makes no database, and names the file. Only
// serve and migrate make a database.
func TestAMistypedDatabaseIsNotMade(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "mistyped.db")
	flag := "--datastore-uri=sqlite:" + path
	for _, args := range [][]string{
		{"user", "list", flag}, {"user", "create", "alice", flag}, {"user", "disable", "alice", flag},
		{"user", "enable", "alice", flag}, {"user", "set-password", "alice", flag}, {"user", "delete", "alice", flag}, {"user", "set-roles", "alice", "--no-roles", flag},
		{"key", "list", flag}, {"key", "rotate", flag}, {"key", "revoke", "kid", flag}, {"key", "reseal", flag}, {"audit", flag},
		{"datastore", "restored", flag}, {"datastore", "rekey", "--master-key-is-lost", flag}, {"datastore", "copy", "sqlite:" + path, "postgres://nowhere.invalid/db"},
		{"backup", filepath.Join(folder, "backup"), flag},
	} {
		fails(t, 1, "there is no database "+path+": ", "a password of alice", args...)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("the commands left %v, %v", left, err)
	}
	other := filepath.Join(folder, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, 1, "is not a watchword database", "", "user", "list", "--datastore-uri=sqlite:"+other)
	if text, err := os.ReadFile(other); err != nil || strings.TrimSpace(string(text)) != "" {
		t.Errorf("the file of another program holds %q, %v", text, err)
	}
}

// An environment variable that is set to nothing counts as not set, for every kind of flag.
func TestAnEmptyVariableCountsAsNotSet(t *testing.T) {
	db := database(t)
	for _, name := range []string{"AUDIENCE", "SINCE", "LIMIT", "JSON", "TYPE", "USER", "ROLE", "PASSWORD_STDIN", "MIN_PASSWORD_LENGTH", "ACCESS_TTL", "HASH_MEMORY", "ALG"} {
		t.Setenv("WATCHWORD_"+name, "")
	}
	t.Setenv("WATCHWORD_DATASTORE_URI", strings.TrimPrefix(db, "--datastore-uri="))
	done(t, "a password of alice", "user", "create", "alice")
	done(t, "", "audit")
	t.Setenv("WATCHWORD_DATASTORE_URI", "")
	t.Chdir(t.TempDir())
	fails(t, 1, "there is no database", "", "user", "list") // the file of the default --datastore-uri
}

// A variable with nearly the name of a variable of this program gets a suggestion. The value
// is not shown. Variables that Kubernetes sets for a service named watchword get none.
func TestAMisspelledVariableGetsASuggestion(t *testing.T) {
	db := database(t)
	for _, name := range []string{"WATCHWORD_SERVICE_HOST", "WATCHWORD_PORT", "WATCHWORD_PORT_50051_TCP_ADDR", "WATCHWORD_SERVICE_PORT_GRPC", "WATCHWORD_GRPC_PORT", "WATCHWORD_HTTP_SERVICE_HOST"} {
		t.Setenv(name, "tcp://10.0.0.1:50051")
	}
	if r := run(t, "", "user", "list", db); r.status != 0 || r.err != "" {
		t.Errorf("with the variables of Kubernetes: %+v", r)
	}
	for wrong, right := range map[string]string{
		"WATCHWORD_GRPC_ADR": "WATCHWORD_GRPC_ADDR", "WATCHWORD_DATASTORE_URL": "WATCHWORD_DATASTORE_URI", "WATCHWORD_CLIENTCA": "WATCHWORD_CLIENT_CA",
		"WATCHWORD_TRUSTED_PROXYS": "WATCHWORD_TRUSTED_PROXY", "watchword_issuer": "WATCHWORD_ISSUER", "WATCHWARD_ISSUER": "WATCHWORD_ISSUER",
	} {
		t.Run(wrong, func(t *testing.T) {
			t.Setenv(wrong, "S3cret")
			want := "watchword: the environment variable " + wrong + " sets nothing; did you mean " + right + "?\n"
			if r := run(t, "", "user", "list", db); r.status != 0 || r.err != want {
				t.Errorf("%+v, want %q", r, want)
			}
		})
	}
}

// A duration may have days.
func TestDurationsHaveDays(t *testing.T) {
	t.Parallel()
	db := database(t)
	for _, good := range []string{"30d", "0d", "1d12h", "36h", "106751d"} {
		done(t, "", "audit", "--since="+good, db)
	}
	for _, bad := range []string{"d", "30", "1.5d", "-1d", "1d-1h", "1d2d", "106752d", "99999999999d", "1d1x", "106751d24h"} {
		fails(t, 2, "--since: expected a duration such as 90s, 12h or 30d", "", "audit", "--since="+bad, db)
	}
	fails(t, 2, "--refresh-ttl: must not be shorter than --access-ttl", "", "serve", "--access-ttl=2d", "--refresh-ttl=1d", "--session-ttl=90d", db)
}

// An id that begins with "-", from before such ids were avoided, is accepted after "--" or
// "=", and the error of a command without either says so.
func TestAnIDThatBeginsWithADash(t *testing.T) {
	t.Parallel()
	db := withKeys(t)
	for _, args := range [][]string{
		{"key", "revoke", "-abcdefghijklmno"}, {"key", "revoke", "--bcdefghijklmno"}, {"key", "revoke", "-hello"},
		{"audit", "--session", "-abcdefghijklmno"}, {"audit", "--user-id", "-abcdefghijklmno"},
	} {
		fails(t, 2, map[string]string{"key": "put -- before", "audit": "write " + args[1] + "="}[args[0]], "", append(args, db)...)
	}
	fails(t, 1, "no such signing key", "", "key", "revoke", db, "--", "-abcdefghijklmno")
	done(t, "", "audit", "--session=-abcdefghijklmno", db)
	done(t, "", "audit", "--user-id=-abcdefghijklmno", db)
}

// A database or a master key file that every user may write to, or may replace, is refused.
// The group is no stranger: platforms give volumes to a group.
func TestFilesThatEveryUserMayWrite(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("outside of Unix a mode does not tell which users may write")
	}
	db := withKeys(t)
	path := strings.TrimPrefix(db, "--datastore-uri=sqlite:")
	commands := map[string][][]string{
		path:                 {{"user", "list", db}, {"backup", filepath.Join(t.TempDir(), "backup"), db}, {"migrate", db}, {"serve", db, "--grpc-addr=127.0.0.1:none"}},
		path + ".master-key": {{"key", "rotate", db}, {"key", "reseal", "--new-master-key", db}, {"datastore", "restored", db}, {"serve", db, "--grpc-addr=127.0.0.1:none"}},
		filepath.Dir(path):   {{"user", "list", db}, {"serve", db, "--grpc-addr=127.0.0.1:none"}},
	}
	for file, refused := range commands {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, bits := range []os.FileMode{0o002, 0o022, 0o006} {
			if err := os.Chmod(file, info.Mode().Perm()|bits); err != nil {
				t.Fatal(err)
			}
			for _, args := range refused {
				fails(t, 1, "run chmod o-w "+file, "", args...)
			}
		}
		if err := os.Chmod(file, info.Mode().Perm()|0o070); err != nil {
			t.Fatal(err)
		}
		done(t, "", "key", "rotate", db)
		if err := os.Chmod(file, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}

// An error of the connection names the flag that mends the error.
func TestTheErrorOfAConnectionNamesTheFlag(t *testing.T) {
	t.Parallel()
	flags, _, _ := serve(t)
	addr := flags[1]
	secure := httptest.NewUnstartedServer(nil)
	secure.EnableHTTP2 = true
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	tlsAddr := "--addr=" + secure.Listener.Addr().String()
	folder := t.TempDir()
	others, own := filepath.Join(folder, "others.pem"), filepath.Join(folder, "own.pem")
	for file, der := range map[string][]byte{others: certificate(t), own: secure.Certificate().Raw} {
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fails(t, 1, "give --plaintext if the server is on this machine", "token", "verify", addr)
	fails(t, 1, "name the CA of the server's certificate by --ca-file", "token", "verify", tlsAddr)
	fails(t, 1, "the CA in --ca-file has not signed", "token", "verify", tlsAddr, "--ca-file="+others)
	fails(t, 1, "if the server has TLS, leave out --plaintext", "token", "verify", tlsAddr, "--plaintext")
	fails(t, 1, "give a name of the server's certificate by --server-name", "token", "verify", tlsAddr, "--ca-file="+own, "--server-name=elsewhere.test")
	fails(t, 1, "404", "token", "verify", tlsAddr, "--ca-file="+own, "--server-name=example.com") // the connection by TLS succeeds
}

// certificate returns a new certificate of no server.
func certificate(t *testing.T) []byte {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, of, of, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
