package password

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// crowd drives a pool whose hashes run until they are told to end. It lives in
// a synctest bubble, where settle returns once everyone hashes or waits.
type crowd struct {
	t    *testing.T
	pool *Pool
	pw   Password
	end  chan struct{} // each element ends one hash
	wg   sync.WaitGroup

	mu     sync.Mutex
	served []string // names, in the order in which their hashes ended well
	errs   map[string]error
}

func newCrowd(t *testing.T, cfg Config) *crowd {
	c := &crowd{t: t, pool: NewPool(cfg), pw: parse(t, "correct horse"), end: make(chan struct{}), errs: make(map[string]error)}
	c.pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, keyLen uint32) []byte {
		<-c.end
		return make([]byte, keyLen)
	}
	return c
}

// arrive sends a caller in and waits until it hashes, waits or is refused.
func (c *crowd) arrive(ctx context.Context, who Caller, name string) {
	c.wg.Go(func() {
		_, err := c.pool.Hash(ctx, who, c.pw)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.errs[name] = err
		if err == nil {
			c.served = append(c.served, name)
		}
	})
	synctest.Wait()
}

func (c *crowd) arriveMany(who Caller, names ...string) {
	for _, name := range names {
		c.arrive(c.t.Context(), who, name)
	}
}

// finish ends one hash and waits until the next has begun.
func (c *crowd) finish() {
	c.end <- struct{}{}
	synctest.Wait()
}

// finishAll ends everyone's hash, and checks that nobody is left inside.
func (c *crowd) finishAll() {
	c.t.Helper()
	close(c.end)
	c.wg.Wait()
	if p := c.pool; p.taken != 0 || p.strangers != 0 || len(p.slots) != 0 {
		c.t.Errorf("after all have left: %d places, %d strangers, %d slots", p.taken, p.strangers, len(p.slots))
	}
}

// expect compares who has an answer so far, and whether it is the error.
func (c *crowd) expect(want error, names ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if got, ok := c.errs[name]; !ok || !errors.Is(got, want) {
			c.t.Errorf("%s: got %v (answered: %v), want %v", name, got, ok, want)
		}
	}
}

func (c *crowd) expectWaiting(names ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if got, ok := c.errs[name]; ok {
			c.t.Errorf("%s has an answer: %v", name, got)
		}
	}
}

func TestFullQueueRefusesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 2, Reserved: -1})
		c.arriveMany(Stranger, "runs", "waits 1", "waits 2", "refused")
		c.expectWaiting("runs", "waits 1", "waits 2")
		c.expect(ErrOverloaded, "refused")

		c.finish()
		c.expect(nil, "runs")
		c.arriveMany(Stranger, "waits 3", "refused too")
		c.expectWaiting("waits 1", "waits 2", "waits 3")
		c.expect(ErrOverloaded, "refused too")

		c.finishAll()
		c.expect(nil, "waits 1", "waits 2", "waits 3")
	})
}

func TestNobodyWaitsWithoutAQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 2, Queue: -1})
		c.arriveMany(Stranger, "a", "b", "refused")
		c.expectWaiting("a", "b")
		c.expect(ErrOverloaded, "refused")
		c.finishAll()
	})
}

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 100})
		var names []string
		for i := range 50 {
			name := fmt.Sprintf("caller %d", i)
			names = append(names, name)
			c.arriveMany(Caller(i%2), name)
		}
		for range names {
			c.finish()
		}
		if !slices.Equal(c.served, names) {
			t.Errorf("served in the order %q", c.served)
		}
		c.finishAll()
	})
}

func TestReservedPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 3, Reserved: 2})
		// 7 has no name, and so no privilege.
		c.arriveMany(Stranger, "runs", "waits", "refused")
		c.arriveMany(Caller(7), "refused as well")
		c.expect(ErrOverloaded, "refused", "refused as well")

		c.arriveMany(SignedIn, "user 1", "user 2", "user 3")
		c.expectWaiting("waits", "user 1", "user 2")
		c.expect(ErrOverloaded, "user 3")
		c.finishAll()
		c.expect(nil, "runs", "waits", "user 1", "user 2")
	})
}

