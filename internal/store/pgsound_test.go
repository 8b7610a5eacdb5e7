package store_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// PostgreSQL also sends warnings that have nothing to do with a standby, such as that the rules
// of sorting have changed beneath the database, with every connection. After such a warning, the
// store still uses the connection.
func TestAWarningOfSomethingElseIsNoDoubt(t *testing.T) {
	cluster := pgtest.Start(t, pgtest.Options{})
	uri := cluster.URI(t)
	if err := store.Migrate(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	cluster.Exec(t, `UPDATE pg_database SET datcollversion = '1'`)
	s := storetest.Open(t, uri)
	insertAlice(t, s, 2)
	for name, err := range map[string]error{
		"alone":    spend(t.Context(), s, "s0", 1),
		"together": errors.Join(store.SpendTogether(t.Context(), s, []*store.Spend{spendOf("s0", 2), spendOf("s1", 1)})...),
		"Read":     calls["Read"](t.Context(), s),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A client that refreshes a session again and again, while a transaction without our
// timeouts holds the session's row, keeps no other session from refreshing. Its errors
// do not trip the breaker: the database works.
func TestHeldSessionsStopNoStranger(t *testing.T) {
	uri := storetest.Postgres(t)
	s := storetest.Open(t, uri)
	insertAlice(t, s, 4)
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `BEGIN; SELECT 1 FROM sessions WHERE id IN ('s0', 's1') FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	var held sync.WaitGroup
	defer held.Wait()
	for i := range 6 {
		held.Go(func() {
			if err := spend(context.Background(), s, []string{"s0", "s1"}[i%2], 1); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("a held session: %v", err)
			}
		})
	}
	done := make(chan struct{})
	go func() { held.Wait(); close(done) }()
	answered := int64(0) // strangers while sessions are held
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-time.After(50 * time.Millisecond):
			if err := errors.Join(spend(t.Context(), s, "s2", answered+1), calls["Read"](t.Context(), s)); err != nil {
				t.Fatalf("a stranger: %v", err)
			}
			answered++
		}
	}
	// The last stranger may have waited until nothing was held.
	if answered < 3 {
		t.Errorf("%d strangers were answered while sessions were held", answered)
	}
}

// Callers get an answer by their deadline, also callers that find no room in the queue.
func TestAFrozenDatabaseKeepsNobodyInTheQueue(t *testing.T) {
	b := newBehind(t)
	recovered(t, b.through)
	b.proxy.Freeze()
	defer b.proxy.Thaw()
	const callers = 6 * store.MaxBatch
	var late atomic.Int64
	var tasks sync.WaitGroup
	for i := range callers {
		tasks.Go(func() {
			deadline := time.Now().Add(2*time.Second + time.Duration(i)*3*time.Millisecond) // one after the other
			ctx, cancel := context.WithDeadline(context.Background(), deadline)
			defer cancel()
			var woken atomic.Bool // in the midst of the time that is left for the answer
			timer := time.AfterFunc(time.Until(deadline)-store.AnswerTime/2, func() { woken.Store(ctx.Err() == nil) })
			defer timer.Stop()
			if err := spend(ctx, b.through, "s0", 1); !errors.Is(err, store.ErrUnavailable) {
				t.Error(err)
			}
			if ctx.Err() != nil && woken.Load() {
				late.Add(1)
			}
		})
	}
	tasks.Wait()
	// A busy machine wakes some goroutines late: callers beside which the machine ran a timer
	// late, too, do not count. Callers that waited for the queue without a deadline would all be late.
	if n := late.Load(); n > callers/10 {
		t.Errorf("%d of %d were answered after their deadline", n, callers)
	}
}

// The answer with which PostgreSQL refuses a statement shows that the database is back, like any
// other answer.
func TestARefusalShowsThatTheDatabaseIsBack(t *testing.T) {
	b := newBehind(t)
	recovered(t, b.through)
	b.proxy.Freeze()
	if err := calls["Read"](context.Background(), b.through); !errors.Is(err, store.ErrUnavailable) {
		t.Fatal(err)
	}
	b.proxy.Thaw()
	refusal := errors.New("refused")
	refused := func() error {
		return b.through.Read(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Head()
			return errors.Join(err, refusal)
		})
	}
	for until := time.Now().Add(20 * time.Second); errors.Is(refused(), store.ErrUnavailable); {
		if time.Now().After(until) {
			t.Fatal("the database is not back")
		}
	}
	for range 50 { // from now on all calls may pass the breaker
		if err := refused(); errors.Is(err, store.ErrUnavailable) {
			t.Fatal(err)
		}
	}
}

// A standby can lag behind the primary without a bound, so the store reads nothing from a
// standby.
func TestAStandbyIsNotRead(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Options{})
	uri := primary.URI(t)
	if err := store.Migrate(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	standby := primary.Standby(t, false)
	proxy := pgtest.NewProxy(t, uri)
	s := storetest.Open(t, proxy.URI())
	proxy.Lead(standby.Addr())
	proxy.Cut()
	prune := func(tx *store.Tx) error { _, err := tx.PruneEvents(tx.Now(), 10); return err } // prune finds no event to delete
	for name, err := range map[string]error{"Read": calls["Read"](t.Context(), s), "Write": s.Write(t.Context(), prune)} {
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s on a standby: %v", name, err)
		}
	}
	if _, err := store.Open(t.Context(), standby.Here(uri)); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("opened on a standby: %v", err)
	}
}
