package login_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// world adds to the kit's world what races of passwords need.
type world struct{ *sessiontest.World }

// hold keeps the writer busy until release is called: calls then read and hash, and wait
// for their turn to write. The test must be in a bubble.
func (w world) hold() (release func()) {
	gate := make(chan struct{})
	go func() { _ = w.Store.Write(context.Background(), func(*store.Tx) error { <-gate; return nil }) }()
	synctest.Wait()
	return func() { close(gate); synctest.Wait() }
}

// weak makes hashes that a login replaces by better ones.
var weak = password.NewPool(password.Config{Params: password.Params{Memory: 8, Time: 1, Threads: 1}})

// weaken gives Alice a password that her next login hashes again.
func (w world) weaken(t *testing.T, plain string) {
	t.Helper()
	if _, err := user.New(w.Store, w.Feed, weak, w.Audit).SetPassword(t.Context(), caller.AtCommandLine, w.Alice.ID, sessiontest.Parse(t, plain)); err != nil {
		t.Fatal(err)
	}
}

// standing returns the password that logs Alice in. The test fails unless exactly one of
// the passwords does.
func (w world) standing(t *testing.T, passwords ...string) string {
	t.Helper()
	var working []string
	for _, p := range passwords {
		switch _, err := w.Logins.Login(context.Background(), "alice", sessiontest.Parse(t, p), nil, ""); {
		case err == nil:
			working = append(working, p)
		case !errors.Is(err, login.ErrCredentials):
			t.Fatalf("logging in with %q: %v", p, err)
		}
	}
	if len(working) != 1 {
		t.Fatalf("these log in: %q", working)
	}
	return working[0]
}

// caller returns a user as the caller, with the user's present rights.
func (w world) caller(t *testing.T, id string, tokens *session.Tokens) caller.Caller {
	t.Helper()
	u, err := w.Users.Get(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: id}, SessionID: tokens.SessionID, Name: u.Username, Version: u.Version, Roles: u.Roles}
}

// sequences returns all orders of n of the letters.
func sequences(letters string, n int) (all []string) {
	if n == 0 {
		return []string{""}
	}
	for i, first := range letters {
		for _, rest := range sequences(letters[:i]+letters[i+1:], n-1) {
			all = append(all, string(first)+rest)
		}
	}
	return all
}

// Login (with a new hash), ChangePassword, SetPassword and disabling all read the user before
// any of the calls writes. Then the calls write one after the other, in every order.
func TestWhatWasReadBeforeAHashIsCheckedAfterIt(t *testing.T) {
	for _, order := range append(sequences("LCSTD", 2), sequences("LCSD", 4)...) {
		t.Run("order "+order, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { interleave(t, order) })
		})
	}
}