// Users in the queue sit on the reserved places first: they take none from
// strangers that were free to those before.
func TestUsersDoNotDisplaceStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 3, Reserved: 2})
		c.arriveMany(SignedIn, "user 1", "user 2")
		c.arriveMany(Stranger, "a", "b", "refused")
		c.expectWaiting("user 1", "user 2", "a", "b")
		c.expect(ErrOverloaded, "refused")
		c.finishAll()
	})
}

func TestCancelInTheQueueFreesThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 1, Reserved: -1})
		c.arriveMany(Stranger, "runs")
		ctx, cancel := context.WithCancel(t.Context())
		c.arrive(ctx, Stranger, "gives up")
		c.arriveMany(Stranger, "refused")
		c.expect(ErrOverloaded, "refused")

		cancel()
		synctest.Wait()
		c.expect(context.Canceled, "gives up")
		c.arriveMany(Stranger, "in its place")
		c.expectWaiting("runs", "in its place")
		c.finishAll()
		c.expect(nil, "runs", "in its place")
	})
}

func TestDeadlineInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 1, Reserved: -1})
		c.arriveMany(Stranger, "runs")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c.arrive(ctx, Stranger, "too slow")
		time.Sleep(2 * time.Second) // the bubble's clock
		synctest.Wait()
		c.expect(context.DeadlineExceeded, "too slow")
		c.finishAll()
	})
}

func TestCancelDuringTheHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 1})
		ctx, cancel := context.WithCancel(t.Context())
		c.arrive(ctx, Stranger, "runs")
		c.arriveMany(SignedIn, "waits")
		cancel()
		synctest.Wait()
		c.expectWaiting("runs", "waits") // nothing interrupts a hash

		c.finish()
		c.expect(context.Canceled, "runs")
		c.finishAll()
		c.expect(nil, "waits")
	})
}

func TestCancelledBeforeItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: -1})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for i := range 50 { // a free slot and an ended context: either may be seen first
			name := fmt.Sprintf("late %d", i)
			c.arrive(ctx, Stranger, name)
			c.expect(context.Canceled, name)
		}
		c.finishAll()
	})
}

// A panic in a hash is someone else's to recover; it must not cost a slot.
func TestPanicFreesTheSlot(t *testing.T) {
	pool := NewPool(Config{Parallel: 1, Queue: -1})
	pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, _ uint32) []byte { panic("boom") }
	for range 3 {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic came through")
				}
			}()
			_, _ = pool.Hash(t.Context(), Stranger, parse(t, "correct horse"))
		}()
	}
	if pool.taken != 0 || len(pool.slots) != 0 {
		t.Errorf("%d places and %d slots are lost", pool.taken, len(pool.slots))
	}
}

func TestNeverMoreThanParallel(t *testing.T) {
	for _, parallel := range []int{1, 3, 8} {
		t.Run(fmt.Sprint(parallel), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testNeverMoreThan(t, parallel) })
		})
	}
}

// testNeverMoreThan sends 200 callers, every fifth of whom gives up at a random
// time. In the bubble all of them are in the pool before the first hash ends.
func testNeverMoreThan(t *testing.T, parallel int) {
	pool := NewPool(Config{Parallel: parallel, Queue: 200, Reserved: -1})
	var running, peak atomic.Int64
	pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, keyLen uint32) []byte {
		n := running.Add(1)
		defer running.Add(-1)
		for old := peak.Load(); n > old && !peak.CompareAndSwap(old, n); old = peak.Load() {
		}
		time.Sleep(time.Millisecond) // the bubble's clock
		return make([]byte, keyLen)
	}
	pw := parse(t, "correct horse")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			ctx := t.Context()
			if i%5 == 0 {
				timeout, cancel := context.WithTimeout(ctx, rand.N(50*time.Millisecond))
				defer cancel()
				ctx = timeout
			}
			_, _, err := pool.Compare(ctx, Caller(i%2), pw, "")
			if err != nil && !(i%5 == 0 && errors.Is(err, context.DeadlineExceeded)) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if got := peak.Load(); got != int64(parallel) {
		t.Errorf("%d hashes at a time, want %d", got, parallel)
	}
	if pool.taken != 0 || pool.strangers != 0 || len(pool.slots) != 0 {
		t.Errorf("left behind: %d places, %d strangers, %d slots", pool.taken, pool.strangers, len(pool.slots))
	}
}
