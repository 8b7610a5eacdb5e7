// Package storetest holds what every engine of package store must pass, and opens
// stores of both engines for the tests of the packages that use package store. Package
// storetest is for tests alone.
package storetest

import (
	"path/filepath"
	"testing"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
)

// EachEngine runs a test once on SQLite and once on PostgreSQL. new returns the
// URI of a new database, with its schema.
func EachEngine(t *testing.T, test func(t *testing.T, new func(testing.TB) string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, SQLite) })
	t.Run("postgres", func(t *testing.T) { test(t, Postgres) })
}

// SQLite returns the URI of a new embedded database.
func SQLite(t testing.TB) string {
	return "sqlite:" + filepath.Join(t.TempDir(), "test.db")
}

// Postgres returns the URI of a new database on a PostgreSQL server.
func Postgres(t testing.TB) string {
	t.Helper()
	uri := pgtest.URI(t)
	if err := store.Migrate(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	return uri
}

// Open opens a database until the end of the test.
func Open(t testing.TB, uri string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
