package store_test

import (
	"testing"

	"github.com/watchword-auth/watchword/internal/store"
)

// The URI that a copy prints names the same database, and holds no password.
func TestTheURIOfACopyCanBeUsed(t *testing.T) {
	t.Setenv("PGUSER", "ann")
	t.Setenv("PGHOST", "/var/run/postgresql")
	t.Setenv("PGPORT", "5433")
	t.Setenv("PGDATABASE", "d")
	t.Setenv("PGPASSWORD", "S3cret")
	for given, want := range map[string]string{
		"postgres://w:S3cret@db.internal/w?sslmode=require":                     "postgres://w@db.internal/w?sslmode=require",
		"postgres://w@db.internal:5433/w":                                       "postgres://w@db.internal:5433/w",
		"postgresql://db.internal/w?user=w&password=S3cret&sslmode=disable":     "postgresql://db.internal/w?sslmode=disable&user=w",
		"postgres://v:S3cret@db.internal/w?user=w":                              "postgres://db.internal/w?user=w",
		"postgres:///w?host=%2Ftmp&user=w":                                      "postgres:///w?host=%2Ftmp&user=w",
		"postgres://w:S3cret@h1:5432,h2:5433/w?target_session_attrs=read-write": "postgres://w@h1:5432,h2:5433/w?target_session_attrs=read-write",
		"postgres://": "postgres://ann@/d?host=%2Fvar%2Frun%2Fpostgresql&port=5433",
	} {
		got := store.PublicURI(t, given)
		if got != want {
			t.Errorf("%s is printed as %s, want %s", given, got, want)
		}
		if again := store.PublicURI(t, got); again != got {
			t.Errorf("%s is read as %s", got, again)
		}
	}
}
