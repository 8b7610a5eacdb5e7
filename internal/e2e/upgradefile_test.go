package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// TestSlowUpgradeOfAFile runs the earlier version, the present one, and both again, one after
// the other, on one SQLite file. Sessions continue and revocations stay. The first service
// account excludes the earlier version, which is refused with a clear message, and loses
// nothing.
func TestSlowUpgradeOfAFile(t *testing.T) {
	slow(t)
	before, now := releases(t)
	dir := t.TempDir()
	var s *server
	serveBy := func(r release) *client {
		args := serveArgs(dir, longLifetimes...)
		if s != nil {
			s.stop(t)
			args = append(args, "--grpc-addr", s.grpcAddr, "--http-addr", s.httpAddr)
		}
		started := serveCommand(t, dir, exec.Command(r.watchword, args...))
		if s != nil {
			started.admin = s.admin
		}
		s = started
		return dial(t, s.grpcAddr)
	}
	c := serveBy(before)
	stays := c.login(t, "admin", s.admin)
	var gone []*watchwordv1.TokenPair
	for _, r := range []release{before, now, before, now} {
		c := serveBy(r)
		stays = c.refresh(t, stays)
		_, err := c.verify(callCtx(t), stays)
		wantOK(t, r.name+": the session of before", err)
		pair := c.login(t, "admin", s.admin)
		wantOK(t, r.name+": logout", c.logout(callCtx(t), pair))
		for _, pair := range append(gone, pair) {
			_, err := c.verify(callCtx(t), pair)
			wantRefusal(t, r.name+": a token from before a logout", err, "TOKEN_REVOKED")
			_, err = c.tryRefresh(callCtx(t), pair)
			wantRefusal(t, r.name+": a refresh after a logout", err, "SESSION_REVOKED")
		}
		gone = append(gone, pair)
	}

	wantExit(t, 0, cli(t, dir, "", "service", "create", "search", "--datastore-uri", database(dir)))
	s.stop(t)
	refused := run(t, exec.Command(before.watchword, serveArgs(dir)...))
	wantExit(t, 1, refused)
	if !strings.Contains(refused.stderr, "which cannot work with it") || !strings.Contains(refused.stderr, "run a newer watchword") {
		t.Errorf("the refusal says %q", refused.stderr)
	}
	c = serveBy(now)
	_, err := c.verify(callCtx(t), stays)
	wantOK(t, "the session of before, after the refusal", err)
}

// TestSlowEarlierProgramOnThePresentSchema runs the earlier version's own tests of the database
// on the schema that the present migrations make.
func TestSlowEarlierProgramOnThePresentSchema(t *testing.T) {
	slow(t)
	before, _ := releases(t)
	migrations, err := filepath.Glob(filepath.Join(root, "internal", "store", "migrations", "*.sql"))
	if err != nil || len(migrations) == 0 {
		t.Fatal(migrations, err)
	}
	newer := 0
	for _, file := range migrations {
		to := filepath.Join(before.tree, "internal", "store", "migrations", filepath.Base(file))
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		old, err := os.ReadFile(to)
		switch {
		case err == nil && string(old) != string(text):
			t.Errorf("%s has changed since %s", filepath.Base(file), earlier)
		case err != nil:
			newer++
			if err := os.WriteFile(to, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if newer == 0 {
		t.Fatal("no migration is newer than the earlier version")
	}
	// The earlier version runs every file of migrations on PostgreSQL, and knows no file for SQLite
	// alone.
	migrate := filepath.Join(before.tree, "internal", "store", "migrate.go")
	code, err := os.ReadFile(migrate)
	all := `	provider, err := goose.NewProvider(`
	if err != nil || strings.Count(string(code), all) != 1 {
		t.Fatalf("%s is not as expected: %v", migrate, err)
	}
	knowing := strings.Replace(string(code), all, `	if dialect == goose.DialectPostgres {
		others, _ := fs.Glob(files, "*_sqlite.sql")
		options = append(options, goose.WithExcludeNames(others))
	}
`+all, 1)
	if err := os.WriteFile(migrate, []byte(knowing), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "test", "-count=1", "-p=1", "./internal/store/storetest", "./internal/session", "./internal/login", "./internal/audit", "./internal/feed", "./internal/issuer", "./internal/user")
	cmd.Dir, cmd.Env = before.tree, environment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%d newer migrations: %v\n%s", newer, err, out)
	}
	t.Logf("%d newer migrations:\n%s", newer, out)
}
