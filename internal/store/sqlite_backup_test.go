package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// A backup in a storm of writes is one state of the database, and holds everything
// that was acknowledged before it began.
func TestBackupInAStorm(t *testing.T) {
	s := open(t)
	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	var acknowledged []string
	var writers, warm sync.WaitGroup
	warm.Add(8 * 10)
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprintf("writer-%d-%d", w, i)
				err := s.Write(context.Background(), func(tx *store.Tx) error { // writes both rows or neither
					return errors.Join(tx.InsertUser(newUser(id)), tx.AppendEvent(&store.Event{Tag: []byte("12345678"), Kind: store.SessionEnded, Subject: id}))
				})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				acknowledged = append(acknowledged, id)
				mu.Unlock()
				if i < 10 {
					warm.Done()
				}
			}
		})
	}
	warm.Wait()
	for i := range 5 {
		mu.Lock()
		before := acknowledged[:len(acknowledged):len(acknowledged)]
		mu.Unlock()
		file := filepath.Join(t.TempDir(), fmt.Sprintf("backup %d?.db", i))
		if err := store.Backup(t.Context(), "sqlite:"+s.Path(), file); err != nil {
			t.Fatal(err)
		}
		checkBackup(t, file, before)
	}
	stop()
	writers.Wait()
}

func checkBackup(t *testing.T, file string, acknowledged []string) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the backup is %v, %v", info, err)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("beside it are %v, %v", left, err)
	}
	there, events := map[string]bool{}, map[string]bool{}
	err = openAt(t, file).Read(t.Context(), func(tx *store.Tx) error {
		verdict, err := store.Integrity(tx)
		if verdict != "ok" {
			t.Errorf("integrity: %s", verdict)
		}
		users, usersErr := tx.Users("", 1_000_000)
		for _, u := range users {
			there[u.ID] = true
		}
		all, eventsErr := tx.Events(0, 1_000_000)
		for _, e := range all {
			events[e.Subject] = true
		}
		return errors.Join(err, usersErr, eventsErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(there) != len(events) {
		t.Errorf("%d users and %d events: a transaction by half", len(there), len(events))
	}
	for _, id := range acknowledged {
		if !there[id] || !events[id] {
			t.Errorf("%s, which was acknowledged before, is not in it", id)
		}
	}
	t.Logf("%d were acknowledged before, and %d are in it", len(acknowledged), len(there))
}

func TestBackupRefuses(t *testing.T) {
	s, dir := open(t), t.TempDir()
	uri, there := "sqlite:"+s.Path(), filepath.Join(dir, "there.db")
	if err := os.WriteFile(there, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	moved := inhabited(t, 1)
	copyTo(t, moved, storetest.Postgres(t))
	missing := filepath.Join(dir, "missing.db")
	for _, test := range []struct{ uri, file, says string }{
		{uri, there, "exists already"},
		{uri, filepath.Join(dir, "no", "such", "folder"), "no such file"},
		{"sqlite:" + missing, filepath.Join(dir, "new.db"), "there is no database"},
		{"sqlite:" + there, filepath.Join(dir, "new.db"), "not a database"},
		{moved, filepath.Join(dir, "new.db"), "was moved to"},
		{pgtest.URI(t), filepath.Join(dir, "new.db"), "must be sqlite"},
	} {
		err := store.Backup(t.Context(), test.uri, test.file)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("backing up %s to %s: %v, want an error that says %q", test.uri, test.file, err, test.says)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.Backup(ctx, uri, filepath.Join(dir, "new.db")); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left are %v, %v", left, err)
	}
	if data, err := os.ReadFile(there); string(data) != "precious" {
		t.Errorf("the file that was there is %q, %v", data, err)
	}
}

// Operators make a backup before an upgrade, so Backup must not upgrade the schema itself.
func TestBackupLeavesTheSchema(t *testing.T) {
	s := open(t)
	store.ForgeSchemaVersion(t, s, "99999") // a schema that this program may not open
	if err := store.Backup(t.Context(), "sqlite:"+s.Path(), filepath.Join(t.TempDir(), "backup.db")); err != nil {
		t.Error(err)
	}
}
