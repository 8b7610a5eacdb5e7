package e2e

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

// shared is an empty database on a PostgreSQL server that other roles use too.
type shared struct {
	uri, masterKey string
}

func newShared(t *testing.T) *shared {
	t.Helper()
	s := &shared{uri: pgtest.URI(t), masterKey: filepath.Join(t.TempDir(), "master-key")}
	wantExit(t, 0, cli(t, t.TempDir(), "", "key", "create-master-key", s.masterKey))
	return s
}

// command returns a watchword command for the database. The URI contains a password, so
// the command gets the URI in a variable.
func (s *shared) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(watchword(t), args...)
	cmd.Env = environment("WATCHWORD_DATASTORE_URI="+s.uri, "WATCHWORD_MASTER_KEY_FILE="+s.masterKey)
	return cmd
}

func connect(t *testing.T, uri string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// TestAStrangerStopsNothing lets a role without rights hold every lock that the role can
// get: the advisory locks of earlier versions, and the locks that PREPARE takes on our
// tables. The migration, a start, and every command with a lock must work.
func TestAStrangerStopsNothing(t *testing.T) {
	s := newShared(t)
	stranger := connect(t, pgtest.Stranger(t, s.uri))
	execute(t, stranger, `SELECT pg_advisory_lock(8602284733557600114)`, `SELECT pg_advisory_lock(4097083626)`)
	wantExit(t, 0, run(t, s.command(t, "migrate")))
	execute(t, stranger, `BEGIN`)
	for _, table := range []string{"exclusive_lock", "goose_lock", "goose_db_version", "head", "settings", "users", "signing_keys", "mac_keys"} {
		execute(t, stranger, `PREPARE own_`+table+` AS DELETE FROM `+table)
	}
	wantExit(t, 0, run(t, s.command(t, "migrate")))
	start := func() *server {
		return serveCommand(t, "", s.command(t, "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--issuer", "http://auth.test"))
	}
	first := start()
	dial(t, first.grpcAddr).login(t, "admin", first.admin)
	wantExit(t, 0, run(t, s.command(t, "key", "rotate")))
	var kid string
	if err := connect(t, s.uri).QueryRow(t.Context(), `SELECT kid FROM signing_keys ORDER BY published_at LIMIT 1`).Scan(&kid); err != nil {
		t.Fatal(err)
	}
	wantExit(t, 0, run(t, s.command(t, "key", "revoke", "--", kid)))
	wantExit(t, 0, run(t, s.command(t, "datastore", "restored")))
	second := start()
	dial(t, second.grpcAddr).login(t, "admin", first.admin)
}

// TestKilledMigration kills a process in the middle of a migration. PostgreSQL frees the
// lock of the migrations within the lease of 15 seconds, and another process migrates.
func TestKilledMigration(t *testing.T) {
	s := newShared(t)
	wantExit(t, 0, run(t, s.command(t, "migrate")))
	db := connect(t, s.uri)
	// These statements undo the newest migrations, and hold a lock, so that the next migration
	// waits before the end of the first of them.
	execute(t, db, `DELETE FROM goose_db_version WHERE version_id >= 7`, `DROP INDEX goose_db_version_once`, `DROP TABLE exclusive_lock`,
		`DROP TABLE audit_marks`, `DROP INDEX audit_cli`, `ALTER TABLE audit DROP COLUMN seq`, `DROP SEQUENCE audit_numbers`, `ALTER TABLE sessions DROP COLUMN repeated, DROP COLUMN run`, `DROP TABLE bindings, issuers`, `DROP TABLE replicas, watcher_certificates`, `DROP TABLE ticks`, `DROP TABLE throttle`, `DROP INDEX sessions_ended`, `DROP INDEX users_admins`, `ALTER TABLE users DROP COLUMN kind, DROP COLUMN audiences, DROP COLUMN delegates_to`, `ALTER TABLE events DROP COLUMN program`,
		`ALTER TABLE signing_keys DROP COLUMN counter, DROP COLUMN tag`,
		`BEGIN`, `LOCK TABLE goose_db_version IN SHARE ROW EXCLUSIVE MODE`)
	killed := start(t, s.command(t, "migrate"))
	watching := connect(t, s.uri)
	eventually(t, startTimeout, "the migration waits for the table, and renews its lock", func() error {
		var waits, left bool
		err := watching.QueryRow(t.Context(), `SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = 'goose_db_version'::regclass`).Scan(&waits)
		if err != nil || !waits {
			return errors.Join(err, errors.New("no process waits"))
		}
		err = watching.QueryRow(t.Context(), `SELECT locked AND lease_expires_at <= now() + interval '15 seconds' AND updated_at > locked_at FROM goose_lock`).Scan(&left)
		if err == nil && !left {
			err = errors.New("the lease is not of at most 15 seconds, or was not renewed")
		}
		return err
	})
	killed.kill()
	execute(t, db, `ROLLBACK`)
	began := time.Now()
	r := run(t, s.command(t, "migrate"))
	wantExit(t, 0, r)
	if strings.Count(r.stderr, "another process migrates this database") != 1 {
		t.Errorf("the waiting migration says %q, want one line that it waits", r.stderr)
	}
	t.Logf("another process migrated %v after the kill", time.Since(began))
	var version int
	if err := db.QueryRow(t.Context(), `SELECT max(version_id) FROM goose_db_version`).Scan(&version); err != nil || version < 9 {
		t.Errorf("the schema has version %d, %v", version, err)
	}
}
