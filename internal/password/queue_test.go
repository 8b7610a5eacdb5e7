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

// crowd sends callers into a pool. Each hash runs until the test ends the hash. A crowd
// needs a synctest bubble: synctest.Wait returns when every caller hashes, waits or has
// been refused.
type crowd struct {
	t    *testing.T
	pool *Pool
	pw   Password
	end  chan struct{} // each element ends a hash
	wg   sync.WaitGroup

	mu     sync.Mutex       // guards the fields below
	served []string         // callers with a hash, in the order of the hashes
	errs   map[string]error // caller to Hash's error, nil for a good hash
}

func newCrowd(t *testing.T, cfg Config) *crowd {
	c := &crowd{t: t, pool: NewPool(cfg), pw: parse(t, "correct horse"), end: make(chan struct{}), errs: make(map[string]error)}
	c.pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, keyLen uint32) []byte {
		<-c.end
		return make([]byte, keyLen)
	}
	return c
}

// arrive sends a caller into the pool. arrive returns when the caller hashes, waits, or
// has been refused.
func (c *crowd) arrive(ctx context.Context, caller Caller, name string) {
	c.wg.Go(func() {
		_, err := c.pool.Hash(ctx, caller, c.pw)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.errs[name] = err
		if err == nil {
			c.served = append(c.served, name)
		}
	})
	synctest.Wait()
}

func (c *crowd) arriveMany(caller Caller, names ...string) {
	for _, name := range names {
		c.arrive(c.t.Context(), caller, name)
	}
}

// finish ends a hash and waits until the next hash has begun.
func (c *crowd) finish() {
	c.end <- struct{}{}
	synctest.Wait()
}

// finishAll ends all hashes, and checks that the pool is empty.
func (c *crowd) finishAll() {
	c.t.Helper()
	close(c.end)
	c.wg.Wait()
	if p := c.pool; p.taken != 0 || p.strangers != 0 || len(p.slots) != 0 {
		c.t.Errorf("all callers have left, but %d places, %d strangers' places and %d slots are still taken", p.taken, p.strangers, len(p.slots))
	}
}

// expectAnswer checks that Hash has returned the error want to the named callers.
func (c *crowd) expectAnswer(want error, names ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if got, ok := c.errs[name]; !ok || !errors.Is(got, want) {
			c.t.Errorf("caller %q: got error %v (Hash has returned: %v), want %v", name, got, ok, want)
		}
	}
}

// expectWaiting checks that the named callers still hash or wait.
func (c *crowd) expectWaiting(names ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if got, ok := c.errs[name]; ok {
			c.t.Errorf("caller %q: Hash has returned error %v, want no answer yet", name, got)
		}
	}
}

func TestFullQueueRefusesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 2, Reserved: -1})
		c.arriveMany(Stranger, "runs", "waits 1", "waits 2", "refused")
		c.expectWaiting("runs", "waits 1", "waits 2")
		c.expectAnswer(ErrOverloaded, "refused")

		c.finish()
		c.expectAnswer(nil, "runs")
		c.arriveMany(Stranger, "waits 3", "refused too")
		c.expectWaiting("waits 1", "waits 2", "waits 3")
		c.expectAnswer(ErrOverloaded, "refused too")

		c.finishAll()
		c.expectAnswer(nil, "waits 1", "waits 2", "waits 3")
	})
}

func TestPoolWithoutAQueueRefusesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 2, Queue: -1})
		c.arriveMany(Stranger, "a", "b", "refused")
		c.expectWaiting("a", "b")
		c.expectAnswer(ErrOverloaded, "refused")
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
			t.Errorf("callers were served in the order %q, want the order of arrival", c.served)
		}
		c.finishAll()
	})
}

func TestReservedPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 3, Reserved: 2})
		// Caller(7) has no constant, and counts as Stranger.
		c.arriveMany(Stranger, "runs", "waits", "refused")
		c.arriveMany(Caller(7), "refused as well")
		c.expectAnswer(ErrOverloaded, "refused", "refused as well")

		c.arriveMany(SignedIn, "user 1", "user 2", "user 3")
		c.expectWaiting("waits", "user 1", "user 2")
		c.expectAnswer(ErrOverloaded, "user 3")
		c.finishAll()
		c.expectAnswer(nil, "runs", "waits", "user 1", "user 2")
	})
}

// TestSignedInCallersTakeReservedPlacesFirst fills the reserved places with SignedIn
// callers. All places for Stranger callers must stay free.
func TestSignedInCallersTakeReservedPlacesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 3, Reserved: 2})
		c.arriveMany(SignedIn, "user 1", "user 2")
		c.arriveMany(Stranger, "a", "b", "refused")
		c.expectWaiting("user 1", "user 2", "a", "b")
		c.expectAnswer(ErrOverloaded, "refused")
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
		c.expectAnswer(ErrOverloaded, "refused")

		cancel()
		synctest.Wait()
		c.expectAnswer(context.Canceled, "gives up")
		c.arriveMany(Stranger, "in its place")
		c.expectWaiting("runs", "in its place")
		c.finishAll()
		c.expectAnswer(nil, "runs", "in its place")
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
		c.expectAnswer(context.DeadlineExceeded, "too slow")
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
		c.expectWaiting("runs", "waits") // a running hash cannot be interrupted

		c.finish()
		c.expectAnswer(context.Canceled, "runs")
		c.finishAll()
		c.expectAnswer(nil, "waits")
	})
}

func TestCancelledBeforeHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: -1})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for i := range 50 { // select may choose the free slot or the ended context
			name := fmt.Sprintf("late %d", i)
			c.arrive(ctx, Stranger, name)
			c.expectAnswer(context.Canceled, name)
		}
		c.finishAll()
	})
}

// TestPanicFreesTheSlot panics in a hash. The caller recovers the panic, and the pool
// must get the slot and the place back.
func TestPanicFreesTheSlot(t *testing.T) {
	pool := NewPool(Config{Parallel: 1, Queue: -1})
	pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, _ uint32) []byte { panic("boom") }
	for range 3 {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic did not reach the caller")
				}
			}()
			_, _ = pool.Hash(t.Context(), Stranger, parse(t, "correct horse"))
		}()
	}
	if pool.taken != 0 || len(pool.slots) != 0 {
		t.Errorf("%d places and %d slots are still taken", pool.taken, len(pool.slots))
	}
}

func TestNeverMoreThanParallel(t *testing.T) {
	for _, parallel := range []int{1, 3, 8} {
		t.Run(fmt.Sprint(parallel), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testNeverMoreThan(t, parallel) })
		})
	}
}

// testNeverMoreThan sends 200 callers. Every fifth caller has a random deadline. In the
// bubble, all callers are in the pool before the first hash ends.
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
		t.Errorf("%d hashes ran at a time, want %d", got, parallel)
	}
	if pool.taken != 0 || pool.strangers != 0 || len(pool.slots) != 0 {
		t.Errorf("all callers have left, but %d places, %d strangers' places and %d slots are still taken", pool.taken, pool.strangers, len(pool.slots))
	}
}
