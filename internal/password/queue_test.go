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

	"github.com/watchword-auth/watchword/internal/share"
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
	errs   map[string]error // the error that Hash returned, by caller; nil if Hash made a hash
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

// enter takes a place in the queue.
func (c *crowd) enter(t *testing.T, caller Caller) *Turn {
	t.Helper()
	turn, err := c.pool.Enter(t.Context(), caller)
	if err != nil {
		t.Fatal(err)
	}
	return turn
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
	expectEmpty(c.t, c.pool)
}

// expectEmpty checks that no turn is in the pool.
func expectEmpty(t *testing.T, p *Pool) {
	t.Helper()
	if p.waiting != 0 || p.running != 0 || len(p.peers) != 0 || len(p.order) != 0 || p.places.Held()+p.reserve.Held() != 0 {
		t.Errorf("all callers have left, but %d turns wait, %d run, and %d peers remain, %d in order, %d places are held",
			p.waiting, p.running, len(p.peers), len(p.order), p.places.Held()+p.reserve.Held())
	}
}

// expectServed checks the order of the hashes so far.
func (c *crowd) expectServed(names ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.served, names) {
		c.t.Errorf("callers were served in the order %q, want %q", c.served, names)
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
		c.arriveMany(Stranger("a"), "runs", "waits 1", "waits 2", "refused")
		c.expectWaiting("runs", "waits 1", "waits 2")
		c.expectAnswer(ErrOverloaded, "refused")

		c.finish()
		c.expectAnswer(nil, "runs")
		c.arriveMany(Stranger("a"), "waits 3", "refused too")
		c.expectWaiting("waits 1", "waits 2", "waits 3")
		c.expectAnswer(ErrOverloaded, "refused too")

		c.finishAll()
		c.expectAnswer(nil, "waits 1", "waits 2", "waits 3")
	})
}

func TestCallersOfAPeerAreServedInOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 100})
		var names []string
		for i := range 50 {
			names = append(names, fmt.Sprintf("caller %d", i))
		}
		c.arriveMany(Stranger("a"), names...)
		for range names {
			c.finish()
		}
		c.expectServed(names...)
		c.finishAll()
	})
}

func TestPeersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 100})
		c.arriveMany(Stranger("a"), "a1", "a2", "a3", "a4")
		c.arriveMany(Stranger("b"), "b1", "b2")
		c.arriveMany(User("a"), "alice") // the user a is no network, although the names are the same
		c.finish()
		c.finish()
		c.arriveMany(Stranger("b"), "b3")
		for range 6 {
			c.finish()
		}
		c.expectServed("a1", "a2", "b1", "alice", "a3", "b2", "a4", "b3")
		c.finishAll()
	})
}

// If the queue is full, a newcomer gets the place of the newest turn of the peer with most
// turns. A turn that runs a hash keeps its slot.
func TestNewcomerTakesAPlaceOfTheHeaviestPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 4, Reserved: -1})
		c.arriveMany(Stranger("a"), "a runs", "a1", "a2", "a3")
		c.arriveMany(Stranger("b"), "b1", "b2")
		c.expectAnswer(ErrOverloaded, "a3")
		c.expectWaiting("a runs", "a1", "a2", "b1", "b2")

		c.arriveMany(Stranger("c"), "c1")
		c.arriveMany(Stranger("d"), "d1")
		c.expectAnswer(ErrOverloaded, "a2", "b2")
		c.arriveMany(Stranger("d"), "d2") // every other peer has one place
		c.expectAnswer(ErrOverloaded, "d2")
		c.finishAll()
		c.expectAnswer(nil, "a runs", "a1", "b1", "c1", "d1")
	})
}

// A turn that has lost its place hashes nothing, also if the caller is still busy with
// other work.
func TestDisplacedTurnHashesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 2, Reserved: -1})
		first, newest := c.enter(t, Stranger("a")), c.enter(t, Stranger("a"))
		c.arriveMany(Stranger("b"), "b")
		if _, err := newest.Hash(t.Context(), c.pw); !errors.Is(err, ErrOverloaded) {
			t.Errorf("a displaced turn: got error %v, want ErrOverloaded", err)
		}
		newest.End()
		newest.End()
		first.End()
		c.finishAll()
		c.expectAnswer(nil, "b")
	})
}

// A caller with a place, and without a need for a slot yet, holds no other caller up.
func TestTurnThatIsNotReadyHoldsNoOneUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 4})
		busy := c.enter(t, Stranger("a"))
		c.arriveMany(Stranger("a"), "a")
		c.arriveMany(Stranger("b"), "b")
		c.finish()
		c.finish()
		c.expectAnswer(nil, "a", "b")
		close(c.end)
		if _, err := busy.Hash(t.Context(), c.pw); err != nil {
			t.Error(err)
		}
		busy.End()
		if _, err := busy.Hash(t.Context(), c.pw); !errors.Is(err, errEnded) {
			t.Errorf("a hash after End: got error %v, want errEnded", err)
		}
		expectEmpty(t, c.pool)
	})
}

