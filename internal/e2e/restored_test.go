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
	c.create(t, c.login(t, "admin", s.admin), "alice", password)
	alice := c.login(t, "alice", password)
	elsewhere := t.TempDir()
	file := filepath.Join(elsewhere, "watchword.db")
	backup := []string{"backup", file, "--datastore-uri", database(s.dir)}
	r := cli(t, s.dir, "", backup...)
	if wantExit(t, 0, r); !strings.Contains(r.stderr, "master key") {
		t.Errorf("it does not say what is missing from it: %v", r)
	}
	if r := cli(t, s.dir, "", backup...); r.code != 1 || !strings.Contains(r.stderr, "is there already") {
		t.Errorf("over a file that is there: %v", r)
	}
	to := newPostgres(t)
	if r := run(t, to.command(t, "backup", filepath.Join(elsewhere, "new"), "--datastore-uri", to.uri)); r.code != 2 || !strings.Contains(r.stderr, "pg_dump") {
		t.Errorf("of PostgreSQL: %v", r)
	}
	s.stop(t)
	refusesToStart(t, elsewhere, "master key") // without it nothing can be read
	c = dial(t, serve(t, elsewhere, "--master-key-file", masterKeyOf(s.dir)).grpcAddr)
	c.refresh(t, alice)
	c.login(t, "alice", password)
}

// onBothEngines runs a server on a new database of each kind.
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

// A server that runs on the database learns of it as of any other change.
func TestRestoredBesideAServer(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *server, command func(args ...string) *exec.Cmd) {
		const promised, slack = time.Second, time.Second
		c := dial(t, s.grpcAddr)
		before := c.login(t, "admin", s.admin)
		_, err := c.verify(callCtx(t), before)
		wantOK(t, "verify before", err)

		stranger := masterKeyOf(t.TempDir())
		wantExit(t, 0, cli(t, s.dir, "", "key", "create-master-key", stranger))
		wantExit(t, 1, run(t, command("datastore", "restored", "--master-key-file", stranger)))
		c.refresh(t, before) // nothing has been done

		if out := wantExit(t, 0, run(t, command("datastore", "restored"))); !strings.Contains(out, "1 users raised") {
			t.Errorf("it says %q", out)
		}
		took := eventually(t, promised+slack, "the key is withdrawn", func() error {
			_, err := c.verify(callCtx(t), before)
			return checkRefusal(err, "TOKEN_INVALID")
		})
		t.Logf("the server knew within %v (promised: %v)", took, promised)
		_, err = c.tryRefresh(callCtx(t), before)
		wantRefusal(t, "refresh", err, "SESSION_REVOKED")
		after := c.login(t, "admin", s.admin)
		_, err = c.verify(callCtx(t), after)
		wantOK(t, "a new login", err)
		c.refresh(t, after)
		if out := wantExit(t, 0, run(t, command("audit", "--type", "datastore.restored"))); strings.Count(out, "\n") != 2 || !strings.Contains(out, "cli") {
			t.Errorf("the record: %s", out)
		}
		wantExit(t, 0, run(t, command("key", "rotate"))) // there is a key that signs next
		wantExit(t, 0, run(t, command("datastore", "restored")))
	})
}

// TestRestoredAfterABackup puts a backup in the place of a database that has gone
// on since. What was revoked in the history that is lost would be good again.
func TestRestoredAfterABackup(t *testing.T) {
	s := serve(t, t.TempDir(), killedServer...)
	c, password := dial(t, s.grpcAddr), newPassword()
	admin := c.login(t, "admin", s.admin)
	c.create(t, admin, "alice", password)
	alice, early := c.login(t, "alice", password), c.login(t, "alice", password)
	wantOK(t, "logout", c.logout(callCtx(t), early)) // so that a snapshot has something in it
	file := filepath.Join(t.TempDir(), "backup.db")
	wantExit(t, 0, cli(t, s.dir, "", "backup", file, "--datastore-uri", database(s.dir)))

	wantOK(t, "a logout that will be lost", c.logout(callCtx(t), alice))
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
	serve(t, s.dir, append(killedServer, "--grpc-addr", s.grpcAddr, "--http-addr", s.httpAddr)...)
	again := c.login(t, "alice", password)
	eventually(t, runTimeout, "a service takes the new login", func() error {
		_, err := verifier.Verify(t.Context(), again.GetAccessToken())
		return err
	})
	for name, old := range map[string]*watchwordv1.TokenPair{"alice": alice, "early": early, "bob": bob, "admin": admin} {
		_, err := c.verify(callCtx(t), old)
		wantRefusal(t, name+" at the server", err, "TOKEN_INVALID")
		_, err = verifier.Verify(t.Context(), old.GetAccessToken())
		wantRefusal(t, name+" at a service", err, "TOKEN_INVALID")
		if _, err = c.tryRefresh(callCtx(t), old); name == "bob" { // who never was
			wantRefusal(t, name, err, "REFRESH_TOKEN_EXPIRED")
		} else {
			wantRefusal(t, name, err, "SESSION_REVOKED")
		}
	}
	if now := c.watch(t, lost.resume); len(now.snapshot) != 1 || len(now.change) != 0 {
		t.Errorf("a watcher of the history that was lost is told of %v: it wants a snapshot", now)
	}
	wantRefusal(t, "bob's login", c.tryLogin(callCtx(t), "bob", password), "INVALID_CREDENTIALS")
}

// replaceDatabase restores a backup as docs/restore.md has it.
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
