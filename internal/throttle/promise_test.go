package throttle

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// attack is a guesser with many sites against one name.
type attack struct {
	c       *Counter
	asked   int
	guesses int
	due     map[int]time.Time // promises, by site
	sites   int
	free    time.Time // when there is a time left
}

func (a *attack) ask(t *testing.T, site int) {
	t.Helper()
	err := guess(t, a.c, a.c.Key("alice", fmt.Sprint("site", site)))
	var refused *Refused
	switch {
	case err == nil:
		a.guesses++
		delete(a.due, site)
	case errors.As(err, &refused) && refused.Full:
		a.free = time.Now().Add(refused.RetryAfter - time.Millisecond) // the time is rounded up
	case errors.As(err, &refused):
		a.due[site] = time.Now().Add(refused.RetryAfter)
		if refused.RetryAfter > ahead+time.Millisecond {
			t.Fatalf("a promise for %v from now", refused.RetryAfter)
		}
	default:
		t.Fatal(err)
	}
}

// step lets the sites with a promise that is due guess, and one more site ask.
func (a *attack) step(t *testing.T) {
	t.Helper()
	for site, at := range a.due {
		if !at.After(time.Now()) {
			a.ask(t, site)
		}
	}
	a.asked++
	a.ask(t, a.asked%a.sites)
}

// A guesser with 10,000 sites gets no more tries than the documents state, for days. The
// owner gets in at once on a known device, and on a new one at the promised time.
func TestManySites(t *testing.T) {
	const days = 2
	inBubble(t, func(t *testing.T, c *Counter) {
		devices := New(c.store, secret, 2, usual)
		a := &attack{c: c, due: map[int]time.Time{}, sites: 10_000}
		began := time.Now()
		promised, waits := 0, time.Duration(0)
		var promise time.Time // the owner's
		for step := 0; time.Since(began) < days*24*time.Hour; step++ {
			// The owner asks first when there is a time left, and comes at the promised time.
			owner := c.Key("alice", "the owner's site")
			switch {
			case !promise.IsZero() && !promise.After(time.Now()):
				if err := guess(t, c, owner); err != nil {
					t.Fatalf("at the promised time: %v", err)
				}
				promise = time.Time{}
				promised++
			case promise.IsZero() && !a.free.IsZero() && !a.free.After(time.Now()):
				wait := wantRefused(t, guess(t, c, owner))
				promise, waits = time.Now().Add(wait), max(waits, wait)
			}
			a.step(t)
			if step%360 == 0 {
				if err := guess(t, devices, devices.Key("session", "")); err != nil {
					t.Fatalf("on a known device: %v", err)
				}
			}
			time.Sleep(10 * time.Second)
		}
		t.Logf("%d asked, %d guesses of the attacker, %d of the owner; longest wait %v", a.asked, a.guesses, promised, waits)
		if most := perDay(usual) + (days-1)*int(24*time.Hour/usual.LongestDelay); a.guesses+promised > most {
			t.Errorf("%d guesses in %d days, want at most %d", a.guesses+promised, days, most)
		}
		if promised < 10 {
			t.Errorf("the owner got in %d times", promised)
		}
		if waits > ahead+time.Second {
			t.Errorf("the owner waited for %v", waits)
		}
		err := c.store.Read(t.Context(), func(tx *store.Tx) error {
			pair, err := tx.ThrottleBuckets(c.Key("alice", "").ids)
			for _, b := range pair {
				if n := len(b.Promises) / promiseBytes; n < 100 || n > 122 {
					t.Errorf("%d promises in a bucket, want about 120", n)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// One site gets one promise, and the same answer when it asks again.
func TestOnePromiseForASite(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		first, second := c.Key("alice", "first"), c.Key("alice", "second")
		admitted(t, c, first)
		for range 200 {
			if wait := wantRefused(t, guess(t, c, first)); wait > time.Second+time.Millisecond {
				t.Fatalf("the first site waits for %v", wait)
			}
		}
		if wait := wantRefused(t, guess(t, c, second)); wait > 32*time.Second || wait < 31*time.Second {
			t.Errorf("the second site waits for %v, want 31 s", wait)
		}
		// A site that does not come loses its time, and keeps no other from its own.
		time.Sleep(31*time.Second + time.Millisecond)
		wantRefused(t, guess(t, c, first))
		wantRefused(t, guess(t, c, c.Key("alice", "third"))) // the time belongs to the second site
		if err := guess(t, c, second); err != nil {
			t.Errorf("the second site: %v", err)
		}
	})
}

// perDay returns the largest number of guesses at one name in the first day of an attack:
// the free ones, those while the delay grows, and then one in each LongestDelay.
func perDay(l Limits) int {
	c := New(nil, nil, 0, l)
	return c.full + int(24*time.Hour/l.LongestDelay)
}
