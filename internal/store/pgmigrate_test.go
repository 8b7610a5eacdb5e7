package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// statements runs statements past the store.
func statements(t testing.TB, uri string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, s := range statements {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// Ten replicas that start at once on an empty database can all run the migrations.
func TestTenMigrateAtOnce(t *testing.T) {
	uri := pgtest.URI(t)
	errs := make(chan error, 10)
	for range cap(errs) {
		go func() { errs <- store.Migrate(context.Background(), uri) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var rows, versions int
	if err := conn.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT version_id) FROM goose_db_version`).Scan(&rows, &versions); err != nil || rows != versions {
		t.Errorf("%d migrations were run for %d versions, %v", rows, versions, err)
	}
	if err := storetest.Open(t, uri).Write(t.Context(), set("a", "1")); err != nil {
		t.Error(err)
	}
}

// Behind PgBouncer in transaction mode each statement may be on another connection, and
// the lock of the migrations belongs to none.
func TestMigrateBehindPgBouncer(t *testing.T) {
	uri := pgtest.URI(t)
	bouncer := parameter(pgtest.Bouncer(t, uri), "default_query_exec_mode=exec") // Debian's knows no prepared statements
	errs := make(chan error, 3)
	for range cap(errs) {
		go func() { errs <- store.Migrate(context.Background(), bouncer) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	storetest.Open(t, uri)
}

// A role that may not use the lock of the migrations is told at once, and does not wait
// as for another process.
func TestMigrateWithoutRights(t *testing.T) {
	uri := storetest.Postgres(t)
	statements(t, uri, `DELETE FROM goose_db_version WHERE version_id = (SELECT max(version_id) FROM goose_db_version)`, `GRANT SELECT ON goose_db_version TO PUBLIC`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := store.Migrate(ctx, pgtest.Stranger(t, uri)); store.SQLState(err) != "42501" || !errors.Is(err, store.ErrRights) {
		t.Errorf("%v, want insufficient privilege", err)
	}
}

// A process that has lost the lock of the migrations cannot commit a migration once more.
func TestAMigrationIsCommittedOnce(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), storetest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (7, true)`)
	if store.SQLState(err) != "23505" {
		t.Errorf("%v, want a unique violation", err)
	}
}

// A schema that is not the one this program knows is refused, by the error that tells
// whether a migration mends it or a newer program.
func TestOpenTellsWhatMendsASchema(t *testing.T) {
	const later = `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`
	for name, c := range map[string]struct {
		make func(testing.TB) string
		edit []string
		want error
	}{
		"empty":             {pgtest.URI, nil, store.ErrOldSchema},
		"begun":             {pgtest.URI, []string{`CREATE TABLE goose_db_version (id INT, version_id BIGINT, is_applied BOOLEAN)`}, store.ErrOldSchema},
		"older":             {storetest.Postgres, []string{`DELETE FROM goose_db_version WHERE version_id = (SELECT max(version_id) FROM goose_db_version)`}, store.ErrOldSchema},
		"as it is":          {storetest.Postgres, nil, nil},
		"newer":             {storetest.Postgres, []string{later, `UPDATE settings SET value = '99999' WHERE name = 'schema_floor'`}, store.ErrSchema},
		"newer, no floor":   {storetest.Postgres, []string{later, `DELETE FROM settings WHERE name = 'schema_floor'`}, store.ErrSchema},
		"newer, that we do": {storetest.Postgres, []string{later}, nil},
	} {
		uri := c.make(t)
		statements(t, uri, c.edit...)
		s, err := store.Open(t.Context(), uri)
		if err == nil {
			s.Close()
		}
		old := errors.Is(c.want, store.ErrOldSchema)
		if !errors.Is(err, c.want) || errors.Is(err, store.ErrOldSchema) != old || (c.want != nil) != errors.Is(err, store.ErrSchema) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