func interleave(t *testing.T, order string) {
	w := world{sessiontest.New(t)}
	start := w.Login(t)
	by := w.caller(t, w.Alice.ID, start)
	if strings.Contains(order, "L") { // the hash is weak again, and the session lives
		err := w.Store.Write(t.Context(), func(tx *store.Tx) error {
			u, err := tx.User(w.Alice.ID)
			if err != nil {
				return err
			}
			if u.PasswordHash, err = weak.Hash(context.Background(), password.Admin(""), sessiontest.Parse(t, sessiontest.Password)); err != nil {
				return err
			}
			return tx.UpdateUser(u)
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	tokens, errs, mu := map[rune]*session.Tokens{}, map[rune]error{}, sync.Mutex{}
	done := func(op rune, tk *session.Tokens, err error) {
		mu.Lock()
		defer mu.Unlock()
		tokens[op], errs[op] = tk, err
	}
	ops := map[rune]func(){
		'L': func() {
			tk, err := w.Logins.Login(context.Background(), "alice", sessiontest.Parse(t, sessiontest.Password), nil, "")
			done('L', tk, err)
		},
		'C': func() {
			tk, err := w.Logins.ChangePassword(context.Background(), by, sessiontest.Parse(t, sessiontest.Password), sessiontest.Parse(t, "changed by Alice"))
			done('C', tk, err)
		},
		'S': func() {
			_, err := w.Users.SetPassword(context.Background(), caller.AtCommandLine, w.Alice.ID, sessiontest.Parse(t, "set by one admin"))
			done('S', nil, err)
		},
		'T': func() {
			_, err := w.Users.SetPassword(context.Background(), caller.AtCommandLine, w.Alice.ID, sessiontest.Parse(t, "set by another admin"))
			done('T', nil, err)
		},
		'D': func() {
			_, err := w.Users.Update(context.Background(), caller.AtCommandLine, w.Alice.ID, user.Change{Disabled: new(true)})
			done('D', nil, err)
		},
	}
	release := w.hold()
	var tasks sync.WaitGroup
	for _, op := range order {
		tasks.Go(ops[op])
		synctest.Wait()
	}
	if len(errs) > 0 {
		t.Fatalf("these did not wait for their turn: %v", errs)
	}
	release()
	tasks.Wait()

	acked := func(op rune) bool { return strings.ContainsRune(order, op) && errs[op] == nil }
	for _, op := range order {
		if err := errs[op]; (op == 'S' || op == 'T' || op == 'D') && err != nil ||
			op == 'C' && err != nil && !errors.Is(err, caller.ErrRevoked) ||
			op == 'L' && err != nil && !errors.Is(err, login.ErrCredentials) && !errors.Is(err, login.ErrUserDisabled) {
			t.Errorf("%c: %v", op, err)
		}
	}
	over := acked('S') || acked('T') || acked('D')
	if over || acked('C') {
		w.WantEnded(t, "the session of before", start)
		if acked('L') {
			w.WantEnded(t, "the session that raced", tokens['L'])
		}
	} else {
		w.WantVerdict(t, start.Access, sessiontest.Good)
	}
	if acked('C') && over {
		w.WantEnded(t, "the changer's session", tokens['C'])
	} else if acked('C') {
		w.WantVerdict(t, tokens['C'].Access, sessiontest.Good)
	}
	if acked('D') {
		if _, err := w.Users.Update(context.Background(), caller.AtCommandLine, w.Alice.ID, user.Change{Disabled: new(false)}); err != nil {
			t.Fatal(err)
		}
	}
	want := sessiontest.Password
	if acked('C') {
		want = "changed by Alice"
	}
	if i := strings.LastIndexAny(order, "ST"); i >= 0 { // the password that was set last works
		want = map[byte]string{'S': "set by one admin", 'T': "set by another admin"}[order[i]]
	}
	if got := w.standing(t, sessiontest.Password, "changed by Alice", "set by one admin", "set by another admin"); got != want {
		t.Errorf("%q logs in, want %q", got, want)
	}
}

// change is a call of a random round: its result, and when it ran.
type change struct {
	what       string
	password   string // stands if this call is the last one
	tokens     *session.Tokens
	start, end time.Time
	err        error
}

// Logins and changes of the password run at once, many times: at the end exactly one password
// works, the password that was set last, and only sessions begun with this password are live.
func TestPasswordsUnderRace(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, kit *sessiontest.World) {
		w := world{kit}
		current := sessiontest.Password
		for round := range 40 {
			w.weaken(t, current)
			start, err := w.Logins.Login(t.Context(), "alice", sessiontest.Parse(t, current), nil, "")
			if err != nil {
				t.Fatal(err)
			}
			by := w.caller(t, w.Alice.ID, start)
			disable := round%5 == 0
			calls := race(t, w, by, current, round, disable)
			if disable {
				for _, c := range append(calls, &change{what: "the first session", tokens: start}) {
					if c.tokens != nil {
						w.WantEnded(t, c.what+", of a disabled user", c.tokens)
					}
				}
				if _, err := w.Users.Update(t.Context(), caller.AtCommandLine, w.Alice.ID, user.Change{Disabled: new(false)}); err != nil {
					t.Fatal(err)
				}
			}
			passwords := []string{current}
			for _, c := range calls {
				if strings.Contains(c.what, "password") {
					passwords = append(passwords, c.password)
				}
			}
			stands := w.standing(t, passwords...)
			settle(t, w, calls, current, stands, disable)
			if stands != current {
				w.WantEnded(t, "the first session", start)
			}
			current = stands
			if t.Failed() {
				t.Fatalf("round %d", round)
			}
		}
	})
}

// race starts a handful of calls at once.
func race(t *testing.T, w world, by caller.Caller, current string, round int, disable bool) []*change {
	t.Helper()
	ctx := context.Background()
	var calls []*change
	var tasks sync.WaitGroup
	begin := make(chan struct{})
	add := func(c *change, call func(c *change)) {
		calls = append(calls, c)
		pause := time.Duration(rand.IntN(2000)) * time.Microsecond
		tasks.Go(func() {
			<-begin
			time.Sleep(pause)
			c.start = time.Now()
			call(c)
			c.end = time.Now()
		})
	}
	for i := range 3 {
		add(&change{what: "login", password: current}, func(c *change) {
			c.tokens, c.err = w.Logins.Login(ctx, "alice", sessiontest.Parse(t, c.password), nil, "")
		})
		add(&change{what: "change of password", password: fmt.Sprintf("changed %d in round %d", i, round)}, func(c *change) {
			c.tokens, c.err = w.Logins.ChangePassword(ctx, by, sessiontest.Parse(t, current), sessiontest.Parse(t, c.password))
		})
	}
	for i := range 1 + rand.IntN(2) {
		add(&change{what: "password set", password: fmt.Sprintf("set %d in round %d", i, round)}, func(c *change) {
			_, c.err = w.Users.SetPassword(ctx, caller.AtCommandLine, w.Alice.ID, sessiontest.Parse(t, c.password))
		})
	}
	if disable {
		add(&change{what: "disabled"}, func(c *change) {
			_, c.err = w.Users.Update(ctx, caller.AtCommandLine, w.Alice.ID, user.Change{Disabled: new(true)})
		})
	}
	close(begin)
	tasks.Wait()
	return calls
}

// settle judges a round by the answers of its calls.
func settle(t *testing.T, w world, calls []*change, current, stands string, disabled bool) {
	t.Helper()
	var last *change
	for _, c := range calls {
		if c.what != "login" && c.password == stands {
			last = c
		}
	}
	if (last == nil) != (stands == current) || last != nil && last.err != nil {
		t.Errorf("%q stands, but no call was answered so", stands)
	}
	for _, c := range calls {
		switch {
		case c.err == nil && strings.Contains(c.what, "password"):
			if last == nil || c.start.After(last.end) {
				t.Errorf("%q was acknowledged after %q, which stands", c.password, stands)
			}
		case c.err != nil && !errors.Is(c.err, login.ErrCredentials) && !errors.Is(c.err, login.ErrUserDisabled) &&
			!errors.Is(c.err, caller.ErrRevoked):
			t.Errorf("%s: %v", c.what, c.err)
		}
		if c.tokens == nil || disabled {
			continue
		}
		if c.password != stands {
			w.WantEnded(t, c.what, c.tokens)
		} else {
			w.WantVerdict(t, c.tokens.Access, sessiontest.Good)
		}
	}
}

// The verifier lets a call in, and the caller's rights end while the call waits to
// write. The call judges its caller again, by what is committed, and writes nothing.
func TestRightsThatGoWhileACallWaits(t *testing.T) {
	type step func(w world, by caller.Caller, tokens *session.Tokens) error
	ctx := context.Background()
	update := func(c user.Change) step {
		return func(w world, by caller.Caller, _ *session.Tokens) error {
			_, err := w.Users.Update(ctx, caller.AtCommandLine, by.ID, c)
			return err
		}
	}
	ends := map[string]struct {
		step
		want error
	}{
		"demoted":  {update(user.Change{Roles: &user.Roles{"writer"}}), caller.ErrStale},
		"renamed":  {update(user.Change{Name: new(user.Name("root"))}), caller.ErrStale},
		"disabled": {update(user.Change{Disabled: new(true)}), caller.ErrRevoked},
		"deleted": {func(w world, by caller.Caller, _ *session.Tokens) error {
			return w.Users.Delete(ctx, caller.AtCommandLine, by.ID)
		}, caller.ErrRevoked},
		"all sessions revoked": {func(w world, by caller.Caller, _ *session.Tokens) error {
			return w.Users.RevokeSessions(ctx, caller.AtCommandLine, by.ID)
		}, caller.ErrRevoked},
		"logged out": {func(w world, _ caller.Caller, tokens *session.Tokens) error {
			return w.Sessions.Logout(ctx, tokens.Refresh)
		}, caller.ErrRevoked},
		"password set": {func(w world, by caller.Caller, _ *session.Tokens) error {
			_, err := w.Users.SetPassword(ctx, caller.AtCommandLine, by.ID, sessiontest.Parse(t, "a new one for the boss"))
			return err
		}, caller.ErrRevoked},
	}
	calls := map[string]func(w world, by caller.Caller) error{
		"create": func(w world, by caller.Caller) error {
			_, err := w.Users.Create(ctx, by, "mallory", user.Roles{caller.Admin}, sessiontest.Parse(t, sessiontest.Password))
			return err
		},
		"update": func(w world, by caller.Caller) error {
			_, err := w.Users.Update(ctx, by, w.Alice.ID, user.Change{Roles: &user.Roles{caller.Admin}})
			return err
		},
		"delete": func(w world, by caller.Caller) error { return w.Users.Delete(ctx, by, w.Alice.ID) },
		"set password": func(w world, by caller.Caller) error {
			_, err := w.Users.SetPassword(ctx, by, w.Alice.ID, sessiontest.Parse(t, "set by a stale admin"))
			return err
		},
		"revoke sessions":  func(w world, by caller.Caller) error { return w.Users.RevokeSessions(ctx, by, w.Alice.ID) },
		"revoke a session": func(w world, by caller.Caller) error { return w.Sessions.Revoke(ctx, by, w.aliceSession(t)) },
		"change one's own password": func(w world, by caller.Caller) error {
			_, err := w.Logins.ChangePassword(ctx, by, sessiontest.Parse(t, sessiontest.Password), sessiontest.Parse(t, "one's own new one"))
			return err
		},
	}
	for end, e := range ends {
		for name, call := range calls {
			t.Run(end+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := world{sessiontest.New(t)}
					boss, err := w.Users.Create(ctx, caller.AtCommandLine, "boss", user.Roles{caller.Admin}, sessiontest.Parse(t, sessiontest.Password))
					if err != nil {
						t.Fatal(err)
					}
					// Another admin, since the last one cannot be demoted.
					if _, err := w.Users.Create(ctx, caller.AtCommandLine, "other", user.Roles{caller.Admin}, sessiontest.Parse(t, sessiontest.Password)); err != nil {
						t.Fatal(err)
					}
					w.Login(t)
					tokens, err := w.Logins.Login(ctx, "boss", sessiontest.Parse(t, sessiontest.Password), nil, "")
					if err != nil {
						t.Fatal(err)
					}
					by, before := w.caller(t, boss.ID, tokens), w.state(t)
					release := w.hold()
					ended, called := make(chan error, 1), make(chan error, 1)
					go func() { ended <- e.step(w, by, tokens) }()
					synctest.Wait()
					go func() { called <- call(w, by) }()
					synctest.Wait()
					release()
					if err := <-ended; err != nil {
						t.Fatal(err)
					}
					if err := <-called; !errors.Is(err, e.want) {
						t.Errorf("%v, want %v", err, e.want)
					}
					after := w.state(t)
					if after.head != before.head+1 || after.users != before.users && end != "deleted" || !reflect.DeepEqual(before.alice, after.alice) {
						t.Errorf("something was written: %+v, before %+v", after, before)
					}
					w.WantVerdict(t, w.Login(t).Access, sessiontest.Good)
				})
			})
		}
	}
}

// state holds everything that a call about Alice could change.
type state struct {
	head  int64
	users int
	alice any
}

func (w world) state(t *testing.T) (s state) {
	t.Helper()
	err := w.Store.Read(context.Background(), func(tx *store.Tx) (err error) {
		all, err1 := tx.Users("", 100)
		alice, err2 := tx.User(w.Alice.ID)
		sessions, err3 := tx.Sessions(w.Alice, store.SessionPlace{}, 100)
		s.users, s.alice = len(all), []any{alice, sessions}
		s.head, err = tx.Head()
		return errors.Join(err, err1, err2, err3)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w world) aliceSession(t *testing.T) (id string) {
	err := w.Store.Read(context.Background(), func(tx *store.Tx) error {
		sessions, err := tx.Sessions(w.Alice, store.SessionPlace{}, 1)
		if err == nil {
			id = sessions[0].ID
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return id
}
