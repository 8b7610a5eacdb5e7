package store_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// calls has the kinds of calls that a replica makes to its database.
var calls = map[string]func(context.Context, *store.Store) error{
	"Read": func(ctx context.Context, s *store.Store) error {
		return s.Read(ctx, func(tx *store.Tx) error { _, err := tx.Head(); return err })
	},
	"Write": func(ctx context.Context, s *store.Store) error { return s.Write(ctx, set("a", "1")) },
	"Spend": func(ctx context.Context, s *store.Store) error {
		if err := spend(ctx, s, "s0", 99); !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return nil
	},
}

// recovered calls until each call has succeeded.
func recovered(t *testing.T, s *store.Store) {
	t.Helper()
	deadline, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for name, call := range calls {
		for {
			ctx, cancel := context.WithTimeout(deadline, time.Second)
			err := call(ctx, s)
			cancel()
			if err == nil {
				break
			}
			if deadline.Err() != nil {
				t.Fatalf("%s has not recovered: %v", name, err)
			}
		}
	}
}

// refusedInTime lets many callers call at once, and checks that each caller gets an error within
// the allowed time.
func refusedInTime(t *testing.T, s *store.Store, allowed time.Duration) {
	t.Helper()
	const slack = 2 * time.Second // for a machine that is busy; the store's own bounds are 5 s and more
	late := storetest.Lateness(t)
	var tasks sync.WaitGroup
	for name, call := range calls {
		for range 16 {
			tasks.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), allowed)
				defer cancel()
				began := time.Now()
				err := call(ctx, s)
				if !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("%s: %v", name, err)
				}
				if took, most := time.Since(began), allowed+slack+20*late(); took > most {
					t.Errorf("%s answered after %v, want at most %v", name, took, most)
				}
			})
		}
	}
	tasks.Wait()
}

// A database that accepts connections and sends no answer costs a caller at most its
// deadline. When the database answers again, so does the store.
func TestABlackHole(t *testing.T) {
	b := newBehind(t)
	recovered(t, b.through) // an outage in which the pool has open connections
	b.proxy.Freeze()
	refusedInTime(t, b.through, 500*time.Millisecond)
	refusedInTime(t, b.through, 500*time.Millisecond) // an outage in which the pool has no connection
	b.proxy.Thaw()
	recovered(t, b.through)
}

// A database that sends no answer costs a timeout only to the few callers that the breaker
// lets through, also if no caller waits longer than a second.
func TestABlackHoleRefusesMostCallersAtOnce(t *testing.T) {
	b := newBehind(t)
	recovered(t, b.through)
	b.proxy.Freeze()
	within := func(patience time.Duration, call func(context.Context, *store.Store) error) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return call(ctx, b.through)
	}
	for until := time.Now().Add(30 * time.Second); !errors.Is(within(time.Second, calls["Read"]), store.ErrDown); {
		if time.Now().After(until) {
			t.Fatal("the breaker has not tripped")
		}
	}
	const span = 3 * time.Second
	began := time.Now()
	var asked, waited atomic.Int64
	var tasks sync.WaitGroup
	for range 16 {
		for _, call := range calls {
			tasks.Go(func() {
				for time.Since(began) < span {
					asked.Add(1)
					if !errors.Is(within(span, call), store.ErrDown) {
						waited.Add(1)
					}
					time.Sleep(10 * time.Millisecond) // a pause like that of clients that try again
				}
			})
		}
	}
	tasks.Wait()
	// A caller that is let through keeps a connection for nearly the whole span.
	if n, most := waited.Load(), int64(2*store.PoolSize); n > most {
		t.Errorf("%d of %d calls waited for the database, want %d at most", n, asked.Load(), most)
	}
	b.proxy.Thaw()
	recovered(t, b.through)
}

