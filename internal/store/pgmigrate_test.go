package store_test

import (
	"context"
	"errors"
	"testing"

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

// Ten replicas that start at once on an empty database may all migrate it.
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
