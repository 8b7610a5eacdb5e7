package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

type world struct {
	uri    string
	store  *store.Store
	log    *audit.Log
	logged bytes.Buffer
}

func open(t *testing.T) *world {
	t.Helper()
	return openOn(t, storetest.SQLite(t))
}

// eachEngine runs a test on both kinds of database.
func eachEngine(t *testing.T, test func(t *testing.T, w *world)) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) { test(t, openOn(t, new(t))) })
}

func openOn(t *testing.T, uri string) *world {
	t.Helper()
	s := storetest.Open(t, uri)
	w := &world{uri: uri, store: s}
	w.log = audit.New(s, slog.New(slog.NewTextHandler(&w.logged, nil)))
	return w
}

func (w *world) flush(t *testing.T) {
	t.Helper()
	if err := w.log.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// all lists what a filter lets through, by pages of a size.
func (w *world) all(t *testing.T, f store.AuditFilter, size int) (records []*store.AuditRecord) {
	t.Helper()
	for {
		page, next, err := audit.List(t.Context(), w.store, f, size)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) > size {
			t.Fatalf("%d records on a page of %d", len(page), size)
		}
		records = append(records, page...)
		if next == "" {
			return records
		}
		f.Before = next
	}
}

func from(source string) context.Context {
	return caller.WithSource(context.Background(), caller.Source(source))
}

func (w *world) lines() int { return strings.Count(w.logged.String(), "\n") }

// A record of a transaction that was rolled back is neither in the table nor in the log.
func TestRecordIsPartOfItsTransaction(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		refusal := errors.New("no")
		for _, outcome := range []error{refusal, nil} {
			err := w.store.Write(t.Context(), func(tx *store.Tx) error {
				if err := w.log.Record(from("10.0.0.9"), tx, audit.Event{Type: audit.UserCreated, ActorID: "a", UserID: "u"}); err != nil {
					return err
				}
				if w.lines() != 0 {
					t.Error("logged before it was done")
				}
				return outcome
			})
			if !errors.Is(err, outcome) {
				t.Fatal(err)
			}
		}
		records := w.all(t, store.AuditFilter{}, 10)
		if len(records) != 1 || w.lines() != 1 {
			t.Fatalf("%d records, log: %s", len(records), &w.logged)
		}
		r := *records[0]
		if age := time.Since(r.Time()); age < 0 || age > time.Minute {
			t.Errorf("time %v", r.Time())
		}
		r.ID = ""
		if want := (store.AuditRecord{Type: "user.created", Success: true, ActorID: "a", UserID: "u", Source: "10.0.0.9", Count: 1}); r != want {
			t.Errorf("%+v, want %+v", r, want)
		}
		if !strings.Contains(w.logged.String(), "msg=audit type=user.created success=true actor_id=a user_id=u source=10.0.0.9 count=1") {
			t.Errorf("log: %s", &w.logged)
		}
	})
}

// Several transactions share one commit. Each record is logged if its own transaction was
// committed, and not logged if that transaction was rolled back.
func TestRecordsThatShareACommit(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		refusal := errors.New("no")
		var tasks sync.WaitGroup
		for i := range 200 {
			tasks.Go(func() {
				err := w.store.Write(context.Background(), func(tx *store.Tx) error {
					if err := w.log.Record(from("x"), tx, audit.Event{Type: audit.Login, UserID: fmt.Sprint(i)}); err != nil {
						return err
					}
					if i%2 == 1 {
						return refusal
					}
					return nil
				})
				if (err == nil) != (i%2 == 0) {
					t.Error(err)
				}
			})
		}
		tasks.Wait()
		if n := len(w.all(t, store.AuditFilter{}, 1000)); n != 100 || w.lines() != 100 {
			t.Errorf("%d records, %d lines", n, w.lines())
		}
	})
}

// Refused calls of one kind (such as one method, reason and source) share one record for each
// hour, and each call raises the record's count. The log has a line when the kind appears and a
// line when its hour ends.
func TestRefusalsOfOneKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t)
		guess := func(n int) {
			for range n {
				w.log.Refused(from("10.0.0.1"), audit.Event{Type: audit.Login, Reason: "INVALID_CREDENTIALS", UserID: "u"})
			}
			w.flush(t)
		}
		guess(1)
		time.Sleep(time.Minute)
		guess(41)
		records := w.all(t, store.AuditFilter{}, 10)
		if len(records) != 1 || records[0].Count != 42 || records[0].Success || records[0].Reason != "INVALID_CREDENTIALS" || w.lines() != 1 {
			t.Fatalf("%+v; log: %s", records, &w.logged)
		}
		w.flush(t)
		time.Sleep(time.Hour)
		w.flush(t)
		guess(3)
		records = w.all(t, store.AuditFilter{}, 10)
		if len(records) != 2 || records[0].Count != 3 || records[1].Count != 42 {
			t.Fatalf("%+v", records)
		}
		if w.lines() != 3 || !strings.Contains(w.logged.String(), "count=42") {
			t.Errorf("log: %s", &w.logged)
		}
	})
}

