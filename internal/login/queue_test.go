package login_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/throttle"
	"github.com/watchword-auth/watchword/internal/user"
)

// A call that finds no place in the queue for a hash reads nothing from the database.
func TestRefusedCallsReadNothing(t *testing.T) {
	w, proxy := sessiontest.Wired(t)
	pool := password.NewPool(password.Config{Parallel: 1, Queue: 1, Reserved: -1})
	logins := w.NewLogins(t, w.Sessions, pool)
	ctx := caller.WithSource(t.Context(), "192.0.2.1")
	by := world{w}.caller(t, w.Alice.ID, w.Login(t))
	pw := sessiontest.Parse(t, sessiontest.Password)

	first, err := pool.Enter(ctx, password.User(w.Alice.ID))
	if err != nil {
		t.Fatal(err)
	}
	count := sessiontest.Count(proxy)
	count.Want(t, "a refused Login", 0, 0, func() {
		if _, err := logins.Login(ctx, "alice", pw, nil, ""); !errors.Is(err, password.ErrOverloaded) {
			t.Errorf("Login with a full queue: %v", err)
		}
	})
	count.Want(t, "a refused ChangePassword", 0, 0, func() {
		if _, err := logins.ChangePassword(ctx, by, pw, sessiontest.Parse(t, "changed by Alice")); !errors.Is(err, password.ErrOverloaded) {
			t.Errorf("ChangePassword with a full queue: %v", err)
		}
	})
	first.End()
	if _, err := logins.Login(ctx, "alice", pw, nil, ""); err != nil {
		t.Errorf("Login with a free queue: %v", err)
	}
}

// The peer of a login is the network of its source, and the peer of a change of password
// is the user.
func TestPeersOfCalls(t *testing.T) {
	t.Parallel()
	w := sessiontest.New(t)
	pool := password.NewPool(password.Config{Parallel: 1, Queue: 2, Reserved: -1})
	logins := w.NewLogins(t, w.Sessions, pool)
	by := world{w}.caller(t, w.Alice.ID, w.Login(t))
	pw := sessiontest.Parse(t, sessiontest.Password)
	for range 2 { // the logins of one network fill the queue
		turn, err := pool.Enter(t.Context(), password.Stranger("2001:db8:0:1::/64"))
		if err != nil {
			t.Fatal(err)
		}
		defer turn.End()
	}
	from := func(source caller.Source) error {
		_, err := logins.Login(caller.WithSource(t.Context(), source), "alice", pw, nil, "")
		return err
	}
	if err := from("2001:db8:0:1::abcd"); !errors.Is(err, password.ErrOverloaded) {
		t.Errorf("a login from the network that fills the queue: %v", err)
	}
	if err := from("2001:db8:0:2::abcd"); err != nil {
		t.Errorf("a login from another network: %v", err)
	}
	third, err := pool.Enter(t.Context(), password.Stranger("2001:db8:0:1::/64")) // fills the queue again
	if err != nil {
		t.Fatal(err)
	}
	defer third.End()
	flooded := caller.WithSource(t.Context(), "2001:db8:0:1::abcd")
	if _, err := logins.ChangePassword(flooded, by, pw, sessiontest.Parse(t, "changed by Alice")); err != nil {
		t.Errorf("ChangePassword beside a flood of logins: %v", err)
	}
}

// A call that waits for the database after its hash keeps no other call from hashing.
func TestHashesGoOnWhileTheDatabaseWaits(t *testing.T) {
	pw := sessiontest.Parse(t, sessiontest.Password)
	for name, call := range map[string]func(*login.Service, caller.Caller) error{
		"Login": func(logins *login.Service, _ caller.Caller) error {
			_, err := logins.Login(context.Background(), "alice", pw, nil, "")
			return err
		},
		"ChangePassword": func(logins *login.Service, by caller.Caller) error {
			_, err := logins.ChangePassword(context.Background(), by, pw, sessiontest.Parse(t, "changed by Alice"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world{sessiontest.New(t)}
				pool := password.NewPool(password.Config{Parallel: 1})
				by := w.caller(t, w.Alice.ID, w.Login(t))
				done, logins := make(chan error, 1), w.NewLogins(t, w.Sessions, pool)
				release := w.hold()
				go func() { done <- call(logins, by) }()
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // by the fake clock of synctest
				defer cancel()
				if _, err := pool.Hash(ctx, password.Stranger("192.0.2.1"), pw); err != nil {
					t.Errorf("another hash: %v", err)
				}
				release()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A login that the bound of its source refuses takes no place in the queue, also with an
// earlier refresh token of another user: the answer tells of the bound although the queue is
// full. A login from a known device asks for a place.
func TestRefusedSourcesTakeNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the clock stands still, so the bound stays reached
		w := sessiontest.New(t)
		pool := password.NewPool(password.Config{Params: password.Params{Memory: 64, Time: 1, Threads: 1}, Parallel: 1, Queue: 1, Reserved: -1})
		logins, err := login.New(w.Store, w.Feed, w.Sessions, pool, login.Limits{
			Limits: throttle.Limits{FreeTries: 1000, LongestDelay: time.Minute}, SourceRate: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		g, device := guarded{World: w, logins: logins}, w.Login(t)
		for g.try(t, "192.0.2.1", "somebody", wrong, "") == "wrong" {
			continue
		}
		turn, err := pool.Enter(t.Context(), password.User(w.Alice.ID)) // fills the queue
		if err != nil {
			t.Fatal(err)
		}
		defer turn.End()
		for _, c := range []struct {
			name     user.Name
			previous string
			want     error
		}{
			{"alice", "", throttle.ErrTooMany},
			{"bob", device.Refresh, throttle.ErrTooMany},
			{"alice", device.Refresh, password.ErrOverloaded},
		} {
			_, err := logins.Login(caller.WithSource(t.Context(), "192.0.2.1"), c.name, sessiontest.Parse(t, wrong), nil, c.previous)
			if !errors.Is(err, c.want) {
				t.Errorf("%s, with a token %t: %v, want %v", c.name, c.previous != "", err, c.want)
			}
		}
	})
}
