package store_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// A session is kept if the session is refreshed between the look of pruning at the row and the
// deletion.
func TestPruningSparesWhatWasRefreshedMeanwhile(t *testing.T) {
	s := storetest.Open(t, storetest.Postgres(t))
	insertAlice(t, s, 3)
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		_, err := tx.PruneSessions("", 10, func(row *store.Session) bool {
			if row.ID == "s1" {
				if err := spend(context.Background(), s, "s1", 1); err != nil {
					t.Error(err)
				}
			}
			return false
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Read(t.Context(), func(tx *store.Tx) error {
		left, err := tx.Sessions(&store.User{ID: "alice"}, store.SessionPlace{}, 10)
		if len(left) != 1 || left[0].ID != "s1" {
			t.Errorf("left %v", left)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// PostgreSQL states the severity of an error in the language of its operator, and also in
// English. An error that ends the connection is no refusal, because the error can come after a
// commit.
func TestARefusalInAnyLanguage(t *testing.T) {
	for want, errs := range map[bool][]pgconn.PgError{
		true:  {{Severity: "ERROR", SeverityUnlocalized: "ERROR"}, {Severity: "FEHLER", SeverityUnlocalized: "ERROR"}, {Severity: "ERROR"}},
		false: {{Severity: "FATAL", SeverityUnlocalized: "FATAL"}, {Severity: "FATALE", SeverityUnlocalized: "FATAL"}, {Severity: "FATAL"}},
	} {
		for _, err := range errs {
			if got := store.Refused(&err); got != want {
				t.Errorf("%s (%s): %v, want %v", err.Severity, err.SeverityUnlocalized, got, want)
			}
		}
	}
}