// While the database is away, the counts of refused calls are kept in memory, and none is lost.
func TestRefusalsWaitForTheDatabase(t *testing.T) {
	w := open(t)
	w.log.Refused(from("x"), audit.Event{Type: audit.Login, Reason: "INVALID_CREDENTIALS"})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	gate, entered := make(chan struct{}), make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		_ = w.store.Write(context.Background(), func(*store.Tx) error { close(entered); <-gate; return nil })
	})
	<-entered
	if err := w.log.Flush(gone); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("flushed: %v", err)
	}
	close(gate)
	busy.Wait()
	w.log.Refused(from("x"), audit.Event{Type: audit.Login, Reason: "INVALID_CREDENTIALS"})
	w.flush(t)
	if records := w.all(t, store.AuditFilter{}, 10); len(records) != 1 || records[0].Count != 2 {
		t.Fatalf("%+v", records)
	}
}

func TestListAndPrune(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t)
		begin := time.Now()
		for i := range 60 {
			storetest.Wait(t, w.store, time.Minute)
			e := audit.Event{Type: []audit.Type{audit.Login, audit.Logout}[i%2], UserID: fmt.Sprint("u", i%3), ActorID: fmt.Sprint("a", i%5), SessionID: fmt.Sprint("s", i)}
			if err := w.store.Write(t.Context(), func(tx *store.Tx) error { return w.log.Record(t.Context(), tx, e) }); err != nil {
				t.Fatal(err)
			}
		}
		for name, c := range map[string]struct {
			filter store.AuditFilter
			want   int
		}{
			"all":                  {store.AuditFilter{}, 60},
			"type":                 {store.AuditFilter{Type: "login"}, 30},
			"to a user":            {store.AuditFilter{UserID: "u1"}, 20},
			"by a user":            {store.AuditFilter{UserID: "a1"}, 12},
			"session":              {store.AuditFilter{SessionID: "s7"}, 1},
			"type and user":        {store.AuditFilter{Type: "logout", UserID: "u0"}, 10},
			"from a moment on":     {store.AuditFilter{Start: begin.Add(51 * time.Minute)}, 10},
			"before a moment":      {store.AuditFilter{End: begin.Add(51 * time.Minute)}, 50},
			"between":              {store.AuditFilter{Start: begin.Add(10 * time.Minute), End: begin.Add(20 * time.Minute)}, 10},
			"nothing":              {store.AuditFilter{Type: "no such type"}, 0},
			"before 1970":          {store.AuditFilter{End: time.Unix(-1, 0)}, 0},
			"not a user's session": {store.AuditFilter{SessionID: "s7", UserID: "u2"}, 0},
		} {
			for _, size := range []int{1, 7, 1000} {
				records := w.all(t, c.filter, size)
				if len(records) != c.want {
					t.Errorf("%s by %d: %d records, want %d", name, size, len(records), c.want)
				}
				for i := range records[:max(0, len(records)-1)] {
					if !records[i].Time().After(records[i+1].Time()) {
						t.Errorf("%s by %d: not the newest first", name, size)
					}
				}
			}
		}
		if err := w.log.Prune(t.Context(), 9*time.Minute+30*time.Second); err != nil {
			t.Fatal(err)
		}
		if left := w.all(t, store.AuditFilter{}, 100); len(left) < 10 || len(left) > 30 { // ticks count the time in units of ten minutes
			t.Errorf("%d records left, want 10 to 30", len(left))
		}
	})
}

// The records of all users that have or had a name come in one list, whatever the size of the
// pages. A record that concerns two of these users comes once.
func TestListByName(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		want := map[string][]string{}
		err := w.store.Write(t.Context(), func(tx *store.Tx) error {
			// Most pages hold records of one of two namesakes alone: of the first, or the second.
			for name, ids := range map[string][2]string{"erin": {"id1", "id2"}, "frank": {"id4", "id3"}} {
				for _, id := range ids {
					u := &store.User{ID: id, Username: name, CreatedAt: tx.Now(), UpdatedAt: tx.Now()}
					if err := tx.InsertUser(u); err != nil {
						return err
					}
					if u.DeletedAt = tx.Now(); id == ids[0] {
						if err := tx.UpdateUser(u); err != nil {
							return err
						}
					}
				}
				for i := range 20 {
					r := &store.AuditRecord{Type: "login", Success: true, Count: 1, UserID: ids[0]}
					if i < 3 {
						r.UserID, r.ActorID = ids[1], ids[i%2]
					}
					if err := tx.InsertAudit(r); err != nil {
						return err
					}
					want[name] = append(want[name], r.ID)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for name, ids := range want {
			slices.Sort(ids) // ids of one transaction are in any order
			slices.Reverse(ids)
			for size := 1; size < 12; size++ {
				var got []string
				f := store.AuditFilter{}
				for range 100 {
					records, next, err := audit.ListByName(t.Context(), w.store, f, name, size)
					if err != nil || len(records) > size {
						t.Fatalf("%d records in a page of %d, %v", len(records), size, err)
					}
					for _, r := range records {
						got = append(got, r.ID)
					}
					if f.Before = next; next == "" {
						break
					}
				}
				if !slices.Equal(got, ids) {
					t.Errorf("%s, by pages of %d: %d records, want %d in order", name, size, len(got), len(ids))
				}
			}
		}
		if _, _, err := audit.ListByName(t.Context(), w.store, store.AuditFilter{}, "eve", 10); !errors.Is(err, audit.ErrUnknownName) {
			t.Error(err)
		}
	})
}
