package throttle

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

// usual are the default settings.
var usual = Limits{FreeTries: 10, LongestDelay: 30 * time.Second}

var secret = []byte("a secret of thirty-two bytes 0123")

// inBubble runs a test in which time passes at once, with a counter on SQLite.
func inBubble(t *testing.T, test func(t *testing.T, c *Counter)) {
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		test(t, New(s, secret, 1, usual))
	})
}

// at returns a client in a network, site and block of its own.
func at(place string) Origin { return Origin{Network: place, Site: place, Block: place} }

func nothing(*store.Tx) error { return nil }

// guess makes a wrong guess, and returns the error of the try.
func guess(t testing.TB, c *Counter, key Key) error {
	t.Helper()
	try, err := c.Begin(context.Background(), key, nothing)
	if err != nil {
		return err
	}
	defer try.End()
	if err := try.Claim(context.Background()); err != nil {
		return err
	}
	if err := try.Wrong(context.Background()); err != nil {
		t.Error(err)
	}
	return nil
}

// wantRefused fails the test unless err refuses a try, and returns the time to wait.
func wantRefused(t testing.TB, err error) time.Duration {
	t.Helper()
	var refused *Refused
	if !errors.As(err, &refused) || refused.RetryAfter <= 0 {
		t.Fatalf("got %v, want a refusal with a time to wait", err)
	}
	return refused.RetryAfter
}

// admitted guesses until a try is refused, and returns the number of admitted tries.
func admitted(t testing.TB, c *Counter, key Key) (n int) {
	t.Helper()
	for {
		err := guess(t, c, key)
		if err != nil {
			wantRefused(t, err)
			return n
		}
		n++
	}
}

// The delays double from a second to the longest.
func TestDelays(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		key := c.Key("alice", at("192.0.2.0/24"))
		if n := admitted(t, c, key); n != 10 {
			t.Fatalf("%d tries were free, want 10", n)
		}
		for _, seconds := range []int{1, 2, 4, 8, 16, 30, 30, 30} {
			want := time.Duration(seconds) * time.Second
			wait := wantRefused(t, guess(t, c, key))
			if wait < want || wait > want+time.Millisecond {
				t.Fatalf("the wait is %v, want %v", wait, want)
			}
			time.Sleep(wait / 2)
			if again := wantRefused(t, guess(t, c, key)); again > want/2+time.Millisecond {
				t.Fatalf("half of the wait later, the wait is %v", again)
			}
			time.Sleep(wait - wait/2)
			if err := guess(t, c, key); err != nil {
				t.Fatalf("after the wait of %v: %v", want, err)
			}
		}
	})
}

// Tries at other usernames are free, and so are tries at a username that shares only one of its
// two buckets with the delayed username.
func TestTwoBuckets(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		alice := c.Key("alice", at(""))
		var same [2]Key
		for i, found := 0, 0; found < 2; i++ {
			key := c.Key(fmt.Sprint("name", i), at(""))
			for row := range alice.ids {
				if key.ids[row] == alice.ids[row] && same[row] == (Key{}) {
					same[row] = key
					found++
				}
			}
		}
		admitted(t, c, alice)
		if n := admitted(t, c, c.Key("bob", at(""))); n != 10 {
			t.Errorf("another name: %d tries were free", n)
		}
		for row, key := range same {
			if n := admitted(t, c, key); n != 10 {
				t.Errorf("a name with the same bucket in row %d: %d tries were free", row, n)
			}
		}
	})
}

// A bucket forgets every guess in an hour, however many guesses there were, and half of them in
// half an hour.
func TestForgets(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		key := c.Key("alice", at(""))
		admitted(t, c, key)
		for range 20 {
			time.Sleep(30*time.Second + time.Millisecond)
			admitted(t, c, key)
		}
		time.Sleep(forgets / 2) // half an hour, in which half of the at most 15 counted guesses are forgotten
		if n := admitted(t, c, key); n != 2 {
			t.Errorf("half an hour later %d tries were free, want 2", n)
		}
		time.Sleep(forgets)
		if n := admitted(t, c, key); n != 10 {
			t.Errorf("an hour later %d tries were free, want 10", n)
		}
	})
}

