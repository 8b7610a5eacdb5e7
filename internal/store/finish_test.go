package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// These statements are those of programs that do not know service accounts.
const (
	earlierReplica = `INSERT INTO replicas (id, address, answered, written_at, summary) VALUES ($1, $2, $3, $4, $5)`
	earlierEvent   = `INSERT INTO events (seq, tag, kind, subject, version, expires_at) SELECT seq + $1, $2, $3, $4, $5, $6 FROM head WHERE id = 1`
)

// newestEarlier is the newest migration of these programs.
const newestEarlier = 14

func appendEarlier(t *testing.T, s *store.Store) error {
	t.Helper()
	return store.Exec(t, s, earlierEvent, 1000, []byte{1}, "version-raised", "alice", 2, 1)
}

func appendPresent(t *testing.T, s *store.Store) error {
	t.Helper()
	return s.Write(t.Context(), func(tx *store.Tx) error {
		return tx.AppendEvent(&store.Event{Tag: []byte{1}, Kind: store.SessionEnded, Subject: "s", ExpiresAt: tx.Now()})
	})
}

// Before the end of an upgrade, earlier programs work with the database. The upgrade does not
// end while a server of an earlier version runs. Afterwards earlier programs do not start, and
// an earlier program that still runs can revoke nothing: the database refuses its events.
func TestFinish(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri := new(t)
		s := storetest.Open(t, uri)
		now := time.Now().UnixMicro()
		wants := func(when string, excluded bool) {
			t.Helper()
			if err := store.CheckSchemaAs(t, s, newestEarlier); errors.Is(err, store.ErrSchema) != excluded {
				t.Errorf("%s, an earlier program may start: %v", when, err)
			}
			if err := appendEarlier(t, s); (err != nil) != excluded {
				t.Errorf("%s, the event of an earlier program: %v", when, err)
			}
			if err := appendPresent(t, s); err != nil {
				t.Errorf("%s: %v", when, err)
			}
			if err := store.Exec(t, s, `DELETE FROM events WHERE seq > 1000`); err != nil {
				t.Fatal(err)
			}
		}
		wants("before", false)
		for _, replica := range []struct {
			id      int
			address string
			written int64
		}{{1, "runs:50051", now}, {2, "ended:50051", now - (3 * time.Minute).Microseconds()}} {
			if err := store.Exec(t, s, earlierReplica, replica.id, replica.address, 0, replica.written, []byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			return tx.WriteReplica(&store.Replica{ID: 3, Address: "present:50051", Summary: []byte{1}})
		})
		if err != nil {
			t.Fatal(err)
		}
		var earlier *store.EarlierError
		if err := store.Finish(t.Context(), uri, "v1.2.3"); !errors.As(err, &earlier) || strings.Join(earlier.Replicas, " ") != "runs:50051" {
			t.Errorf("with a server of an earlier version: %v", err)
		}
		wants("with a server of an earlier version", false)
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.DeleteReplica(1) }); err != nil {
			t.Fatal(err)
		}
		for range 2 { // a second time does nothing
			if err := store.Finish(t.Context(), uri, "v1.2.3"); err != nil {
				t.Fatal(err)
			}
			wants("after", true)
		}
		if err := store.CheckSchemaAs(t, s, newestEarlier); err == nil || !strings.Contains(err.Error(), `"v1.2.3" is the oldest that can`) {
			t.Errorf("an earlier program is told %v", err)
		}
		if err := s.Write(t.Context(), (*store.Tx).AllowServices); err != nil {
			t.Error(err)
		}
	})
}

// On PostgreSQL an operator ends the upgrade. On SQLite the first service account does, unless
// a server of an earlier version runs.
func TestServicesWaitForTheUpgrade(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri := new(t)
		s := storetest.Open(t, uri)
		if err := store.Exec(t, s, earlierReplica, 1, "runs:50051", 0, time.Now().UnixMicro(), []byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := s.Write(t.Context(), (*store.Tx).AllowServices); !errors.Is(err, store.ErrUnfinished) {
			t.Errorf("with a server of an earlier version: %v", err)
		}
		if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.DeleteReplica(1) }); err != nil {
			t.Fatal(err)
		}
		err := s.Write(t.Context(), (*store.Tx).AllowServices)
		if embedded := s.Path() != ""; embedded != (err == nil) || !embedded && !errors.Is(err, store.ErrUnfinished) {
			t.Errorf("%v; by itself: %t", err, embedded)
		}
		if refused := appendEarlier(t, s) != nil; refused != (err == nil) {
			t.Errorf("the event of an earlier program is refused: %t", refused)
		}
	})
}

// A copy of a database that excludes earlier programs excludes earlier programs too.
func TestACopyExcludesEarlierPrograms(t *testing.T) {
	from, to := storetest.SQLite(t), storetest.Postgres(t)
	s := storetest.Open(t, from)
	if err := s.Write(t.Context(), (*store.Tx).AllowServices); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Copy(t.Context(), from, to); !errors.Is(err, store.ErrUnfinished) {
		t.Errorf("copied to a database that earlier programs can use: %v", err)
	}
	if err := appendPresent(t, s); err != nil {
		t.Errorf("after the refused copy: %v", err)
	}
	if err := store.Finish(t.Context(), to, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Copy(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if err := appendEarlier(t, storetest.Open(t, to)); err == nil {
		t.Error("the copy takes the event of an earlier program")
	}
}
