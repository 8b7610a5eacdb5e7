package audit_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// reader follows a record, as a client of WatchEvents does.
type reader struct {
	stores []*store.Store // the replicas that the reader asks, one after the other
	of     audit.Following
	at     audit.Place
	counts map[string]int64 // the count that came last, by id
	times  int              // the number of records that came
	gaps   []audit.Gap
	delay  time.Duration
}

// read reads until a call brings nothing new.
func (r *reader) read(t *testing.T) {
	t.Helper()
	for more := true; more; {
		s := r.stores[rand.N(len(r.stores))]
		part, err := audit.Follow(t.Context(), s, r.of, r.at)
		if err != nil {
			t.Error(err)
			return
		}
		if part.Gap != audit.NoGap {
			r.gaps = append(r.gaps, part.Gap)
		}
		for _, e := range part.Records {
			r.counts[e.ID] = e.Count
			r.times++
		}
		r.at, more, r.delay = part.Next, part.More, part.Delay
	}
}

// readUntil reads until the reader has the records of the database.
func (r *reader) readUntil(t *testing.T, w *world) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for {
		want := map[string]int64{}
		for _, e := range w.all(t, r.of.Filter, 1000) {
			want[e.ID] = e.Count
		}
		r.read(t)
		if maps.Equal(want, r.counts) {
			return
		}
		if t.Failed() || len(r.counts) > len(want) {
			t.Fatalf("the reader has %d records of %d", len(r.counts), len(want))
		}
		if time.Now().After(end) {
			t.Fatalf("the reader lacks records: %d of %d after 20 seconds", len(r.counts), len(want))
		}
		time.Sleep(5 * time.Millisecond) // a mark is settled when the transactions of others have ended
	}
}

// Replicas write records at the same time, in transactions that are short and long, commit in
// another order than they begin, are rolled back, and change counts. A reader that asks one
// replica after the other has, at the end, exactly the record that List shows, and no record
// came twice without a change of its count.
func TestFollowMissesNothing(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri := new(t)
		w := openOn(t, uri)
		stores := []*store.Store{w.store, w.store}
		if t.Name() == "TestFollowMissesNothing/postgres" {
			stores[1] = storetest.Open(t, uri)
		}
		const writers, each = 8, 40
		var writing sync.WaitGroup
		changes := make([]int, writers)
		for n := range writers {
			writing.Go(func() { changes[n] = writeRecords(t, stores[n%2], n, each) })
		}
		done := make(chan struct{})
		go func() { writing.Wait(); close(done) }()
		r := &reader{stores: stores, counts: map[string]int64{}}
		for running := true; running; {
			select {
			case <-done:
				running = false
			case <-time.After(5 * time.Millisecond): // leaves the machine to the writers
			}
			r.read(t)
		}
		r.readUntil(t, w)
		most := 0
		for _, n := range changes {
			most += n
		}
		if r.times > most || len(r.gaps) > 0 {
			t.Errorf("%d records came for %d changes; gaps: %v", r.times, most, r.gaps)
		}
		before := r.times
		if r.read(t); r.times != before {
			t.Errorf("%d records came again", r.times-before)
		}
	})
}

// writeRecords writes records in transactions, and returns the number of changes.
func writeRecords(t *testing.T, s *store.Store, n, each int) (changes int) {
	id := ""
	for range each {
		r := &store.AuditRecord{Type: "login", UserID: fmt.Sprint("u", n), Count: 1}
		roll := rand.N(10)
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			if err := tx.InsertAudit(r); err != nil {
				return err
			}
			tx.Now()
			if roll < 3 { // other writers overtake this one
				time.Sleep(rand.N(20 * time.Millisecond))
				if _, err := tx.Head(); err != nil { // the query also sends the statements that are queued
					return err
				}
				time.Sleep(rand.N(20 * time.Millisecond))
			}
			if roll == 4 {
				return errRolledBack
			}
			if roll > 7 && id != "" {
				return tx.RaiseAuditCount(id)
			}
			return nil
		})
		if err != nil && err != errRolledBack {
			t.Error(err)
		}
		if err == nil {
			id = r.ID
			changes += 2
		}
	}
	return changes
}

var errRolledBack = fmt.Errorf("rolled back")

// Transactions of other clients write records between the statements of a reader that makes a
// mark, and commit late. The reader misses none of these records.
func TestFollowWaitsForLateCommits(t *testing.T) {
	uri := storetest.Postgres(t)
	proxy := pgtest.NewProxy(t, uri)
	w := openOn(t, proxy.URI())
	record := func() {
		t.Helper()
		if err := w.store.Write(t.Context(), func(tx *store.Tx) error { return tx.InsertAudit(&store.AuditRecord{Type: "login", Count: 1}) }); err != nil {
			t.Fatal(err)
		}
	}
	record()
	var late []*pgx.Conn
	proxy.Judge(func(pgtest.Trip) pgtest.Fate {
		if len(late) < 8 {
			late = append(late, openLate(t, uri, len(late)))
		}
		return pgtest.Pass
	})
	r := &reader{stores: []*store.Store{w.store}, counts: map[string]int64{}}
	for range 20 {
		r.read(t)
	}
	proxy.Judge(nil)
	if len(late) < 8 || r.delay == 0 {
		t.Errorf("%d transactions were open; the reader was told of a delay of %v", len(late), r.delay)
	}
	for _, conn := range late {
		r.read(t)
		if _, err := conn.Exec(t.Context(), `COMMIT`); err != nil {
			t.Fatal(err)
		}
	}
	record()
	r.readUntil(t, w)
}

