package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// cli runs a watchword command in a folder.
func cli(t *testing.T, dir, stdin string, args ...string) result {
	t.Helper()
	return run(t, cliCommand(t, dir, stdin, args...))
}

func cliCommand(t *testing.T, dir, stdin string, args ...string) *exec.Cmd {
	t.Helper()
	if found := leaks(strings.Join(args, " ")); len(found) > 0 {
		t.Fatalf("the arguments %v contain secrets", args)
	}
	cmd := exec.Command(watchword(t), args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, environment("XDG_CONFIG_HOME="+filepath.Join(bin, "config")), strings.NewReader(stdin)
	return cmd
}

// wantExit checks a command's exit status, and returns the command's standard output. No
// command may print a secret on standard error.
func wantExit(t *testing.T, code int, r result) string {
	t.Helper()
	if r.code != code {
		t.Fatalf("got %v, want status %d", r, code)
	}
	if found := leaks(r.stderr); len(found) > 0 {
		t.Errorf("standard error contains secrets: %q", found)
	}
	return r.stdout
}

func TestCommandLine(t *testing.T) {
	t.Run("wrong usage", wrongUsage)
	t.Run("failures", failures)
	t.Run("users", usersByCommand)
	t.Run("changes beside a running server", changesBesideAServer)
	t.Run("client commands", clientCommands)
	t.Run("healthcheck", healthcheck)
	t.Run("keys and migrate", keysAndMigrate)
	t.Run("audit", auditByCommand)
	t.Run("second start", secondStart)
	t.Run("master key", masterKey)
	t.Run("issuer", issuer)
	t.Run("file modes", fileModes)
	t.Run("environment", environmentVariables)
	t.Run("logs hold no secret", logsHoldNoSecret)
}

// wrongUsage runs commands with wrong arguments. Each must end with status 2, make no file,
// and not repeat a password or a token.
func wrongUsage(t *testing.T) {
	dir := t.TempDir()
	for _, args := range []string{
		"", "no-such-command", "user", "user no-such-command", "serve --no-such-flag", "serve argument",
		"serve --grpc-addr 0.0.0.0:0", "serve --http-addr 0.0.0.0:0", "serve --grpc-addr :0", "serve --grpc-addr nowhere",
		"serve --access-ttl soon", "serve --access-ttl 5", "serve --access-ttl -5m", "serve --drain-timeout -1s",
		"serve --refresh-grace 1000h", "serve --refresh-repeats 0", "serve --signing-alg HS256", "serve --tls-cert cert.pem", "serve --client-ca ca.pem",
		"serve --issuer not-a-url", "serve --log-level loud",
		"user create", "user create eve a-password", "user create eve --password=a-password", "user create eve --role Not-A-Role",
		"user set-password eve a-password", "login eve a-password", "login --plaintext --ca-file ca.pem eve",
		"backup", "backup b.db --datastore-uri postgres://nowhere/db", "datastore", "datastore copy", "datastore copy sqlite:a.db",
		"datastore copy sqlite:a.db sqlite:b.db", "datastore copy postgres://nowhere/a postgres://nowhere/b", "datastore restored now",
		"verify a-token", "logout a-token", "verify --token=a-token", "verify", "logout",
	} {
		r := cli(t, dir, "", strings.Fields(args)...)
		if r.code != 2 || r.stdout != "" || r.stderr == "" {
			t.Errorf("watchword %s: got %v, want status 2 and a text on standard error alone", args, r)
		}
		if strings.Contains(r.stderr, "a-password") || strings.Contains(r.stderr, "a-token") {
			t.Errorf("watchword %s: the error repeats a secret: %s", args, r.stderr)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("commands with wrong usage made files: %v, %v", left, err)
	}
}

// failures runs commands with right arguments that fail. Each must end with status 1.
func failures(t *testing.T) {
	s := serve(t, t.TempDir())
	db := []string{"--datastore-uri", database(s.dir)}
	addr := []string{"--plaintext", "--addr", s.grpcAddr}
	for _, test := range []struct {
		stdin string
		args  []string
		says  string
	}{
		{newPassword(), append([]string{"user", "create", "admin"}, db...), "taken"},
		{noteSecret("shrt7qz"), append([]string{"user", "create", "eve"}, db...), "fewer than"},
		{"", append([]string{"user", "create", "eve"}, db...), "empty"},
		{"", append([]string{"user", "disable", "nobody"}, db...), "nobody"},
		{"", append([]string{"user", "enable", "nobody"}, db...), "nobody"},
		{"", append([]string{"user", "delete", "nobody"}, db...), "nobody"},
		{newPassword(), append([]string{"user", "set-password", "nobody"}, db...), "nobody"},
		{"", []string{"user", "list", "--datastore-uri", "sqlite:" + filepath.Join(s.dir, "no", "such", "folder")}, "there is no database"},
		{newPassword(), append([]string{"login", "admin"}, addr...), "INVALID_CREDENTIALS"},
		{"rubbish", append([]string{"verify"}, addr...), "TOKEN_INVALID"},
		{"rubbish", append([]string{"logout"}, addr...), "REFRESH_TOKEN_INVALID"},
		{"rubbish", []string{"verify", "--addr", s.grpcAddr}, "tls"}, // TLS to a server in plaintext
		{"", serveArgs(t.TempDir(), "--grpc-addr", s.grpcAddr), "--grpc-addr"},
		{"", serveArgs(t.TempDir(), "--http-addr", s.httpAddr), "--http-addr"},
	} {
		r := cli(t, s.dir, test.stdin, test.args...)
		if wantExit(t, 1, r); r.stdout != "" || !strings.Contains(r.stderr, test.says) {
			t.Errorf("watchword %v: got %v, want %q on standard error alone", test.args, r, test.says)
		}
	}
}

// userTable returns the output of `user list`: username to the fields of the line.
func userTable(t *testing.T, dir string) map[string][]string {
	t.Helper()
	table := map[string][]string{}
	for i, line := range strings.Split(strings.TrimSpace(wantExit(t, 0, cli(t, dir, "", "user", "list", "--datastore-uri", database(dir)))), "\n") {
		if fields := strings.Fields(line); i > 0 {
			table[fields[1]] = fields
		}
	}
	return table
}

// usersByCommand changes users on a new database, and then starts the first server on the
// database.
func usersByCommand(t *testing.T) {
	dir := t.TempDir()
	db := []string{"--datastore-uri", database(dir)}
	first, second := newPassword(), newPassword()
	wantExit(t, 0, cli(t, dir, "", append([]string{"migrate"}, db...)...))
	id := strings.TrimSpace(wantExit(t, 0, cli(t, dir, first+"\n", append([]string{"user", "create", "Alice", "--role", "writer", "--role", "reader", "--password-stdin"}, db...)...)))
	wantExit(t, 0, cli(t, dir, first, append([]string{"user", "create", "bob"}, db...)...)) // without a terminal, the password also comes from standard input
	wantExit(t, 0, cli(t, dir, first+"\r\n", append([]string{"user", "create", "carol", "--password-stdin"}, db...)...))
	wantExit(t, 0, cli(t, dir, "", append([]string{"user", "disable", "bob"}, db...)...))
	wantExit(t, 0, cli(t, dir, "", append([]string{"user", "disable", "carol"}, db...)...))
	wantExit(t, 0, cli(t, dir, "", append([]string{"user", "enable", "carol"}, db...)...))
	wantExit(t, 0, cli(t, dir, second+"\n", append([]string{"user", "set-password", "carol", "--password-stdin"}, db...)...))
	wantExit(t, 0, cli(t, dir, first, append([]string{"user", "create", "dave"}, db...)...))
	wantExit(t, 0, cli(t, dir, "", append([]string{"user", "delete", "dave"}, db...)...))

	table := userTable(t, dir)
	if alice := table["alice"]; len(alice) < 4 || alice[0] != id || alice[2] != "reader,writer" || alice[3] != "enabled" {
		t.Errorf("user list shows alice, with the id %s, as %v", id, alice)
	}
	if bob := table["bob"]; !slices.Contains(bob, "disabled") {
		t.Errorf("user list shows the disabled user bob as %v", bob)
	}
	if _, there := table["dave"]; there || len(table) != 3 {
		t.Errorf("user list shows %v, want three users without dave", table)
	}

	s := serve(t, dir)
	if s.admin != "" {
		t.Error("the server made an admin on a database with users")
	}
	c := dial(t, s.grpcAddr)
	wantOK(t, "login of alice", c.tryLogin(callCtx(t), "alice", first))
	wantRefusal(t, "login of bob", c.tryLogin(callCtx(t), "bob", first), "USER_DISABLED")
	wantRefusal(t, "login of carol with the old password", c.tryLogin(callCtx(t), "carol", first), "INVALID_CREDENTIALS")
	wantOK(t, "login of carol with the new password", c.tryLogin(callCtx(t), "carol", second))
	wantRefusal(t, "login of dave", c.tryLogin(callCtx(t), "dave", first), "INVALID_CREDENTIALS")
}

// changesBesideAServer changes users by commands while a server runs. The server must know
// of each change within a second.
func changesBesideAServer(t *testing.T) {
	const promised, slack = time.Second, time.Second
	s := serve(t, t.TempDir(), "--log-level", "debug")
	db := []string{"--datastore-uri", database(s.dir)}
	c, password, next := dial(t, s.grpcAddr), newPassword(), newPassword()
	wantExit(t, 0, cli(t, s.dir, password, append([]string{"user", "create", "alice"}, db...)...))

	for _, change := range []struct {
		stdin string
		args  []string
	}{
		{"", []string{"user", "disable", "alice"}},
		{next, []string{"user", "set-password", "alice"}},
		{"", []string{"user", "delete", "alice"}},
	} {
		pair := c.login(t, "alice", password)
		_, err := c.verify(callCtx(t), pair)
		wantOK(t, "verify before the change", err)
		wantExit(t, 0, cli(t, s.dir, change.stdin, append(change.args, db...)...))
		took := eventually(t, promised+slack, strings.Join(change.args, " "), func() error {
			_, err := c.verify(callCtx(t), pair)
			return checkRefusal(err, "TOKEN_REVOKED")
		})
		t.Logf("the server knew of %v within %v (promised: %v)", change.args, took, promised)
		if change.args[1] == "disable" {
			wantExit(t, 0, cli(t, s.dir, "", append([]string{"user", "enable", "alice"}, db...)...))
			_, err := c.verify(callCtx(t), pair)
			wantRefusal(t, "verify after user enable", err, "TOKEN_REVOKED")
		} else {
			password = next
		}
	}
}

// clientCommands passes the output of login to verify and logout.
func clientCommands(t *testing.T) {
	s := serve(t, t.TempDir())
	addr := []string{"--plaintext", "--addr", s.grpcAddr}
	printed := wantExit(t, 0, cli(t, s.dir, s.admin+"\n", append([]string{"login", "admin", "--print", "--password-stdin"}, addr...)...))
	var pair watchwordv1.TokenPair
	if err := protojson.Unmarshal([]byte(printed), &pair); err != nil || pair.GetTokenType() != "Bearer" || pair.GetRefreshToken() == "" {
		t.Fatalf("login printed %q: %v", printed, err)
	}
	noteTokens(&pair)

	for name, stdin := range map[string]string{"pair in JSON": printed, "token": pair.GetAccessToken() + "\n"} {
		var principal watchwordv1.Principal
		out := wantExit(t, 0, cli(t, s.dir, stdin, append([]string{"verify"}, addr...)...))
		if err := protojson.Unmarshal([]byte(out), &principal); err != nil || principal.GetUsername() != "admin" || principal.GetSessionId() != pair.GetSessionId() {
			t.Errorf("verify of a %s printed %q: %v", name, out, err)
		}
	}
	wantExit(t, 1, cli(t, s.dir, printed, append([]string{"verify", "--audience", "elsewhere"}, addr...)...))
	if out := wantExit(t, 0, cli(t, s.dir, printed, append([]string{"logout"}, addr...)...)); out != "" {
		t.Errorf("logout printed %q, want no output", out)
	}
	wantExit(t, 0, cli(t, s.dir, pair.GetRefreshToken(), append([]string{"logout"}, addr...)...))
	r := cli(t, s.dir, printed, append([]string{"verify"}, addr...)...)
	if wantExit(t, 1, r); !strings.Contains(r.stderr, "TOKEN_REVOKED") {
		t.Errorf("verify after the logout: got %v, want TOKEN_REVOKED", r)
	}
}

func healthcheck(t *testing.T) {
	s := serve(t, t.TempDir())
	check := []string{"healthcheck", "--plaintext", "--addr", s.grpcAddr}
	wantExit(t, 0, cli(t, s.dir, "", check...))
	s.stop(t)
	wantExit(t, 1, cli(t, s.dir, "", check...))
}

var kidLine = regexp.MustCompile(`(?m)^(\S{16})\s+(EdDSA|ES256|RS256)\s+(next|signing)\b`)

func keysAndMigrate(t *testing.T) {
	dir := t.TempDir()
	db := []string{"--datastore-uri", database(dir)}
	if out := wantExit(t, 0, cli(t, dir, "", append([]string{"migrate"}, db...)...)); out != "" {
		t.Errorf("migrate printed %q, want no output", out)
	}
	wantExit(t, 0, cli(t, dir, "", append([]string{"migrate"}, db...)...)) // the schema is current
	if keys := kidLine.FindAllString(wantExit(t, 0, cli(t, dir, "", append([]string{"key", "list"}, db...)...)), -1); keys != nil {
		t.Errorf("before the first start of a server, the database has keys: %v", keys)
	}

	s := serve(t, dir, "--signing-alg", "ES256")
	if s.admin == "" {
		t.Error("the first start after migrate made no admin")
	}
	states := map[string]string{} // the state of each key, by kid
	for _, line := range kidLine.FindAllStringSubmatch(wantExit(t, 0, cli(t, dir, "", append([]string{"key", "list"}, db...)...)), -1) {
		if states[line[1]] = line[3]; line[2] != "ES256" {
			t.Errorf("key list shows %v, want a key for ES256", line)
		}
	}
	keySet, err := dial(t, s.grpcAddr).GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{})
	if err != nil || len(states) != 2 || len(keySet.GetKeys()) != 2 {
		t.Fatalf("key list shows %v, GetKeySet returned %v, error %v; want two keys in both", states, keySet, err)
	}
	for _, key := range keySet.GetKeys() {
		if states[key.GetKid()] == "" {
			t.Errorf("GetKeySet returned key %s, but key list shows %v", key.GetKid(), states)
		}
	}
}

// auditByCommand reads audit records beside a running server. Many refused calls must leave
// only a few records and log lines.
func auditByCommand(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin)
	const tries = 500
	lines := func() int { return strings.Count(s.stderr.String(), "\n") }
	before := lines()
	for range tries {
		_, err := c.Refresh(callCtx(t), &watchwordv1.RefreshRequest{RefreshToken: "wwrt_rubbish"})
		wantRefusal(t, "refresh with a forged token", err, "REFRESH_TOKEN_INVALID")
	}
	audit := func(flags ...string) string {
		t.Helper()
		return wantExit(t, 0, cli(t, s.dir, "", append([]string{"audit", "--datastore-uri", database(s.dir)}, flags...)...))
	}
	eventually(t, runTimeout, "recording the refusals", func() error {
		if out := audit("--type", "refresh"); !regexp.MustCompile(fmt.Sprintf(`refresh +REFRESH_TOKEN_INVALID .* %d `, tries)).MatchString(out) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if after := lines(); after-before > 4 {
		t.Errorf("%d refusals left %d log lines, want at most 4", tries, after-before)
	}
	wantExit(t, 0, cli(t, s.dir, newPassword()+"\n", "user", "create", "carol", "--role", "reader", "--password-stdin", "--datastore-uri", database(s.dir)))
	out := audit("--user", "carol", "--since", "1h", "--json")
	var record map[string]any
	if err := json.Unmarshal([]byte(out), &record); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, value := range map[string]any{"type": "user.created", "source": "cli", "success": true, "count": 1.0,
		"detail": "username: carol, roles: reader, disabled: false"} {
		if record[name] != value {
			t.Errorf("field %s of the record is %v, want %v", name, record[name], value)
		}
	}
	if out := audit("--session", admin.GetSessionId()); strings.Count(out, "\n") != 2 || !strings.Contains(out, "login") {
		t.Errorf("audit --session printed %s, want the login alone", out)
	}
	if out := audit("--limit", "2"); strings.Count(out, "\n") != 3 {
		t.Errorf("audit --limit 2 printed %s, want two records", out)
	}
	if out := audit("--limit", "0"); strings.Count(out, "\n") != 5 { // the head of the table, and the records of: the creation of admin, the login, the refused calls, the creation of carol
		t.Errorf("audit --limit 0 printed %s, want four records", out)
	}
	wantExit(t, 1, cli(t, s.dir, "", "audit", "--user", "nobody", "--datastore-uri", database(s.dir)))
	for _, wrong := range [][]string{{"--user", "carol", "--user-id", "x"}, {"--limit=-1"}, {"--since", "yesterday"}, {"--since=-1h"}} {
		wantExit(t, 2, cli(t, s.dir, "", append([]string{"audit", "--datastore-uri", database(s.dir)}, wrong...)...))
	}
}

func secondStart(t *testing.T) {
	s := serve(t, t.TempDir())
	if s.admin == "" {
		t.Fatal("the first start printed no password")
	}
	pair := dial(t, s.grpcAddr).login(t, "admin", s.admin)
	s.stop(t)
	if out := s.printed(t); !adminLine.MatchString(out) {
		t.Errorf("the first start printed %q, want the password alone", out)
	}
	again := serve(t, s.dir)
	c := dial(t, again.grpcAddr)
	_, err := c.verify(callCtx(t), pair)
	wantOK(t, "verify of an access token from before the restart", err)
	c.refresh(t, pair)
	c.login(t, "admin", s.admin)
	again.stop(t)
	if out := again.printed(t); out != "" {
		t.Errorf("the second start printed %q, want no output", out)
	}
}

// refusesToStart runs serve. serve must end with status 1, and standard error must contain
// the text says.
func refusesToStart(t *testing.T, dir, says string, args ...string) {
	t.Helper()
	r := cli(t, dir, "", serveArgs(dir, args...)...)
	if wantExit(t, 1, r); r.stdout != "" || !strings.Contains(r.stderr, says) {
		t.Errorf("serve %v: got %v, want %q on standard error alone", args, r, says)
	}
}

func masterKey(t *testing.T) {
	s := serve(t, t.TempDir())
	s.stop(t)
	beside := filepath.Join(s.dir, "watchword.db.master-key")
	stranger := serve(t, t.TempDir())
	stranger.stop(t)
	elsewhere := filepath.Join(stranger.dir, "watchword.db.master-key")

	refusesToStart(t, s.dir, elsewhere, "--master-key-file", elsewhere)
	missing := filepath.Join(s.dir, "missing-key")
	refusesToStart(t, s.dir, missing, "--master-key-file", missing)
	if err := os.Rename(beside, missing); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, s.dir, beside)
	if _, err := os.Stat(beside); err == nil {
		t.Error("serve made a new master key for a database with keys")
	}
	if err := os.WriteFile(beside, []byte("wwmk1_rubbish\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, s.dir, beside)

	again := serve(t, s.dir, "--master-key-file", missing) // holds the right key, under another name
	dial(t, again.grpcAddr).login(t, "admin", s.admin)
}

func issuer(t *testing.T) {
	const first, other = "https://auth.example.com", "https://other.example.com"
	dir := t.TempDir()
	s := serve(t, dir, "--issuer", first)
	s.stop(t)
	refusesToStart(t, dir, other, "--issuer", other)
	refusesToStart(t, dir, first, "--issuer", other)
	for _, args := range [][]string{nil, {"--issuer", first}} {
		again := serve(t, dir, args...)
		keySet, err := dial(t, again.grpcAddr).GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{})
		if err != nil || keySet.GetIssuer() != first {
			t.Errorf("serve %v: got issuer %q, error %v; want issuer %q", args, keySet.GetIssuer(), err, first)
		}
		again.stop(t)
	}
}

// fileModes starts a server with the umask 000. All files must still have the mode 0600.
func fileModes(t *testing.T) {
	dir := t.TempDir()
	args := append([]string{"-c", `umask 000 && exec "$0" "$@"`, watchword(t)}, serveArgs(dir)...)
	s := serveCommand(t, dir, exec.Command("sh", args...))
	dial(t, s.grpcAddr).login(t, "admin", s.admin)
	files := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if files[entry.Name()] = true; err == nil && info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", entry.Name(), info.Mode())
		}
		return err
	})
	if err != nil || !files["watchword.db"] || !files["watchword.db-wal"] || !files["watchword.db.master-key"] {
		t.Errorf("got files %v, error %v; want the database, the log and the master key", files, err)
	}
}