// A turn keeps its slot for a second hash.
func TestSecondHashOfATurnDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 4})
		turn := c.enter(t, Stranger("a"))
		c.wg.Go(func() {
			defer turn.End()
			_, _, err := turn.Compare(t.Context(), c.pw, "")
			if err == nil {
				_, err = turn.Hash(t.Context(), c.pw)
			}
			if err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		c.arriveMany(Stranger("b"), "b")
		c.finish() // ends the hash of Compare
		c.finish() // ends the second hash, of Hash
		c.expectWaiting("b")
		c.finish()
		c.expectAnswer(nil, "b")
		c.finishAll()
	})
}

func TestReservedPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 3, Reserved: 2})
		c.arriveMany(Stranger("a"), "runs", "waits", "refused")
		c.expectAnswer(ErrOverloaded, "refused")

		c.arriveMany(Admin("root"), "root 1", "root 2")
		c.expectWaiting("waits", "root 1", "root 2")
		c.arriveMany(Stranger("a"), "a refused") // all places are taken, and a stranger gets none, although root has two places
		c.expectAnswer(ErrOverloaded, "a refused")
		c.arriveMany(Admin("another"), "another 1")
		c.expectAnswer(ErrOverloaded, "root 2")
		c.expectWaiting("waits")
		c.arriveMany(User("alice"), "alice 1") // if peers hold equally many places, a signed-in user gets the place of a stranger
		c.expectAnswer(ErrOverloaded, "waits")
		c.finishAll()
		c.expectAnswer(nil, "runs", "root 1", "another 1", "alice 1")
	})
}

// Admins take reserved places first, and have no more than their share of the other places: two
// turns of a signed-in user count as one turn of a network.
func TestAdminsKeepNoOtherCallerOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 4, Reserved: 1})
		c.arriveMany(Admin("root"), "runs", "root 1", "root 2", "root 3", "root 4")
		c.arriveMany(Stranger("a"), "a1", "a2", "a3")
		c.expectAnswer(ErrOverloaded, "root 4", "a2", "a3")
		c.finishAll()
		c.expectAnswer(nil, "runs", "root 1", "root 2", "root 3", "a1")
	})
}

// A signed-in user with many calls at a time hashes two at a time, and the others wait.
func TestUserHashesTwoAtATime(t *testing.T) {
	for _, caller := range []Caller{User("alice"), Admin("root")} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, Config{Parallel: 4, Queue: 10})
			running := func(want int) {
				t.Helper()
				if c.pool.running != want {
					t.Errorf("%d hashes run, want %d", c.pool.running, want)
				}
			}
			c.arriveMany(caller, "1", "2", "3", "4")
			running(2)
			c.arriveMany(Stranger("a"), "a", "b", "c")
			running(4)
			c.finishAll()
			c.expectAnswer(nil, "1", "2", "3", "4", "a", "b", "c")
		})
	}
}

func TestCancelInTheQueueFreesThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 1, Reserved: -1})
		c.arriveMany(Stranger("a"), "runs")
		ctx, cancel := context.WithCancel(t.Context())
		c.arrive(ctx, Stranger("a"), "gives up")
		c.arriveMany(Stranger("a"), "refused")
		c.expectAnswer(ErrOverloaded, "refused")

		cancel()
		synctest.Wait()
		c.expectAnswer(context.Canceled, "gives up")
		c.arriveMany(Stranger("a"), "in its place")
		c.expectWaiting("runs", "in its place")
		c.finishAll()
		c.expectAnswer(nil, "runs", "in its place")
	})
}

// within sends a caller with a deadline into the pool.
func (c *crowd) within(timeout time.Duration, caller Caller, name string) {
	ctx, cancel := context.WithTimeout(c.t.Context(), timeout)
	c.t.Cleanup(cancel)
	c.arrive(ctx, caller, name)
}

// A hash that cannot end before the caller's deadline is not begun. For the estimate, the pool
// counts the turns of other peers that come before the caller's turn.
func TestDeadlineThatCannotBeMet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 100})
		c.pool.average = 100 * time.Millisecond
		c.within(50*time.Millisecond, Stranger("a"), "alone") // begins in spite of the deadline, since no hash runs: the pool measures the time of a hash again
		c.arriveMany(Stranger("a"), "a1", "a2", "a3", "a4")
		c.expectWaiting("alone", "a1", "a2", "a3", "a4")

		c.within(599*time.Millisecond, Stranger("a"), "after five, too late")
		c.within(601*time.Millisecond, Stranger("a"), "after five")
		c.within(299*time.Millisecond, Stranger("b"), "after two, too late")
		c.within(301*time.Millisecond, Stranger("b"), "after two")
		c.expectAnswer(ErrOverloaded, "after five, too late", "after two, too late")
		c.expectWaiting("after five", "after two")
		c.finishAll()
		c.expectAnswer(nil, "after five", "after two")
	})
}

