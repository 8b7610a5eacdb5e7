package store

import (
	"runtime"
	"testing"
)

// WaitQueued waits until so many writes are queued behind the one that runs.
func WaitQueued(s *Store, n int) {
	for len(s.writer.queue) < n {
		runtime.Gosched()
	}
}

// FailDriver runs a statement that the driver refuses.
func FailDriver(tx *Tx) error {
	_, err := tx.exec(`INSERT INTO no_such_table (x) VALUES (1)`)
	return err
}

// LimitPages makes the disk full a few pages from now.
func LimitPages(t *testing.T, s *Store) {
	t.Helper()
	err := s.writer.do(t.Context(), func(tx *Tx) error {
		var pages int
		if err := tx.one(func(r row) error { return r.Scan(&pages) }, `PRAGMA page_count`); err != nil {
			return err
		}
		return tx.one(func(r row) error { return r.Scan(&pages) }, `PRAGMA max_page_count = 60`)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ForgeSchemaVersion marks the schema as one of a later program.
func ForgeSchemaVersion(t *testing.T, s *Store) {
	t.Helper()
	err := s.writer.do(t.Context(), func(tx *Tx) error {
		_, err := tx.exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