func environmentVariables(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(watchword(t), "serve", "--http-addr", "127.0.0.1:0")
	cmd.Dir = dir
	cmd.Env = []string{
		"WATCHWORD_GRPC_ADDR=127.0.0.1:0", "WATCHWORD_HTTP_ADDR=not an address", "WATCHWORD_ISSUER=https://env.example.com",
		"WATCHWORD_DATASTORE_URI=sqlite:by-environment.db", "WATCHWORD_AUDIENCE=one,two", "WATCHWORD_ACCESS_TTL=90s",
	}
	s := serveCommand(t, dir, cmd) // the flag wins over the variable: the variable's value is malformed
	if _, port, err := net.SplitHostPort(s.grpcAddr); err != nil || port == "50051" {
		t.Errorf("the server listens on %s, error %v; want the port from the variable", s.grpcAddr, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "by-environment.db")); err != nil {
		t.Error(err)
	}
	c := dial(t, s.grpcAddr)
	p, err := c.verify(callCtx(t), c.login(t, "admin", s.admin, "one", "two"))
	if err != nil || !slices.Equal(p.GetAudience(), []string{"one", "two"}) || p.GetIssuer() != "https://env.example.com" ||
		p.GetExpiresAt().AsTime().Sub(p.GetIssuedAt().AsTime()) != 90*time.Second {
		t.Errorf("got principal %v, error %v; want the audience, issuer and lifetime from the variables", p, err)
	}

	check := exec.Command(watchword(t), "healthcheck")
	check.Env = environment("WATCHWORD_ADDR="+s.grpcAddr, "WATCHWORD_PLAINTEXT=true")
	wantExit(t, 0, run(t, check))
	bad := exec.Command(watchword(t), serveArgs(t.TempDir())...)
	bad.Env = environment("WATCHWORD_ACCESS_TTL=soon")
	wantExit(t, 2, run(t, bad))
}