// openLate begins a transaction with a record.
func openLate(t *testing.T, uri string, n int) *pgx.Conn {
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Error(err)
		return conn
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	for _, sql := range []string{`BEGIN`, fmt.Sprintf(`INSERT INTO audit (id, type, success, reason, actor_id, user_id, session_id, kid, source, detail, count)
		VALUES ('0late%d', 'login', true, '', '', '', '', '', '', '', 1)`, n)} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Error(err)
		}
	}
	return conn
}

// A reader that has read more than a restored database holds is told so, and gets every record
// after the newest mark that both know, also the records with numbers that the database gave
// before.
func TestFollowTellsOfALostHistory(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		record := func(detail string) {
			t.Helper()
			if err := w.store.Write(t.Context(), func(tx *store.Tx) error {
				return tx.InsertAudit(&store.AuditRecord{Type: "login", Detail: detail, Count: 1})
			}); err != nil {
				t.Fatal(err)
			}
		}
		ahead := &reader{stores: []*store.Store{w.store}, counts: map[string]int64{}}
		record("kept")
		ahead.readUntil(t, w)
		same := *ahead
		same.counts = maps.Clone(ahead.counts)
		// The reader has the mark of a history that was lost.
		ahead.at.Mark.Seq, ahead.at.Mark.Tag = ahead.at.Mark.Seq+5, 77
		ahead.at.After = ahead.at.Mark.Place()
		for i := range 3 {
			record(fmt.Sprint("new ", i))
		}
		ahead.readUntil(t, w)
		if !slices.Equal(ahead.gaps, []audit.Gap{audit.OtherHistory}) {
			t.Errorf("gaps %v", ahead.gaps)
		}
		same.readUntil(t, w)
		if len(same.gaps) > 0 || same.times != 4 {
			t.Errorf("a reader that the database knows: %d records came, gaps %v", same.times, same.gaps)
		}
	})
}

// A reader is told that old records were deleted before it read them, once, and a reader
// that has read the records is told nothing.
func TestFollowTellsOfDeletedRecords(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		insert := func(n int) {
			t.Helper()
			if err := w.store.Write(t.Context(), func(tx *store.Tx) error {
				for range n {
					if err := tx.InsertAudit(&store.AuditRecord{Type: "login", Count: 1}); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		behind := &reader{stores: []*store.Store{w.store}, counts: map[string]int64{}}
		insert(1)
		behind.readUntil(t, w)
		upToDate := &reader{stores: behind.stores, counts: map[string]int64{}, at: behind.at}
		insert(3)
		for upToDate.times < 3 {
			upToDate.read(t)
		}
		fresh := &reader{stores: behind.stores, counts: map[string]int64{}}
		for range 2 {
			if err := w.store.Write(t.Context(), func(tx *store.Tx) error {
				_, err := tx.PruneAudit(tx.Now().Add(time.Hour), 2)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		insert(2)
		for name, r := range map[string]*reader{"behind": behind, "up to date": upToDate, "new": fresh} {
			r.counts = map[string]int64{}
			r.readUntil(t, w)
			r.read(t)
			var want []audit.Gap
			if name == "behind" {
				want = []audit.Gap{audit.Deleted}
			}
			if !slices.Equal(r.gaps, want) {
				t.Errorf("%s: gaps %v, want %v", name, r.gaps, want)
			}
		}
	})
}

// The numbers of PostgreSQL's sequence begin again, as after a migration by logical
// replication. The reader is told, and gets every record.
func TestFollowWhenTheNumbersBeginAgain(t *testing.T) {
	w := openOn(t, storetest.Postgres(t))
	record := func() {
		t.Helper()
		for range 3 {
			if err := w.store.Write(t.Context(), func(tx *store.Tx) error { return tx.InsertAudit(&store.AuditRecord{Type: "login", Count: 1}) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := &reader{stores: []*store.Store{w.store}, counts: map[string]int64{}}
	record()
	record()
	r.readUntil(t, w)
	conn, err := pgx.Connect(t.Context(), w.uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `ALTER SEQUENCE audit_numbers RESTART`); err != nil {
		t.Fatal(err)
	}
	record()
	r.readUntil(t, w)
	record()
	r.readUntil(t, w)
	if !slices.Equal(r.gaps, []audit.Gap{audit.OtherHistory}) {
		t.Errorf("gaps %v", r.gaps)
	}
}
