package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// clockSetLine matches the log of a server that has noticed that the database's clock was set.
var clockSetLine = regexp.MustCompile(`the database's clock was set`)

// shiftClock lets a test set the clock of an installation's database. Later connections find
// functions with the names of PostgreSQL's clocks first in their search path.
func shiftClock(t *testing.T, in *installation) (set func(by time.Duration)) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), in.superuser())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(callCtx(t)) })
	do := func(statement string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	do(`CREATE SCHEMA shift; GRANT USAGE ON SCHEMA shift TO PUBLIC; CREATE TABLE shift.by (seconds DOUBLE PRECISION); INSERT INTO shift.by VALUES (0);
		GRANT SELECT ON shift.by TO PUBLIC`)
	for _, name := range []string{"clock_timestamp", "transaction_timestamp"} {
		do(fmt.Sprintf(`CREATE FUNCTION shift.%s() RETURNS timestamptz LANGUAGE sql VOLATILE AS
			'SELECT pg_catalog.%[1]s() + make_interval(secs => (SELECT seconds FROM shift.by))'`, name))
	}
	do(fmt.Sprintf(`ALTER DATABASE %s SET search_path = public, shift, pg_catalog`, pgx.Identifier{conn.Config().Database}.Sanitize()))
	return func(by time.Duration) { do(fmt.Sprintf(`UPDATE shift.by SET seconds = %v`, by.Seconds())) }
}

// TestTheDatabasesClockIsSet sets the clock of the database ahead and back while the server
// runs, and before the first start. The server and every verifier follow within a second, and
// say so in the log. A token of a session that was logged out stays refused, and so does a
// token of another time.
func TestTheDatabasesClockIsSet(t *testing.T) {
	in := install(t)
	set := shiftClock(t, in)
	set(24 * time.Hour) // the clock is a day ahead at the first start
	r := in.replicate(t)
	c := dial(t, r.door.addr())
	set(0)
	r.server.awaitLog(t, clockSetLine)
	if set := r.server.metric(t, "watchword_database_clock_set_total"); set != 1 {
		t.Errorf("the clock was set once, and the metric says %d", set)
	}
	if offset := r.server.metric(t, "watchword_database_clock_offset_seconds"); offset < -2 || offset > 2 {
		t.Errorf("the clock is right again, and the metric says that it is ahead by %d s", offset)
	}
	verifier, err := authn.NewVerifier(callCtx(t), dialConn(t, r.door.addr(), insecure.NewCredentials()),
		authn.WithAudience("internal"), authn.WithMaxStaleness(10*time.Second, authn.RefuseWhenStale))
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	is := func(want string, pair *watchwordv1.TokenPair) error {
		_, err := verifier.Verify(t.Context(), pair.GetAccessToken())
		_, err2 := c.verify(callCtx(t), pair)
		if got, got2 := authn.Reason(err).String(), authn.Reason(err2).String(); got != want || got2 != want {
			return fmt.Errorf("%s here and %s at the server, want %s", got, got2, want)
		}
		return nil
	}
	const soon = 5 * time.Second // the time between two heartbeats: a heartbeat brings the new clock even if no reading of the clock does
	const good, expired, revoked, invalid = "ERROR_REASON_UNSPECIFIED", "ERROR_REASON_TOKEN_EXPIRED", "ERROR_REASON_TOKEN_REVOKED", "ERROR_REASON_TOKEN_INVALID"
	login := func() *watchwordv1.TokenPair { return c.login(t, "admin", in.admin) }
	first, out := login(), login()
	eventually(t, soon, "a token after a first start a day ahead", func() error { return is(good, first) })
	wantExit(t, 0, run(t, in.command("key", "rotate", "--master-key-file", in.masterKey))) // brings back the key of the first start
	if err := c.logout(callCtx(t), out); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "logout", func() error { return is(revoked, out) })
	for _, step := range []struct {
		by           time.Duration
		first, ended string // the expected answers for tokens that were minted while the clock was right
	}{
		{2 * time.Hour, expired, expired}, {0, good, revoked}, {-20 * time.Minute, invalid, invalid}, {0, good, revoked},
	} {
		set(step.by)
		fresh := login()
		took := eventually(t, soon, fmt.Sprintf("a fresh token, the clock set to %v", step.by), func() error { return is(good, fresh) })
		eventually(t, soon, fmt.Sprintf("an earlier token, the clock set to %v", step.by), func() error { return is(step.first, first) })
		eventually(t, soon, fmt.Sprintf("a logged out token, the clock set to %v", step.by), func() error { return is(step.ended, out) })
		t.Logf("the clock set to %v: a fresh token is accepted after %v", step.by, took)
	}
	if n := len(clockSetLine.FindAllString(r.server.stderr.String(), -1)); n != 5 {
		t.Errorf("%d lines of the log say that the clock was set, want 5", n)
	}
}

