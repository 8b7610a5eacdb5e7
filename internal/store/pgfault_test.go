package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// parameter adds a parameter to a URI.
func parameter(uri, parameter string) string {
	if strings.Contains(uri, "?") {
		return uri + "&" + parameter
	}
	return uri + "?" + parameter
}

// behind is a database with alice and her session, a store that reaches the database through a
// proxy, and a store with a direct connection.
type behind struct {
	proxy           *pgtest.Proxy
	through, direct *store.Store
}

func newBehind(t *testing.T, parameters ...string) *behind {
	t.Helper()
	uri := storetest.Postgres(t)
	b := &behind{proxy: pgtest.NewProxy(t, uri), direct: storetest.Open(t, uri)}
	through := b.proxy.URI()
	for _, p := range parameters {
		through = parameter(through, p)
	}
	b.through = storetest.Open(t, through)
	insertAlice(t, b.direct, 1)
	return b
}

// insertAlice makes the user alice and the given number of sessions: s0, s1 and so on.
func insertAlice(t testing.TB, s *store.Store, sessions int) {
	t.Helper()
	now := time.Now()
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		errs := []error{tx.InsertUser(&store.User{ID: "alice", Username: "alice", CreatedAt: now, UpdatedAt: now})}
		for i := range sessions {
			errs = append(errs, tx.InsertSession(&store.Session{
				ID: fmt.Sprint("s", i), UserID: "alice", Audience: []string{"internal"}, CreatedAt: now, RefreshedAt: now,
				Generations: store.Generations{Current: 1},
			}))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func spend(ctx context.Context, s *store.Store, session string, generation int64) error {
	return s.Spend(ctx, spendOf(session, generation), func(*store.Spent) {})
}

func generation(t testing.TB, s *store.Store, session string) (n int64) {
	t.Helper()
	err := s.Read(context.Background(), func(tx *store.Tx) error {
		row, err := tx.Session(session)
		n = row.Generations.Current
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// once lets one trip have a fate, which runs a statement that begins with these words.
func once(words string, fate pgtest.Fate) func(pgtest.Trip) pgtest.Fate {
	var done atomic.Bool
	return func(trip pgtest.Trip) pgtest.Fate {
		for _, s := range trip.Statements {
			if strings.HasPrefix(s.SQL, words) && done.CompareAndSwap(false, true) {
				return fate
			}
		}
		return pgtest.Pass
	}
}

// A commit whose answer was lost is ErrUncertain: the store neither runs the
// transaction again nor reports that it failed.
func TestACommitThatIsCutIsUncertain(t *testing.T) {
	b := newBehind(t)
	for fate, want := range map[pgtest.Fate]string{pgtest.CutBefore: "", pgtest.CutAfter: "yes"} {
		name := fmt.Sprint("fate ", fate)
		for kind, before := range map[string]func(*store.Tx) error{
			"in one trip":   func(*store.Tx) error { return nil },
			"in two trips":  func(tx *store.Tx) error { _, err := tx.User("alice"); return err },
			"with an event": func(tx *store.Tx) error { return appendEvent(tx, "cut") },
		} {
			setting1 := name + kind
			b.proxy.Judge(once("COMMIT", fate))
			runs := 0
			err := b.through.Write(t.Context(), func(tx *store.Tx) error {
				runs++
				tx.OnCommit(func() { t.Errorf("%s %s: told that it is committed", name, kind) })
				return errors.Join(before(tx), tx.SetSetting(setting1, "yes"))
			})
			b.proxy.Judge(nil)
			if !errors.Is(err, store.ErrUncertain) || !errors.Is(err, store.ErrUnavailable) || runs != 1 {
				t.Errorf("%s %s: ran %d times, %v", name, kind, runs, err)
			}
			if got := setting(t, b.direct, setting1); got != want {
				t.Errorf("%s %s: %q, want %q", name, kind, got, want)
			}
		}
	}
}

// If the connection is cut before the commit, the transaction changes nothing, and the store
// runs the transaction again.
func TestWhatIsCutBeforeTheCommitIsDoneOnce(t *testing.T) {
	b := newBehind(t)
	for _, fate := range []pgtest.Fate{pgtest.CutBefore, pgtest.CutAfter} {
		b.proxy.Judge(once("SELECT id, username", fate))
		runs, commits := 0, 0
		var e *store.Event
		err := b.through.Write(t.Context(), func(tx *store.Tx) error {
			runs++
			tx.OnCommit(func() { commits++ })
			u, err := tx.User("alice")
			if err != nil {
				return err
			}
			u.Version++
			e = newEvent(tx, "s")
			return errors.Join(tx.UpdateUser(u), tx.AppendEvent(e))
		})
		if err != nil || runs != 2 || commits != 1 {
			t.Errorf("fate %v: ran %d times, committed %d times, %v", fate, runs, commits, err)
		}
		b.proxy.Judge(once("SELECT id, username", fate))
		runs = 0
		err = b.through.Read(t.Context(), func(tx *store.Tx) error {
			runs++
			u, err := tx.User("alice")
			if err == nil && u.Version != e.Seq {
				t.Errorf("event %d and version %d", e.Seq, u.Version)
			}
			return err
		})
		if err != nil || runs != 2 {
			t.Errorf("fate %v: read %d times, %v", fate, runs, err)
		}
	}
}

func TestASpendingThatIsCutIsUncertain(t *testing.T) {
	for fate, want := range map[pgtest.Fate]int64{pgtest.CutBefore: 1, pgtest.CutAfter: 2} {
		b := newBehind(t)
		b.proxy.Judge(once("UPDATE sessions", fate))
		if err := spend(t.Context(), b.through, "s0", 1); !errors.Is(err, store.ErrUncertain) {
			t.Errorf("fate %v: %v", fate, err)
		}
		if got := generation(t, b.direct, "s0"); got != want {
			t.Errorf("fate %v: generation %d, want %d", fate, got, want)
		}
	}
}

// After a batch whose connection is cut, no member gets an error: the members run again
// one by one, or were spent in the batch.
func TestABatchThatIsCut(t *testing.T) {
	const members = store.MaxBatch
	for _, fate := range []pgtest.Fate{pgtest.CutBefore, pgtest.CutAfter} {
		b := newBehind(t)
		insertMembers(t, b.direct, members)
		b.proxy.Judge(once("UPDATE sessions", fate))
		for i, err := range store.SpendTogether(t.Context(), b.through, spendsOf(members)) {
			// If the batch was committed, a second Spend returns ErrNotFound, and
			// package session then reads the row.
			if err != nil && !(fate == pgtest.CutAfter && errors.Is(err, store.ErrNotFound)) {
				t.Errorf("fate %v: member %d: %v", fate, i, err)
			}
			if got := generation(t, b.direct, fmt.Sprint("m", i)); got != 2 {
				t.Errorf("fate %v: member %d is of generation %d", fate, i, got)
			}
		}
	}
}

func spendOf(session string, generation int64) *store.Spend {
	return &store.Spend{
		SessionID: session, Generation: generation, Audience: "internal", Grace: 10 * time.Second, Idle: time.Hour, Max: 24 * time.Hour,
	}
}

func spendsOf(members int) (spends []*store.Spend) {
	for i := range members {
		spends = append(spends, spendOf(fmt.Sprint("m", i), 1))
	}
	return spends
}

// insertMembers makes sessions of alice: m0, m1 and so on.
func insertMembers(t *testing.T, s *store.Store, n int) {
	t.Helper()
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		for i := range n {
			err := tx.InsertSession(&store.Session{
				ID: fmt.Sprint("m", i), UserID: "alice", Audience: []string{"internal"}, CreatedAt: tx.Now(), RefreshedAt: tx.Now(),
				Generations: store.Generations{Current: 1},
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A pool full of dead connections, as after a restart of PostgreSQL, makes no call
// fail.
func TestConnectionsThatDiedWhileIdle(t *testing.T) {
	const connections = 25 // more connections than a call has attempts
	b := newBehind(t, fmt.Sprint("pool_max_conns=", connections))
	fill := func() {
		var entered sync.WaitGroup
		entered.Add(connections)
		var tasks sync.WaitGroup
		for range connections {
			tasks.Go(func() {
				first := true
				err := b.through.Read(context.Background(), func(tx *store.Tx) error {
					_, err := tx.Setting("a")
					if first {
						first = false
						entered.Done()
					}
					entered.Wait()
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		tasks.Wait()
	}
	fill()
	b.proxy.Cut()
	if err := b.through.Write(t.Context(), set("a", "1")); err != nil && !errors.Is(err, store.ErrUncertain) {
		t.Errorf("Write: %v", err)
	}
	fill()
	b.proxy.Cut()
	if err := b.through.Read(t.Context(), func(tx *store.Tx) error { _, err := tx.Setting("a"); return err }); err != nil {
		t.Errorf("Read: %v", err)
	}
	fill()
	b.proxy.Cut()
	if err := spend(t.Context(), b.through, "s0", 1); err != nil && !errors.Is(err, store.ErrUncertain) {
		t.Errorf("Spend: %v", err)
	}
}

func newEvent(tx *store.Tx, subject string) *store.Event {
	return &store.Event{Tag: []byte("12345678"), Kind: store.SessionEnded, Subject: subject, ExpiresAt: tx.Now().Add(time.Hour)}
}

func appendEvent(tx *store.Tx, subject string) error { return tx.AppendEvent(newEvent(tx, subject)) }