// The right guess takes back its own count, and no other.
func TestRight(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		key := c.Key("alice", at(""))
		right := func() {
			t.Helper()
			try, err := c.Begin(t.Context(), key, nothing)
			if err == nil {
				defer try.End()
				err = try.Claim(t.Context())
			}
			if err == nil {
				err = c.store.Write(t.Context(), try.Right)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		level := func() (n int) {
			err := c.store.Read(t.Context(), func(tx *store.Tx) error {
				pair, err := tx.ThrottleBuckets(key.ids)
				n = c.level(pair, tx.Now())
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		right()
		if n := level(); n != 0 {
			t.Errorf("a right guess: level %d", n)
		}
		admitted(t, c, key)
		for range 10 { // the time of these tries is the time in which three guesses are forgotten
			time.Sleep(time.Minute)
			right()
		}
		if n := level(); n != 8 {
			t.Errorf("after 10 wrong and 10 right guesses, and ten minutes, the level is %d, want 8", n)
		}
	})
}

// Of many tries at a time, only the free tries are admitted: on all replicas together, with one
// try more for each further replica. After that, one try is admitted at a time.
func TestManyAtOnce(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		s := storetest.Open(t, new(t))
		slow := Limits{FreeTries: 10, LongestDelay: time.Hour}
		replicas := []*Counter{New(s, secret, 1, slow), New(s, secret, 1, slow)}
		flood := func() int {
			var n atomic.Int64
			var tries sync.WaitGroup
			for i := range 100 {
				tries.Go(func() {
					c := replicas[i%2]
					var refused *Refused
					if err := guess(t, c, c.Key("alice", at(fmt.Sprint("site", i)))); err == nil {
						n.Add(1)
					} else if !errors.As(err, &refused) || refused.RetryAfter <= 0 {
						t.Errorf("got %v, want a refusal with a time to wait", err)
					}
				})
			}
			tries.Wait()
			return int(n.Load())
		}
		began := time.Now()
		if n := flood(); n < 10 || n > 20 {
			t.Errorf("%d tries were admitted, want 10 to 20", n)
		}
		for i := range replicas[0].flights.keys {
			t.Errorf("a flight is left: %v", i)
		}
		n, most := flood(), 1 // a second may have passed
		for delay := 2 * time.Second; delay < time.Since(began); delay *= 2 {
			most++
		}
		if n > most {
			t.Errorf("%d tries were admitted at a name that is delayed, want at most %d in %v", n, most, time.Since(began))
		}
	})
}

// Any number of right guesses at a time is admitted, such as when a service with many replicas
// starts and all replicas log in.
func TestManyRightAtOnce(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		c := New(storetest.Open(t, new(t)), secret, 1, usual)
		var tries sync.WaitGroup
		for range 100 {
			tries.Go(func() {
				try, err := c.Begin(t.Context(), c.Key("alice", at("")), nothing)
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Millisecond) // the time that a hash takes
				try.End()
			})
		}
		tries.Wait()
		if len(c.flights.keys) > 0 {
			t.Errorf("flights are left: %v", c.flights.keys)
		}
	})
}

// A try that waits for other tries ends with its context, and delays no other try.
func TestWaitEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		key := c.Key("alice", at(""))
		var running []*Try
		for range 10 {
			try, err := c.Begin(t.Context(), key, nothing)
			if err != nil {
				t.Fatal(err)
			}
			running = append(running, try)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var waiting sync.WaitGroup
		waiting.Go(func() {
			if _, err := c.Begin(ctx, key, nothing); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a try that waits: %v", err)
			}
		})
		waiting.Go(func() {
			try, err := c.Begin(t.Context(), key, nothing)
			if err != nil {
				t.Errorf("the next try: %v", err)
				return
			}
			try.End()
		})
		time.Sleep(2 * time.Second)
		for _, try := range running {
			try.End()
			try.End()
		}
		waiting.Wait()
		if len(c.flights.keys) > 0 {
			t.Errorf("flights are left: %v", c.flights.keys)
		}
	})
}

// A wrong guess counts although the client has gone.
func TestWrongOfAClientThatHasGone(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		key := c.Key("alice", at(""))
		for range 10 {
			try, err := c.Begin(t.Context(), key, nothing)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := try.Wrong(ctx); err != nil {
				t.Error(err)
			}
			try.End()
		}
		wantRefused(t, guess(t, c, key))
	})
}

// A clock that is set back delays nobody for longer than usual.
func TestClockSetBack(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		key := c.Key("alice", at(""))
		err := c.store.Write(t.Context(), func(tx *store.Tx) error {
			pair, err := tx.LockThrottleBuckets(key.ids)
			for i := range pair {
				far := tx.Now().Add(1000 * time.Hour)
				pair[i].ClearAt, pair[i].NextAt = far, far
				pair[i].Promises = promise{c.Key("alice", at("elsewhere")).tags, far}.append(nil)
			}
			return errors.Join(err, set(tx, &pair))
		})
		if err != nil {
			t.Fatal(err)
		}
		wait := wantRefused(t, guess(t, c, key))
		if wait > usual.LongestDelay+time.Millisecond {
			t.Fatalf("the wait is %v", wait)
		}
		time.Sleep(wait)
		if err := guess(t, c, key); err != nil {
			t.Errorf("after the wait: %v", err)
		}
		time.Sleep(forgets)
		if n := admitted(t, c, key); n != 10 {
			t.Errorf("an hour later %d tries were free", n)
		}
	})
}

// Prune deletes the buckets that count nothing, and no others.
func TestPrune(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		for i := range 300 {
			if err := guess(t, c, c.Key(fmt.Sprint("name", i), at(""))); err != nil {
				t.Fatal(err)
			}
		}
		storetest.Wait(t, c.store, 30*time.Minute)
		key := c.Key("alice", at(""))
		admitted(t, c, key)
		if err := Prune(t.Context(), c.store); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, guess(t, c, key))
		err := c.store.Write(t.Context(), func(tx *store.Tx) error {
			rows := 0
			for last, more := int64(0), true; more; rows++ {
				id, err := int64(0), error(nil)
				if id, more, err = tx.PruneThrottle(last, 1, tx.Now()); err != nil {
					return err
				}
				last = id
			}
			if rows-1 != 2 {
				t.Errorf("%d buckets are left, want 2", rows-1)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