// A newcomer that is refused because of its deadline takes no place from another caller.
func TestLateNewcomerDisplacesNoOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 2, Reserved: -1})
		c.arriveMany(Stranger("a"), "runs", "a1", "a2")
		c.within(time.Millisecond, Stranger("b"), "late")
		c.expectAnswer(ErrOverloaded, "late")
		c.expectWaiting("runs", "a1", "a2")
		c.finishAll()
	})
}

// The hashes before a caller's turn took longer than estimated. The pool refuses the caller
// early enough, so that the refusal arrives before the caller's deadline.
func TestDeadlineInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 2})
		c.pool.average = 100 * time.Millisecond
		c.arriveMany(Stranger("a"), "runs")
		began := time.Now()
		c.within(time.Second, Stranger("a"), "too slow")
		time.Sleep(899 * time.Millisecond) // by the fake clock of synctest
		synctest.Wait()
		c.expectWaiting("too slow")
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		c.expectAnswer(ErrOverloaded, "too slow")
		if took := time.Since(began); took >= time.Second {
			t.Errorf("refused after %v, when the deadline had passed", took)
		}
		c.finishAll()
	})
}

// While other callers wait, a turn with a slot begins no second hash that cannot end before the
// caller's deadline.
func TestDeadlineBeforeTheSecondHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 2})
		turn := c.enter(t, Stranger("a"))
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		var second error
		c.wg.Go(func() {
			defer turn.End()
			if _, _, err := turn.Compare(ctx, c.pw, ""); err != nil {
				t.Error(err)
			}
			_, second = turn.Hash(ctx, c.pw)
		})
		synctest.Wait()
		c.arriveMany(Stranger("b"), "b")
		time.Sleep(100 * time.Millisecond)
		c.finish()
		if !errors.Is(second, ErrOverloaded) {
			t.Errorf("the second hash: got error %v, want ErrOverloaded", second)
		}
		c.finishAll()
	})
}

func TestCancelDuringTheHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Config{Parallel: 1, Queue: 1})
		ctx, cancel := context.WithCancel(t.Context())
		c.arrive(ctx, Stranger("a"), "runs")
		c.arriveMany(User("u"), "waits")
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
		c := newCrowd(t, Config{Parallel: 1, Queue: 1})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for i := range 50 { // select can choose the free slot or the ended context, so the test tries several times
			name := fmt.Sprintf("late %d", i)
			c.arrive(ctx, Stranger("a"), name)
			c.expectAnswer(context.Canceled, name)
		}
		c.finishAll()
	})
}

// TestPanicFreesTheSlot panics in a hash. The caller recovers the panic, and the pool
// must get the slot and the place back.
func TestPanicFreesTheSlot(t *testing.T) {
	pool := NewPool(Config{Parallel: 1, Queue: 1})
	pool.derive = func(_, _ []byte, _, _ uint32, _ uint8, _ uint32) []byte { panic("boom") }
	for range 3 {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic did not reach the caller")
				}
			}()
			_, _ = pool.Hash(t.Context(), Stranger("a"), parse(t, "correct horse"))
		}()
	}
	expectEmpty(t, pool)
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
		time.Sleep(time.Millisecond) // by the fake clock of synctest
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
			_, err := pool.Hash(ctx, Stranger(fmt.Sprint(i%7)), pw)
			if err != nil && !(i%5 == 0 && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrOverloaded))) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if got := peak.Load(); got != int64(parallel) {
		t.Errorf("%d hashes ran at a time, want %d", got, parallel)
	}
	expectEmpty(t, pool)
}

// There are as many attacking networks as places in the queue, each with one login. A login of
// another network gets a place: always if the network is known, and otherwise if the network
// draws a greater lot.
func TestNewcomerAtATie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := share.NewKnown(10)
		c := newCrowd(t, Config{Parallel: 1, Queue: 8, Reserved: -1, Known: known})
		c.arriveMany(Stranger("runs"), "runs")
		enterAll := func() {
			for i := range 30 { // attackers come again at once
				if turn, err := c.pool.Enter(t.Context(), Stranger(fmt.Sprint(i))); err == nil {
					t.Cleanup(turn.End)
				}
			}
		}
		enterAll()
		known.Add("known", "alice")
		mine := c.enter(t, Stranger("known"))
		for range 100 {
			time.Sleep(10 * time.Second)
			enterAll()
		}
		if mine.state != waiting {
			t.Error("a known network has lost its place to strangers")
		}
		mine.End()
		tries := 0
		for ; ; tries++ {
			if turn, err := c.pool.Enter(t.Context(), Stranger("honest")); err == nil {
				turn.End()
				break
			}
			if tries == 1000 { // each has a chance of one in four
				t.Fatal("a newcomer got no place")
			}
			enterAll()
			time.Sleep(10 * time.Second)
		}
		close(c.end)
		c.wg.Wait()
	})
}
