package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

func TestBackup(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	password := newPassword()
	c.create(t, c.login(t, "admin", s.admin, "watchword"), "alice", password)
	alice := c.login(t, "alice", password)
	elsewhere := t.TempDir()
	file := filepath.Join(elsewhere, "watchword.db")
	backup := []string{"backup", file, "--datastore-uri", database(s.dir)}
	r := cli(t, s.dir, "", backup...)
	if wantExit(t, 0, r); !strings.Contains(r.stderr, "master key") {
		t.Errorf("backup does not say that the copy lacks the master key: %v", r)
	}
	if r := cli(t, s.dir, "", backup...); r.code != 1 || !strings.Contains(r.stderr, "exists already") {
		t.Errorf("backup over an existing file: got %v, want status 1", r)
	}
	to := newPostgres(t)
	if r := run(t, to.command(t, "backup", filepath.Join(elsewhere, "new"), "--datastore-uri", to.uri)); r.code != 2 || !strings.Contains(r.stderr, "pg_dump") {
		t.Errorf("backup of PostgreSQL: got %v, want status 2 and a hint to pg_dump", r)
	}
	s.stop(t)
	refusesToStart(t, elsewhere, "master key") // the server cannot read the keys without the master key
	c = dial(t, serve(t, elsewhere, "--master-key-file", masterKeyOf(s.dir)).grpcAddr)
	c.refresh(t, alice)
	c.login(t, "alice", password)
}

// onBothEngines runs a test with a server on SQLite, and with a server on PostgreSQL.
func onBothEngines(t *testing.T, test func(t *testing.T, s *server, command func(args ...string) *exec.Cmd)) {
	t.Run("sqlite", func(t *testing.T) {
		s := serve(t, t.TempDir())
		test(t, s, func(args ...string) *exec.Cmd {
			return cliCommand(t, s.dir, "", append(args, "--datastore-uri", database(s.dir))...)
		})
	})
	t.Run("postgres", func(t *testing.T) {
		dir, to := t.TempDir(), newPostgres(t).migrated(t)
		wantExit(t, 0, cli(t, dir, "", "key", "create-master-key", masterKeyOf(dir)))
		s := to.takeOver(t, &server{dir: dir, grpcAddr: "127.0.0.1:0", httpAddr: "127.0.0.1:0"}, "--issuer", "https://auth.example.com")
		test(t, s, func(args ...string) *exec.Cmd {
			cmd := to.command(t, append(args, "--datastore-uri", to.uri)...)
			cmd.Env = append(cmd.Env, "WATCHWORD_MASTER_KEY_FILE="+masterKeyOf(dir))
			return cmd
		})
	})
}

// TestRestoredBesideAServer runs `datastore restored` while a server runs on the database.
// The server must know of the change within a second, as of every other change.
func TestRestoredBesideAServer(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *server, command func(args ...string) *exec.Cmd) {
		const promised, slack = time.Second, time.Second
		c := dial(t, s.grpcAddr)
		before := c.login(t, "admin", s.admin)
		_, err := c.verify(callCtx(t), before)
		wantOK(t, "verify before datastore restored", err)

		stranger := masterKeyOf(t.TempDir())
		wantExit(t, 0, cli(t, s.dir, "", "key", "create-master-key", stranger))
		wantExit(t, 1, run(t, command("datastore", "restored", "--master-key-file", stranger)))
		c.refresh(t, before) // the failed command has changed nothing

		if out := wantExit(t, 0, run(t, command("datastore", "restored"))); !strings.Contains(out, "1 users raised") {
			t.Errorf("datastore restored printed %q, want one raised user", out)
		}
		took := eventually(t, promised+slack, "refusing tokens of the withdrawn key", func() error {
			_, err := c.verify(callCtx(t), before)
			return checkRefusal(err, "TOKEN_INVALID")
		})
		t.Logf("the server knew within %v (promised: %v)", took, promised)
		_, err = c.tryRefresh(callCtx(t), before)
		wantRefusal(t, "refresh", err, "SESSION_REVOKED")
		after := c.login(t, "admin", s.admin)
		_, err = c.verify(callCtx(t), after)
		wantOK(t, "verify after a new login", err)
		c.refresh(t, after)
		if out := wantExit(t, 0, run(t, command("audit", "--type", "datastore.restored"))); strings.Count(out, "\n") != 2 || !strings.Contains(out, "cli") {
			t.Errorf("audit printed %s, want a record with the source cli", out)
		}
		wantExit(t, 0, run(t, command("key", "rotate"))) // works only with a next key
		wantExit(t, 0, run(t, command("datastore", "restored")))
	})
}

