package audit

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// flusher drives a Log by the steps of Flush, so that refused calls can come between two steps.
type flusher struct {
	*testing.T
	log     *Log
	calls   int64 // the number of refused calls so far
	windows int   // the number of windows begun so far
	counter int   // counts up, so that each new kind gets a name of its own
}

// refuse makes refused calls of n kinds, most of them new.
func (f *flusher) refuse(n int) {
	for range n {
		f.counter++
		e := Event{Type: Login, Reason: "INVALID_CREDENTIALS"}
		if f.counter%2 == 0 {
			e.UserID = fmt.Sprint("user", f.counter%5*f.counter) // each fifth is user0
		}
		source := fmt.Sprintf("10.0.%d.%d", f.counter%7, f.counter%3*f.counter%200)
		f.log.Refused(caller.WithSource(f.Context(), caller.Source(source)), e)
		f.calls++
	}
}

// flush runs the steps of Flush, with further refused calls between the steps. With
// fail, the transaction is rolled back.
func (f *flusher) flush(t *rapid.T, during int, fail bool) {
	refused, full := errors.New("refused"), f.log.closing != nil
	before := f.calls
	changes, lost := f.log.changed()
	if !full && f.log.closing != nil {
		f.windows++
	}
	f.refuse(during)
	err := f.log.store.Write(f.Context(), func(tx *store.Tx) error {
		if err := write(tx, changes, lost); err != nil || !fail {
			return err
		}
		return refused
	})
	switch {
	case fail && errors.Is(err, refused):
		return
	case err != nil:
		t.Fatal(err)
	}
	f.log.settle(f.Context(), changes, len(lost))
	rows, sum := f.onRecord(t)
	if sum != before {
		t.Fatalf("%d refused calls on record, want %d", sum, before)
	}
	if most := f.windows * (3*maxPlaces + 1); rows > most {
		t.Fatalf("%d records in %d windows, want at most %d", rows, f.windows, most)
	}
}

func (f *flusher) onRecord(t *rapid.T) (rows int, sum int64) {
	records, next, err := List(f.Context(), f.log.store, store.AuditFilter{}, 100_000)
	if err != nil || next != "" {
		t.Fatal(next, err)
	}
	for _, r := range records {
		if r.Count <= 0 {
			t.Fatalf("a record counts %d calls", r.Count)
		}
		sum += r.Count
	}
	return len(records), sum
}

// After every flush of refused calls, the security record counts each refused call once, in a
// bounded number of rows: also if kinds of calls are displaced from memory during the flush, if
// the flush fails, and if the hour ends during the flush.
func TestEachRefusedCallIsOnRecordOnce(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	rapid.Check(t, func(r *rapid.T) {
		err := s.Write(t.Context(), func(tx *store.Tx) error { // deletes the records of the check before
			_, err := tx.PruneAudit(tx.Now().Add(time.Hour), 100_000)
			return err
		})
		if err != nil {
			r.Fatal(err)
		}
		f := &flusher{T: t, log: New(s, slog.New(slog.DiscardHandler)), windows: 1}
		for range rapid.IntRange(1, 6).Draw(r, "flushes") {
			f.refuse(rapid.IntRange(0, 300).Draw(r, "before"))
			if rapid.IntRange(0, 3).Draw(r, "over") == 0 {
				f.log.current.began = time.Now().Add(-windowLength)
			}
			f.flush(r, rapid.IntRange(0, 300).Draw(r, "during"), rapid.IntRange(0, 3).Draw(r, "fails") == 0)
		}
		f.flush(r, 0, false)
		if _, sum := f.onRecord(r); sum != f.calls {
			r.Fatalf("%d refused calls on record, want %d", sum, f.calls)
		}
	})
}
