package throttle

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// attack is a guesser with many networks against one name.
type attack struct {
	c        *Counter
	asked    int
	guesses  int
	due      map[int]time.Time // promises, by network
	networks int
	place    func(network int) Origin
	free     time.Time // when a time can be promised again
}

// site puts each network into a site of its own.
func site(network int) Origin { return at(fmt.Sprint("site", network)) }

func (a *attack) ask(t *testing.T, network int) {
	t.Helper()
	err := guess(t, a.c, a.c.Key("alice", a.place(network)))
	var refused *Refused
	switch {
	case err == nil:
		a.guesses++
		delete(a.due, network)
	case errors.As(err, &refused) && refused.Full:
		a.free = time.Now().Add(refused.RetryAfter - time.Millisecond) // the time is rounded up
	case errors.As(err, &refused):
		a.due[network] = time.Now().Add(refused.RetryAfter)
		if refused.RetryAfter > ahead+time.Millisecond {
			t.Fatalf("a promise for %v from now", refused.RetryAfter)
		}
	default:
		t.Fatal(err)
	}
}

// step lets the networks with a promise that is due guess, and one more network ask.
func (a *attack) step(t *testing.T) {
	t.Helper()
	for network, at := range a.due {
		if !at.After(time.Now()) {
			a.ask(t, network)
		}
	}
	a.asked++
	a.ask(t, a.asked%a.networks)
}

// A guesser with 10,000 sites gets no more tries than the documents state, for days. The owner
// logs in at once from a known device, and from a new device at the promised time.
func TestManySites(t *testing.T) {
	const days = 2
	inBubble(t, func(t *testing.T, c *Counter) {
		devices := New(c.store, secret, 2, usual)
		a := &attack{c: c, due: map[int]time.Time{}, networks: 10_000, place: site}
		began := time.Now()
		promised, waits := 0, time.Duration(0)
		var promise time.Time // the time that is promised to the owner
		for step := 0; time.Since(began) < days*24*time.Hour; step++ {
			// The owner asks first when there is a time left, and comes at the promised time.
			owner := c.Key("alice", at("the owner's site"))
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
				if err := guess(t, devices, devices.Key("session", at(""))); err != nil {
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
			pair, err := tx.ThrottleBuckets(c.Key("alice", at("")).ids)
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

// One network is promised one time for a try, and gets the same answer when it asks again.
func TestOnePromiseForANetwork(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		first, second := c.Key("alice", at("first")), c.Key("alice", at("second"))
		admitted(t, c, first)
		for range 200 {
			if wait := wantRefused(t, guess(t, c, first)); wait > time.Second+time.Millisecond {
				t.Fatalf("the first network waits for %v", wait)
			}
		}
		if wait := wantRefused(t, guess(t, c, second)); wait > 32*time.Second || wait < 31*time.Second {
			t.Errorf("the second network waits for %v, want 31 s", wait)
		}
		// A network that does not come loses its time, and keeps no other from its own.
		time.Sleep(31*time.Second + time.Millisecond)
		wantRefused(t, guess(t, c, first))
		wantRefused(t, guess(t, c, c.Key("alice", at("third")))) // this time is promised to the second network
		if err := guess(t, c, second); err != nil {
			t.Errorf("the second network: %v", err)
		}
	})
}

// The networks of one site, and the sites of one block, get a share of the promised times,
// however many networks and sites there are. The owner in another network of the site, in
// another site, or in another block then gets the next time.
func TestSharesOfTimes(t *testing.T) {
	for name, test := range map[string]struct {
		neighbor func(n int) Origin // the attacker's n-th network
		owner    Origin
		most     int // the number of times promised to the attacker
		asks     int // the number of the attacker's networks that ask
	}{
		"two networks of a site": {func(n int) Origin { return Origin{fmt.Sprint("network", n), "site", "block"} }, Origin{"owner", "site", "block"}, 2, 2},
		"one site":               {func(n int) Origin { return Origin{fmt.Sprint("network", n), "site", "block"} }, Origin{"owner", "other", "block"}, 11, 300},
		"one block":              {func(n int) Origin { return Origin{fmt.Sprint("network", n), fmt.Sprint("site", n/2), "block"} }, at("owner"), 40, 300},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *Counter) {
				admitted(t, c, c.Key("alice", test.neighbor(0)))
				promised := 1
				for n := 1; n < test.asks; n++ {
					var refused *Refused
					if err := guess(t, c, c.Key("alice", test.neighbor(n))); !errors.As(err, &refused) {
						t.Fatal(err)
					}
					if !refused.Full {
						promised++
					}
				}
				if promised < test.most*3/4 || promised > test.most {
					t.Errorf("%d promises, want about %d", promised, test.most)
				}
				var refused *Refused
				if err := guess(t, c, c.Key("alice", test.owner)); !errors.As(err, &refused) || refused.Full {
					t.Fatalf("the owner: %v", err)
				}
				if longest := time.Duration(promised)*usual.LongestDelay + 2*time.Second; refused.RetryAfter > longest {
					t.Errorf("the owner waits for %v, want at most %v", refused.RetryAfter, longest)
				}
				time.Sleep(refused.RetryAfter)
				if err := guess(t, c, c.Key("alice", test.owner)); err != nil {
					t.Errorf("the owner at the promised time: %v", err)
				}
			})
		})
	}
}

// A guesser with 100 sites, of many networks each, cannot take every time of an hour: the owner,
// from a new site each time, is promised a time.
func TestManyNetworksOfFewSites(t *testing.T) {
	inBubble(t, func(t *testing.T, c *Counter) {
		const sites = 100
		a := &attack{c: c, due: map[int]time.Time{}, networks: 20 * sites, place: func(n int) Origin {
			return Origin{fmt.Sprint("network", n), fmt.Sprint("site", n%sites), fmt.Sprint("block", n%sites)}
		}}
		longest := time.Duration(0)
		for step := range 2 * 360 { // two hours
			for range 3 {
				a.step(t)
			}
			if step%30 == 29 {
				var refused *Refused
				err := guess(t, c, c.Key("alice", at(fmt.Sprint("owner", step))))
				if errors.As(err, &refused) && refused.Full || err == nil {
					t.Errorf("the owner after %d steps: %v", step, err)
				}
				longest = max(longest, refused.RetryAfter)
			}
			time.Sleep(10 * time.Second)
		}
		t.Logf("%d guesses of the attacker; the owner waited for at most %v", a.guesses, longest)
		if longest < 45*time.Minute {
			t.Errorf("the longest wait is %v: the attacker did not try", longest)
		}
	})
}

// perDay returns the largest number of guesses at one name in the first day of an attack:
// the free ones, those while the delay grows, and then one in each LongestDelay.
func perDay(l Limits) int {
	c := New(nil, nil, 0, l)
	return c.full + int(24*time.Hour/l.LongestDelay)
}