// shifted is a build of Watchword with a clock that a test sets: a file holds the seconds by
// which time.Now is ahead. The monotonic clock stays right, as when an operator sets a
// machine's clock.
func shifted(t *testing.T) (program, file string) {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(strings.TrimSpace(string(out)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	const reading = "	sec, nsec, mono := runtimeNow()\n"
	if !strings.Contains(string(text), reading) {
		t.Fatal("this version of Go reads the clock in another way")
	}
	main, err := filepath.Abs(filepath.Join(root, "cmd", "watchword", "shift.go"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		source: write("time.go", strings.Replace(string(text), reading, reading+"	sec += Shift\n", 1)+"\n// Shift is added to every reading.\nvar Shift int64\n"),
		main: write("shift.go", `package main

import (
	"os"
	"strconv"
	"time"
)

func init() {
	read := func() {
		if text, err := os.ReadFile(os.Getenv("SHIFT_FILE")); err == nil {
			if n, err := strconv.ParseInt(string(text), 10, 64); err == nil {
				time.Shift = n
			}
		}
	}
	read()
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			read()
		}
	}()
}
`),
	}})
	if err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(dir, "watchword")
	build := exec.Command("go", "build", "-buildvcs=false", "-overlay", write("overlay.json", string(overlay)), "-o", program, "./cmd/watchword")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program, write("shift", "0")
}

// TestSlowTheMachinesClockIsSet sets the clock of the machine of a server with an embedded
// database, also while the server prunes: nothing that is not old is deleted.
func TestSlowTheMachinesClockIsSet(t *testing.T) {
	slow(t)
	program, file := shifted(t)
	set := func(by time.Duration) {
		t.Helper()
		draft := file + ".new"
		if err := errors.Join(os.WriteFile(draft, fmt.Appendf(nil, "%d", int64(by.Seconds())), 0o600), os.Rename(draft, file)); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	cmd := exec.Command(program, serveArgs(dir)...)
	cmd.Env = []string{"SHIFT_FILE=" + file}
	s := serveCommand(t, dir, cmd)
	c := dial(t, s.grpcAddr)
	verifier, err := authn.NewVerifier(callCtx(t), dialConn(t, s.grpcAddr, insecure.NewCredentials()), authn.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	first, out := c.login(t, "admin", s.admin), c.login(t, "admin", s.admin)
	if err := c.logout(callCtx(t), out); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	set(100 * 24 * time.Hour)
	time.Sleep(35 * time.Second) // the server prunes for the first time within half a minute
	set(0)
	fresh := c.login(t, "admin", s.admin)
	took := eventually(t, 5*time.Second, "a fresh token", func() error {
		_, err := verifier.Verify(t.Context(), fresh.GetAccessToken())
		return err
	})
	t.Logf("%v after the clock was a hundred days ahead for half a minute, a fresh token is accepted after %v", time.Since(began), took)
	_, err = verifier.Verify(t.Context(), out.GetAccessToken())
	wantRefusal(t, "a token of an ended session", err, "TOKEN_REVOKED")
	again, err := authn.NewVerifier(callCtx(t), dialConn(t, s.grpcAddr, insecure.NewCredentials()), authn.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	_, err = again.Verify(t.Context(), out.GetAccessToken())
	wantRefusal(t, "a token of an ended session, by a verifier that starts now", err, "TOKEN_REVOKED")
	if _, err := c.tryRefresh(callCtx(t), first); err != nil {
		t.Errorf("a session that is not old: %v", err)
	}
	r := cli(t, dir, "", "audit", "--json")
	if !strings.Contains(r.stdout, first.GetSessionId()) {
		t.Errorf("the record of the login is gone: %s", r)
	}
	if n := len(clockSetLine.FindAllString(s.stderr.String(), -1)); n != 2 {
		t.Errorf("%d lines of the log say that the clock was set, want 2", n)
	}
}

// TestSlowAReplicasClockIsSet sets the clock of a replica's machine, also while the database
// is down: watchers notice nothing.
func TestSlowAReplicasClockIsSet(t *testing.T) {
	slow(t)
	program, file := shifted(t)
	in := install(t)
	cmd := in.serveCommand(in.uri)
	cmd.Path, cmd.Args[0] = program, program
	cmd.Env = append(cmd.Env, "SHIFT_FILE="+file)
	s := serveCommand(t, "", cmd)
	c := dial(t, s.grpcAddr)
	verifier, err := authn.NewVerifier(callCtx(t), dialConn(t, s.grpcAddr, insecure.NewCredentials()), authn.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	pair := c.login(t, "admin", s.admin)
	for _, down := range []bool{false, true} {
		if down {
			in.primary.Kill()
		}
		for _, by := range []int{7200, -7200, 0} {
			if err := os.WriteFile(file, fmt.Append(nil, by), 0o600); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(11 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) { // two heartbeats
				if _, err := verifier.Verify(t.Context(), pair.GetAccessToken()); err != nil {
					t.Fatalf("the replica's clock is ahead by %d s, database down %t: %v", by, down, err)
				}
			}
		}
	}
	if clockSetLine.MatchString(s.stderr.String()) {
		t.Error("the replica took its own clock for the database's")
	}
}