// TestRestoredAfterABackup replaces a database by an older backup, and runs `datastore
// restored`. Without the command, tokens revoked after the backup would be good again.
func TestRestoredAfterABackup(t *testing.T) {
	s := serve(t, t.TempDir(), longLifetimes...)
	c, password := dial(t, s.grpcAddr), newPassword()
	admin := c.login(t, "admin", s.admin, "watchword")
	c.create(t, admin, "alice", password)
	alice, early := c.login(t, "alice", password), c.login(t, "alice", password)
	wantOK(t, "logout", c.logout(callCtx(t), early)) // gives the snapshot an ended session
	file := filepath.Join(t.TempDir(), "backup.db")
	wantExit(t, 0, cli(t, s.dir, "", "backup", file, "--datastore-uri", database(s.dir)))

	wantOK(t, "a logout after the backup", c.logout(callCtx(t), alice))
	c.create(t, admin, "bob", password)
	bob := c.login(t, "bob", password)
	lost := c.watch(t, nil)
	verifier, err := authn.NewVerifier(callCtx(t), dialConn(t, s.grpcAddr, insecure.NewCredentials()), authn.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	s.stop(t)
	replaceDatabase(t, s.dir, file)

	wantExit(t, 0, cli(t, s.dir, "", "datastore", "restored", "--datastore-uri", database(s.dir)))
	serve(t, s.dir, append(longLifetimes, "--grpc-addr", s.grpcAddr, "--http-addr", s.httpAddr)...)
	again := c.login(t, "alice", password)
	eventually(t, runTimeout, "accepting the new login at a service", func() error {
		_, err := verifier.Verify(t.Context(), again.GetAccessToken())
		return err
	})
	for name, old := range map[string]*watchwordv1.TokenPair{"alice": alice, "early": early, "bob": bob, "admin": admin} {
		_, err := c.verify(callCtx(t), old)
		wantRefusal(t, "verify of "+name+"'s old token at the server", err, "TOKEN_INVALID")
		_, err = verifier.Verify(t.Context(), old.GetAccessToken())
		wantRefusal(t, "verify of "+name+"'s old token at a service", err, "TOKEN_INVALID")
		if _, err = c.tryRefresh(callCtx(t), old); name == "bob" { // the backup does not contain bob
			wantRefusal(t, "refresh of "+name, err, "REFRESH_TOKEN_EXPIRED")
		} else {
			wantRefusal(t, "refresh of "+name, err, "SESSION_REVOKED")
		}
	}
	if now := c.watch(t, lost.resume); len(now.snapshot) != 1 || len(now.change) != 0 {
		t.Errorf("a watcher with a position in the lost history got %v, want a snapshot with one ended session", now)
	}
	wantRefusal(t, "bob's login", c.tryLogin(callCtx(t), "bob", password), "INVALID_CREDENTIALS")
}

// replaceDatabase restores a backup, by the commands in docs/restore.md.
func replaceDatabase(t *testing.T, dir, backup string) {
	t.Helper()
	for _, command := range [][]string{
		{"rm", "-f", "watchword.db", "watchword.db-wal", "watchword.db-shm"}, {"mv", backup, "watchword.db"},
	} {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Dir = dir
		wantExit(t, 0, run(t, cmd))
	}
}
