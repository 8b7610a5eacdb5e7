package storetest_test

import (
	"context"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestSuite(t *testing.T) { storetest.EachEngine(t, storetest.Suite) }

// Behind PgBouncer each transaction may be on another connection, and one that is
// as old as Debian's knows no prepared statements.
func TestSuiteBehindPgBouncer(t *testing.T) {
	storetest.Suite(t, func(t testing.TB) string {
		return pgtest.Bouncer(t, storetest.Postgres(t)) + "&default_query_exec_mode=exec"
	})
}

// In a rolling upgrade this program runs on the schema of the next, which has
// added what this one does not know.
func TestSuiteOnAnExpandedSchema(t *testing.T) {
	storetest.Suite(t, func(t testing.TB) string {
		uri := storetest.Postgres(t)
		conn, err := pgx.Connect(t.Context(), uri)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		for _, statement := range []string{
			`ALTER TABLE users ADD COLUMN email TEXT`,
			`ALTER TABLE sessions ADD COLUMN device TEXT, ADD COLUMN seen BIGINT NOT NULL DEFAULT 0`,
			`ALTER TABLE events ADD COLUMN region TEXT`,
			`ALTER TABLE audit ADD COLUMN trace TEXT NOT NULL DEFAULT ''`,
			`ALTER TABLE settings ADD COLUMN changed_at BIGINT`,
			`ALTER TABLE head ADD COLUMN term BIGINT NOT NULL DEFAULT 1`,
			`ALTER TABLE signing_keys ADD COLUMN region TEXT`,
			`ALTER TABLE mac_keys ADD COLUMN region TEXT`,
			`CREATE TABLE devices (id TEXT PRIMARY KEY)`,
			`CREATE INDEX sessions_device ON sessions (device)`,
			`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`,
		} {
			if _, err := conn.Exec(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		return uri
	})
}