// logsHoldNoSecret makes all kinds of calls to a server with debug logs, also with secrets
// in wrong fields. The harness searches every log for secrets; the test checks that the
// log contains the calls, and that the search finds the secrets.
func logsHoldNoSecret(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		s := serve(t, t.TempDir(), "--log-level", "debug", "--log-format", format)
		c, password := dial(t, s.grpcAddr), newPassword()
		admin := c.login(t, "admin", s.admin, "watchword")
		alice := c.create(t, admin, "alice", password, "writer")
		pair := c.login(t, "alice", password)
		_ = c.tryLogin(callCtx(t), password, newPassword()) // the password in the wrong field
		_ = c.tryLogin(callCtx(t), "alice", newPassword())
		_, _ = c.tryRefresh(callCtx(t), &watchwordv1.TokenPair{RefreshToken: pair.GetAccessToken()})
		_, _ = c.verify(callCtx(t), &watchwordv1.TokenPair{AccessToken: pair.GetRefreshToken()})
		_, _ = c.ListUsers(bearer(callCtx(t), pair), &watchwordv1.ListUsersRequest{PageToken: pair.GetRefreshToken()})
		_, _ = c.GetUser(bearer(callCtx(t), admin), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: pair.GetAccessToken()}})
		_, _ = c.ChangePassword(bearer(callCtx(t), pair), &watchwordv1.ChangePasswordRequest{CurrentPassword: password, NewPassword: noteSecret("short-1")})
		_, _ = c.SetPassword(bearer(callCtx(t), admin), &watchwordv1.SetPasswordRequest{Id: alice.GetId(), Password: newPassword()})
		resp, err := http.Get("http://" + s.httpAddr + "/metrics?token=" + pair.GetAccessToken())
		if err != nil {
			t.Fatal(err)
		}
		metrics, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if found := leaks(string(metrics)); err != nil || len(found) > 0 || !bytes.Contains(metrics, []byte("Login")) {
			t.Errorf("the metrics contain secrets, or lack Login: secrets %q, error %v", found, err)
		}
		s.stop(t)

		log := s.stderr.String()
		for _, method := range []string{"Login", "Refresh", "Verify", "CreateUser", "ChangePassword", "SetPassword"} {
			if !strings.Contains(log, method) {
				t.Errorf("the log does not mention %s", method)
			}
		}
		for what, hidden := range map[string]string{"password": password, "access token": pair.GetAccessToken(), "refresh token": pair.GetRefreshToken()} {
			if leaks(fmt.Sprintf("a line with %s in it", hidden)) == nil {
				t.Errorf("the search for secrets does not find the %s", what)
			}
		}
	}
}
