package storetest

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Expand changes a PostgreSQL database as a migration of a later program is allowed to: Expand
// only adds to the schema.
func Expand(t testing.TB, uri string) {
	t.Helper()
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
}