// A locked row may cost a caller the caller's time. The database is not away while other
// callers get answers, and the log does not say so.
func TestABusyDatabaseIsNotAway(t *testing.T) {
	uri := storetest.Postgres(t)
	var log bytes.Buffer
	s, err := store.Open(t.Context(), uri+"&pool_max_conns=2", store.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	insertAlice(t, s, 1)
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	lock, err := conn.Begin(t.Context())
	if err == nil {
		_, err = lock.Exec(t.Context(), "SELECT FROM users FOR UPDATE")
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	waiting := make(chan error)
	go func() {
		waiting <- s.Write(ctx, func(tx *store.Tx) error { _, err := tx.User("alice"); return err })
	}()
	for more := true; more; {
		select {
		case err := <-waiting:
			if more = false; !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrAway) {
				t.Error(err)
			}
		default:
			if err := calls["Read"](t.Context(), s); err != nil { // a Read like that of a server that polls
				t.Error(err)
			}
		}
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 {
		t.Errorf("the log says %s", &log)
	}
}

// While the database is down, callers fail at once, except one at a time that tries.
// When the database is back, the same Store works again.
func TestADatabaseThatIsGone(t *testing.T) {
	cluster := pgtest.Start(t, pgtest.Options{})
	uri := cluster.URI(t)
	if err := store.Migrate(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	proxy := pgtest.NewProxy(t, uri)
	s := storetest.Open(t, proxy.URI())
	insertAlice(t, s, 1)
	for name, end := range map[string]func(){"killed": cluster.Kill, "stopped": cluster.Stop} {
		recovered(t, s)
		end()
		proxy.Dials()
		refusedInTime(t, s, time.Second)
		const span = time.Second
		tried := proxy.Dials()
		began := time.Now()
		until := began.Add(span)
		var asked atomic.Int64
		var tasks sync.WaitGroup
		for range 32 {
			tasks.Go(func() {
				for ; time.Now().Before(until); asked.Add(1) {
					for kind, call := range calls {
						if err := call(context.Background(), s); !errors.Is(err, store.ErrUnavailable) {
							t.Errorf("%s: %s: %v", name, kind, err)
						}
					}
				}
			})
		}
		tasks.Wait()
		// The breaker lets a caller try every 100 ms, and a caller may try twice.
		// Without a breaker there are thousands of connections.
		n, most := proxy.Dials(), 2*int(time.Since(began)/(100*time.Millisecond))+store.PoolSize
		if n > most {
			t.Errorf("%s: %d connections were tried in %v, want %d at most", name, n, time.Since(began), most)
		}
		t.Logf("%s: %d connections were tried by 48 callers, then %d for %d calls", name, tried, n, 3*asked.Load())
		cluster.Restart()
		recovered(t, s)
	}
}

// If a standby refuses a transaction, the store opens a new connection, which reaches the
// primary. If a commit is interrupted while it waits for a standby, the store does not report
// the commit as done.
func TestStandbys(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Options{})
	uri := primary.URI(t)
	if err := store.Migrate(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	standby := primary.Standby(t, true)
	direct := storetest.Open(t, uri)
	insertAlice(t, direct, 1)

	t.Run("refuses", func(t *testing.T) {
		for name, call := range map[string]func(*store.Store) error{
			"Write": func(s *store.Store) error { return s.Write(t.Context(), set("a", "1")) },
			"a write that holds a row": func(s *store.Store) error {
				return s.Write(t.Context(), func(tx *store.Tx) error { _, err := tx.User("alice"); return err })
			},
			"Spend": func(s *store.Store) error { return spend(t.Context(), s, "s0", 1) },
		} {
			proxy := pgtest.NewProxy(t, uri)
			s := storetest.Open(t, proxy.URI())
			opened := proxy.Dials()
			proxy.Lead(standby.Addr())
			proxy.Cut()
			err := call(s)
			for n := 0; errors.Is(err, store.ErrUncertain) && n < store.PoolSize; n++ { // these errors come from connections that were cut
				err = call(s)
			}
			if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUncertain) {
				t.Errorf("%s on a standby: %v", name, err)
			}
			if n := proxy.Dials() - opened; n > 3 {
				t.Errorf("%s on a standby made %d connections", name, n)
			}
			proxy.Lead(primary.Addr())
			recoveredRead(t, s)
			if err := call(s); err != nil {
				t.Errorf("%s after the switch: %v", name, err)
			}
		}
	})

	t.Run("does not confirm", func(t *testing.T) {
		standby.Pause()
		defer standby.Resume()
		for name, call := range map[string]func() error{
			"Write": func() error { return direct.Write(context.Background(), set("unconfirmed", "yes")) },
			"Spend": func() error { return spend(context.Background(), direct, "s0", 2) },
		} {
			answer := make(chan error, 1)
			go func() { answer <- call() }()
			interruptCommit(t, primary)
			if err := <-answer; !errors.Is(err, store.ErrUncertain) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	if err := direct.Write(t.Context(), set("a", "2")); err != nil { // direct still uses the same connection
		t.Errorf("after the standby is back: %v", err)
	}
}

func recoveredRead(t *testing.T, s *store.Store) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); ; {
		if err := calls["Read"](t.Context(), s); err == nil {
			return
		} else if !errors.Is(err, store.ErrUnavailable) || time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

// interruptCommit waits for a commit that waits for a standby, and interrupts it.
func interruptCommit(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Superuser())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		tag, err := conn.Exec(ctx, `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
		if err != nil {
			t.Fatal(err)
		}
		if tag.RowsAffected() > 0 {
			return
		}
	}
}
