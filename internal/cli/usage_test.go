package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A command that is typed wrong ends with status 2 before it opens anything.
func TestWrongUsage(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	db := "--datastore-uri=sqlite:" + filepath.Join(folder, "watchword.db")
	keys, ca, privatePEM := issuerFiles(t)
	private := filepath.Join(t.TempDir(), "private.jwks")
	if err := os.WriteFile(private, []byte(`{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"k"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		says, stdin string
		args        []string
	}{
		{"expected one of", "", nil},
		{"unexpected argument (argument 1 of 1)", "", []string{"no-such-command"}},
		{`did you mean "serve"`, "", []string{"sevre"}},
		{"unknown flag (argument 2 of 2)", "", []string{"serve", "--no-such-flag"}},
		{`did you mean "--log-level"`, "", []string{"serve", "--log-levl=info"}},
		{"--addr: the value is missing", "", []string{"login", "eve", "--addr"}},
		{"--log-level", "", []string{"serve", "--log-level=loud"}},
		{"--access-ttl", "", []string{"serve", db, "--access-ttl=0s"}},
		{"--access-ttl", "", []string{"serve", db, "--access-ttl=soon"}},
		{"username: malformed", "", []string{"user", "create", "a b", db}},
		{"username: malformed", "", []string{"user", "delete", "", db}},
		{"--role: malformed", "", []string{"user", "create", "eve", "--role=Admin", db}},
		{"--no-roles", "", []string{"user", "set-roles", "eve", db}},
		{"--no-roles", "", []string{"user", "set-roles", "eve", "--role=a", "--no-roles", db}},
		{"--role: malformed", "", []string{"user", "set-roles", "eve", "--role=Admin", db}},
		{"unexpected argument (argument 4 of 5)", "", []string{"user", "create", "eve", "a-password", db}},
		{`did you mean one of "--password-list", "--password-stdin"`, "", []string{"user", "create", "eve", "--password=a-password", db}},
		{"--alg", "", []string{"key", "rotate", "--alg=none", db}},
		{"<kid>", "", []string{"key", "revoke", db}},
		{"one of --jwks-file, --jwks-uri and --discovery", "", []string{"issuer", "add", "ci", "--issuer=https://ci.example", db}},
		{"--jwks-uri", "", []string{"issuer", "add", "ci", "--issuer=https://ci.example", "--discovery", "--jwks-uri=https://ci.example", db}},
		{"--issuer", "", []string{"issuer", "add", "ci", "--discovery", db}},
		{"--jwks-file: ", "", []string{"issuer", "add", "ci", "--issuer=https://ci.example", "--jwks-file=" + filepath.Join(folder, "keys"), db}},
		{`--jwks-file: has no key that can be used: key 1 (kid "k") is private`, "", []string{"issuer", "add", "ci", "--issuer=https://ci.example", "--jwks-file=" + private, db}},
		{"--issuer-ca-file: has no certificate", "", []string{"issuer", "add", "ci", "--issuer=https://ci.example", "--discovery", "--issuer-ca-file=" + keys, db}},
		{"--issuer-ca-file: has a PEM block that is no certificate", "", []string{"issuer", "set", "ci", "--issuer-ca-file=" + privatePEM, db}},
		{"give what changes", "", []string{"issuer", "set", "ci", db}},
		{"--no-issuer-ca and --issuer-ca-file", "", []string{"issuer", "set", "ci", "--no-issuer-ca", "--issuer-ca-file=" + ca, db}},
		{"--subject", "", []string{"service", "bind", "orders", "--issuer=ci", db}},
		{"--claim: give NAME=TEXT", "", []string{"service", "bind", "orders", "--issuer=ci", "--subject=s", "--claim=name", db}},
		{"--claim: after := comes a number", "", []string{"service", "bind", "orders", "--issuer=ci", "--subject=s", "--claim=a:=text", db}},
		{"--claim: after := comes a number", "", []string{"service", "bind", "orders", "--issuer=ci", "--subject=s", "--claim=a:=[1]", db}},
		{"--claim: a JSON Pointer writes ~ as ~0", "", []string{"service", "bind", "orders", "--issuer=ci", "--subject=s", "--claim=/a~b=c", db}},
		{"<binding>", "", []string{"service", "unbind", "orders", db}},
		{"--user and --user-id", "", []string{"audit", "--user=alice", "--user-id=id", db}},
		{"must not be negative", "", []string{"audit", "--limit=-1", db}},
		{"--type: unknown event type; the types are login refresh ", "", []string{"audit", "--type=logins", db}},
		{"must not be negative", "", []string{"audit", "--since=-1h", db}},
		{"--since", "", []string{"audit", "--since=yesterday", db}},
		{"<file>", "", []string{"backup", db}},
		{"pg_dump", "", []string{"backup", filepath.Join(folder, "backup"), "--datastore-uri=postgres://nowhere/db"}},
		{"--plaintext and --ca-file", "a password", []string{"login", "eve", "--plaintext", "--ca-file=ca.pem"}},
		{"standard input is empty", "", []string{"verify"}},
		{"standard input is empty", " \r\n\t", []string{"logout"}},
		{"not the output of login", `{"access_token": 7}`, []string{"verify"}},
		{"not the output of login", `{"refresh_token": "wwrt_"}`, []string{"verify"}}, // no access token
		{"not the output of login", `{"access_token": "eyJ"}`, []string{"logout"}},    // no refresh token
		{"not the output of login", `{"access_token": "eyJ"`, []string{"verify"}},
		{"--addr", "token", []string{"verify", "--plaintext", "--addr=\x00"}},
	} {
		fails(t, 2, c.says, c.stdin, c.args...)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("wrong usage left %v, %v", left, err)
	}
}

// A command that is typed right and fails ends with status 1.
func TestFailures(t *testing.T) {
	t.Parallel()
	db := database(t)
	folder := t.TempDir()
	done(t, "a password of alice", "user", "create", "alice", db)
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		says, stdin string
		args        []string
	}{
		{"USER_EXISTS: the username is taken", "another password", []string{"user", "create", "ALICE", db}},
		{"fewer than", "short", []string{"user", "create", "eve", db}},
		{"empty", "", []string{"user", "create", "eve", db}},
		{"fewer than", "short", []string{"user", "set-password", "alice", db}},
		{"USER_NOT_FOUND: no such user: Eve", "", []string{"user", "disable", "Eve", db}},
		{"no such user: eve", "", []string{"user", "enable", "eve", db}},
		{"no such user: eve", "", []string{"user", "delete", "eve", db}},
		{"no such user: eve", "a password of eve", []string{"user", "set-password", "eve", db}},
		{"no such user: eve", "", []string{"audit", "--user=eve", db}},
		{"there is no database", "", []string{"user", "list", "--datastore-uri=sqlite:" + filepath.Join(folder, "no", "folder", "db")}},
		{"sqlite:FILE or postgres:", "", []string{"user", "list", "--datastore-uri=mysql://host/db"}},
		{"master-key", "", []string{"key", "rotate", db}}, // there is no master key file beside the database
		{"exists", "", []string{"key", "create-master-key", file}},
		{"exists already", "", []string{"backup", file, db}},
		{"--ca-file", "token", []string{"verify", "--ca-file=" + file}}, // not a certificate
	} {
		fails(t, 1, c.says, c.stdin, c.args...)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "content" {
		t.Errorf("the file that was there holds %q, %v", text, err)
	}
}

func TestMigrateAndBackup(t *testing.T) {
	t.Parallel()
	db, copied := database(t), filepath.Join(t.TempDir(), "copy.db")
	for range 2 { // the second time there is nothing to do
		if r := run(t, "", "migrate", db); r.status != 0 || r.out != "" || !strings.Contains(r.err, "up to date") {
			t.Errorf("migrate: %+v", r)
		}
	}
	id := done(t, "a password of alice", "user", "create", "alice", db)
	if r := run(t, "", "backup", copied, db); r.status != 0 || r.out != "" || !strings.Contains(r.err, "master key") {
		t.Errorf("backup: %+v", r)
	}
	if list := done(t, "", "user", "list", "--datastore-uri=sqlite:"+copied); !strings.Contains(list, strings.TrimSpace(id)) {
		t.Errorf("in the copy: %s", list)
	}
}
