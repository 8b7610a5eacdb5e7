package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

func testOnCommit(t *testing.T, new func(testing.TB) string) {
	uri := new(t)
	s, other := Open(t, uri), Open(t, uri)
	var calls []string
	write(t, s, func(tx *store.Tx) error {
		tx.OnCommit(func() { calls = append(calls, "first, seeing "+setting(t, other, "a")) })
		tx.OnCommit(func() { calls = append(calls, "second") })
		return tx.SetSetting("a", "1")
	})
	if got := fmt.Sprint(calls); got != "[first, seeing 1 second]" {
		t.Errorf("calls %s", got)
	}
	for name, fn := range map[string]func(*store.Tx) error{
		"refused":   func(*store.Tx) error { return errRefused },
		"broken":    fault,
		"panicking": func(*store.Tx) error { panic("a bug") },
		"name taken": func(tx *store.Tx) error {
			return errors.Join(tx.InsertUser(newUser("x", "x")), tx.InsertUser(newUser("x", "x")))
		},
	} {
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			tx.OnCommit(func() { t.Errorf("%s, and called", name) })
			return fn(tx)
		})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func testClosed(t *testing.T, new func(testing.TB) string) {
	s, err := store.Open(t.Context(), new(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	spent := s.Spend(t.Context(), spendOf("s", 1), func(*store.Spent) {})
	for name, err := range map[string]error{
		"Write": s.Write(t.Context(), set("a", "1")),
		"Read":  s.Read(t.Context(), func(tx *store.Tx) error { _, err := tx.Setting("a"); return err }),
		"Spend": spent,
	} {
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testUnchangingState(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	write(t, s, set("a", "1"))
	read(t, s, func(tx *store.Tx) error {
		before, err := tx.Setting("a")
		if err != nil {
			return err
		}
		write(t, s, set("a", "2"))
		after, err := tx.Setting("a")
		if before != "1" || after != "1" {
			t.Errorf("a read saw %q and then %q", before, after)
		}
		return err
	})
	wantSettings(t, s, map[string]string{"a": "2"})
}

// A transaction has one time. A transaction that waits for a row lock, or for
// Exclusive, has a later time than the transaction for which it waited.
func testInstants(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	insert(t, s, newUser("alice", "alice"))
	for name, wait := range map[string]func(*store.Tx) error{
		"a row":           func(tx *store.Tx) error { _, err := tx.User("alice"); return err },
		"being exclusive": func(tx *store.Tx) error { return tx.Exclusive() },
	} {
		var mu sync.Mutex
		var last time.Time
		var tasks sync.WaitGroup
		for range 8 {
			tasks.Go(func() {
				for range 5 {
					err := s.Write(context.Background(), func(tx *store.Tx) error {
						if err := wait(tx); err != nil {
							return err
						}
						now := tx.Now()
						mu.Lock()
						defer mu.Unlock()
						if now.Before(last) {
							t.Errorf("behind %s it is %v earlier than it was", name, last.Sub(now))
						}
						last = now
						if again := tx.Now(); !again.Equal(now) || now.Nanosecond()%1000 != 0 {
							t.Errorf("it is %v, and then %v", now, again)
						}
						return tx.SetSetting("a", name)
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		tasks.Wait()
	}
}

func testLostUpdates(t *testing.T, new func(testing.TB) string) {
	uri := new(t)
	stores := []*store.Store{Open(t, uri), Open(t, uri)}
	alice := newUser("alice", "alice")
	insert(t, stores[0], alice, newSession("s1", "alice"))
	for name, increment := range map[string]func(*store.Tx) error{
		"user": func(tx *store.Tx) error {
			u, err := tx.User("alice")
			if err != nil {
				return err
			}
			u.RevokedBelow++
			return tx.UpdateUser(u)
		},
		"session": func(tx *store.Tx) error {
			row, err := tx.Session("s1")
			if err != nil {
				return err
			}
			row.Generations.Low++
			return tx.AdvanceSession("s1", row.Generations)
		},
		"session and user": func(tx *store.Tx) error {
			row, _, err := tx.SessionAndUser("s1")
			if err != nil {
				return err
			}
			row.Generations.Late++
			return tx.AdvanceSession("s1", row.Generations)
		},
		"exclusive": func(tx *store.Tx) error {
			if err := tx.Exclusive(); err != nil {
				return err
			}
			value, err := tx.Setting("counter")
			n, _ := strconv.Atoi(value)
			return errors.Join(err, tx.SetSetting("counter", strconv.Itoa(n+1)))
		},
	} {
		repeat(t, 8, 10, func(i int) error { return stores[i%2].Write(context.Background(), increment) }, name)
	}
	read(t, stores[0], func(tx *store.Tx) error {
		row, u, err := tx.SessionAndUser("s1")
		if err != nil {
			return err
		}
		if g := row.Generations; u.RevokedBelow != 80 || g.Low != 80 || g.Late != 80 {
			t.Errorf("of 80 increments remain %d, %d and %d", u.RevokedBelow, g.Low, g.Late)
		}
		return nil
	})
	wantSettings(t, stores[0], map[string]string{"counter": "80"})
}

// repeat calls the function `do` several times in each of several goroutines.
func repeat(t *testing.T, goroutines, times int, do func(i int) error, name string) {
	t.Helper()
	var tasks sync.WaitGroup
	for i := range goroutines {
		tasks.Go(func() {
			for range times {
				if err := do(i); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	tasks.Wait()
}

func testExclusive(t *testing.T, new func(testing.TB) string) {
	uri := new(t)
	stores := []*store.Store{Open(t, uri), Open(t, uri)}
	var inside, most atomic.Int32
	repeat(t, 6, 5, func(i int) error {
		return stores[i%2].Write(context.Background(), func(tx *store.Tx) error {
			if err := tx.Exclusive(); err != nil {
				return err
			}
			defer inside.Add(-1)
			if n := inside.Add(1); n > most.Load() {
				most.Store(n)
			}
			_, err := tx.Setting("a") // a round trip on PostgreSQL, in which another transaction could enter
			return err
		})
	}, "exclusive")
	if most.Load() != 1 {
		t.Errorf("%d were exclusive at once", most.Load())
	}
}

func testEventsAreNumbered(t *testing.T, new func(testing.TB) string) {
	uri := new(t)
	stores := []*store.Store{Open(t, uri), Open(t, uri)}
	const writers, each = 8, 10
	var tasks sync.WaitGroup
	for w := range writers {
		tasks.Go(func() {
			for i := range each {
				var e *store.Event
				refuse := (w+i)%5 == 0
				err := stores[w%2].Write(context.Background(), func(tx *store.Tx) error {
					e = newEvent(tx, fmt.Sprint(w, " ", i))
					if err := tx.AppendEvent(e); err != nil {
						return err
					}
					if refuse {
						return errRefused
					}
					return nil
				})
				if (err != nil) != refuse {
					t.Error(err)
				}
				if !refuse {
					wantEvent(t, stores[(w+1)%2], e)
				}
			}
		})
	}
	tasks.Wait()
	events, head := tail(t, stores[0], 0, 1000)
	if head != writers*each*4/5 || len(events) != int(head) {
		t.Fatalf("%d events, head %d", len(events), head)
	}
	for i, e := range events {
		if e.Seq != int64(i+1) {
			t.Fatalf("event %d has number %d", i, e.Seq)
		}
	}
}

// wantEvent fails the test unless an acknowledged event has the stored number.
func wantEvent(t *testing.T, s *store.Store, e *store.Event) {
	t.Helper()
	var events []*store.Event
	err := s.Read(context.Background(), func(tx *store.Tx) (err error) {
		events, err = tx.Events(e.Seq-1, 1)
		return err
	})
	if err != nil || len(events) != 1 || events[0].Seq != e.Seq || events[0].Subject != e.Subject {
		t.Errorf("event %+v is to be found as %+v, %v", e, events, err)
	}
}

func tail(t *testing.T, s *store.Store, after int64, limit int) (events []*store.Event, head int64) {
	t.Helper()
	read(t, s, func(tx *store.Tx) (err error) {
		if head, err = tx.Head(); err != nil {
			return err
		}
		events, err = tx.Events(after, limit)
		return err
	})
	return events, head
}

func testHeadInto(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	for i := range 3 {
		var none, before, after int64
		var tag []byte
		e := &store.Event{}
		write(t, s, func(tx *store.Tx) error { return tx.HeadInto(&none, &tag) })
		if (len(tag) == 0) != (none == 0) {
			t.Errorf("the tag of number %d is %q", none, tag)
		}
		write(t, s, func(tx *store.Tx) error {
			*e = *newEvent(tx, "s")
			e.Tag = []byte(fmt.Sprintf("newest %d", i))
			return errors.Join(tx.HeadInto(&before, &tag), tx.AppendEvent(newEvent(tx, "s")), tx.AppendEvent(e), tx.HeadInto(&after, &tag))
		})
		if string(tag) != string(e.Tag) {
			t.Errorf("the newest tag is %q, want %q", tag, e.Tag)
		}
		if head := int64(2 * i); none != head || before != head || e.Seq != head+2 || after != head+2 {
			t.Errorf("%d events before: %d, %d, then number %d and %d", head, none, before, e.Seq, after)
		}
	}
}

// A transaction that appends an event sees a longer lifetime that another transaction
// has set: the database keeps events with higher numbers for the longer lifetime.
func testExpiry(t *testing.T, new func(testing.TB) string) {
	uri := new(t)
	stores := []*store.Store{Open(t, uri), Open(t, uri)}
	const raises = 10
	var tasks sync.WaitGroup
	done := make(chan struct{})
	for i := range 4 {
		tasks.Go(func() {
			for over := false; !over; {
				select {
				case <-done:
					over = true
				default:
				}
				err := stores[i%2].Write(context.Background(), func(tx *store.Tx) error {
					return tx.AppendEvent(&store.Event{Tag: []byte("12345678"), Kind: store.KeysChanged, ExpiresAt: time.Unix(0, 0)})
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range raises {
		write(t, stores[0], func(tx *store.Tx) error {
			err := errors.Join(tx.Exclusive(), tx.SetMaxLifetime(time.Duration(n+1)*time.Minute))
			return errors.Join(err, tx.AppendEvent(&store.Event{Tag: []byte("12345678"), Kind: store.KeysChanged, Subject: fmt.Sprint(n + 1), ExpiresAt: time.Unix(0, 0)}))
		})
	}
	close(done)
	tasks.Wait()
	events, _ := tail(t, stores[0], 0, 100_000)
	var longest time.Duration
	for _, e := range events {
		if n, err := strconv.Atoi(e.Subject); err == nil {
			longest = time.Duration(n) * time.Minute
		}
		if kept := e.ExpiresAt.Sub(time.Unix(0, 0)); kept != longest {
			t.Fatalf("event %d is kept for %v, and tokens live for %v", e.Seq, kept, longest)
		}
	}
	read(t, stores[0], func(tx *store.Tx) error {
		if got, err := tx.MaxLifetime(); err != nil || got != raises*time.Minute {
			t.Errorf("MaxLifetime: %v, %v", got, err)
		}
		return nil
	})
}

func testEvents(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	write(t, s, func(tx *store.Tx) error {
		for i := range 10 {
			e := &store.Event{Tag: []byte{byte(i), 0, 255}, Kind: store.VersionStale, Subject: fmt.Sprint("u", i), Version: int64(i), ExpiresAt: tx.Now().Add(-time.Hour)}
			if i == 3 {
				e.ExpiresAt = tx.Now().Add(time.Hour)
			}
			if err := tx.AppendEvent(e); err != nil {
				return err
			}
		}
		return nil
	})
	events, head := tail(t, s, 4, 3)
	if len(events) != 3 || head != 10 {
		t.Fatalf("%d events, head %d", len(events), head)
	}
	if e := events[0]; e.Seq != 5 || e.Subject != "u4" || e.Version != 4 || string(e.Tag) != "\x04\x00\xff" || e.Kind != store.VersionStale {
		t.Errorf("event %+v", e)
	}
	prune := func(limit int) (n int64) {
		write(t, s, func(tx *store.Tx) (err error) { n, err = tx.PruneEvents(tx.Now(), limit); return err })
		return n
	}
	if a, b, c := prune(5), prune(5), prune(5); a != 5 || b != 3 || c != 0 {
		t.Errorf("pruned %d, %d and %d", a, b, c)
	}
	events, head = tail(t, s, 0, 100)
	if len(events) != 2 || events[0].Seq != 4 || events[1].Seq != 10 || head != 10 {
		t.Errorf("left %+v, head %d", events, head)
	}
}
