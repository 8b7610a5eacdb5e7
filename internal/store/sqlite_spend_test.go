package store

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// inhabitedFile opens a database in a file, with a user and the session s1.
func inhabitedFile(t *testing.T, file string) *Store {
	t.Helper()
	s := openFile(t, file)
	err := s.Write(t.Context(), func(tx *Tx) error {
		if err := tx.InsertUser(&User{ID: "u1", Username: "ada", Version: 1, CreatedAt: tx.Now(), UpdatedAt: tx.Now()}); err != nil {
			return err
		}
		return tx.InsertSession(&Session{ID: "s1", UserID: "u1", BornVersion: 1, Audience: []string{"internal"},
			CreatedAt: tx.Now(), RefreshedAt: tx.Now(), Generations: Generations{Current: 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openFile(t *testing.T, file string) *Store {
	t.Helper()
	s, err := Open(t.Context(), "sqlite:"+file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func refreshS1(t *testing.T, s *Store, generation int64) {
	t.Helper()
	spend := &Spend{SessionID: "s1", Generation: generation, Audience: "internal", Grace: time.Second, Idle: time.Hour, Max: time.Hour}
	if err := s.Spend(t.Context(), spend, func(*Spent) {}); err != nil {
		t.Errorf("refreshing with generation %d: %v", generation, err)
	}
}

// valueOf returns the single value of a query.
func valueOf[T any](t *testing.T, s *Store, query string, args ...any) (value T) {
	t.Helper()
	if err := s.Read(t.Context(), func(tx *Tx) error { return tx.queryRow(into(&value), query, args...) }); err != nil {
		t.Fatal(err)
	}
	return value
}

// A new file has small pages. A file of an earlier program keeps its pages, and so does a backup.
func TestPagesOfAFile(t *testing.T) {
	earlier := filepath.Join(t.TempDir(), "earlier.db")
	db, err := sql.Open("sqlite", "file:"+earlier)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("PRAGMA page_size = 4096; CREATE TABLE made (by TEXT)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for file, size := range map[string]int{filepath.Join(t.TempDir(), "new.db"): 1024, earlier: 4096} {
		s := inhabitedFile(t, file)
		refreshS1(t, s, 1)
		backup := filepath.Join(t.TempDir(), "backup.db")
		if err := Backup(t.Context(), "sqlite:"+file, backup); err != nil {
			t.Fatal(err)
		}
		restored := openFile(t, backup)
		refreshS1(t, restored, 2)
		for _, s := range []*Store{s, restored} {
			if got := valueOf[int](t, s, "PRAGMA page_size"); got != size {
				t.Errorf("%s has pages of %d bytes, want %d", s.Path(), got, size)
			}
			if verdict := valueOf[string](t, s, "PRAGMA integrity_check"); verdict != "ok" {
				t.Errorf("%s: %s", s.Path(), verdict)
			}
		}
	}
}

// The statement of a refresh finds the session by the number of the row, which a backup keeps. A session
// in another row is refreshed too.
func TestARefreshFindsItsRow(t *testing.T) {
	s := inhabitedFile(t, filepath.Join(t.TempDir(), "test.db"))
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := Backup(t.Context(), "sqlite:"+s.Path(), backup); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{s, openFile(t, backup)} {
		if row := valueOf[int64](t, s, "SELECT rowid FROM sessions"); row != SessionRow("s1") {
			t.Errorf("%s: the session is in row %d, want %d", s.Path(), row, SessionRow("s1"))
		}
	}
	refreshS1(t, s, 1)
	plan := ""
	err := s.Write(t.Context(), func(tx *Tx) (err error) {
		plan, err = QueryPlan(tx, spendSQLite)
		if _, used := tx.run.(sqliteTx).stmts[spendSQLiteByID]; used {
			t.Error("the session was found by the index of ids")
		}
		return err
	})
	if err != nil || !strings.Contains(plan, "SEARCH sessions USING INTEGER PRIMARY KEY") {
		t.Errorf("the plan is %q, %v", plan, err)
	}
	if err := s.Write(t.Context(), func(tx *Tx) error { return tx.exec("UPDATE sessions SET rowid = 7") }); err != nil {
		t.Fatal(err)
	}
	refreshS1(t, s, 2)
}
