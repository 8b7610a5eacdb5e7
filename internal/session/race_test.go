package session_test

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
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// hold keeps the writer busy until it is released: calls then read and hash, and
// wait for their turn to write. In a bubble.
func (w *world) hold() (release func()) {
	gate := make(chan struct{})
	go func() { _ = w.store.Write(context.Background(), func(*store.Tx) error { <-gate; return nil }) }()
	synctest.Wait()
	return func() { close(gate); synctest.Wait() }
}

// weak makes hashes that a login replaces by better ones.
var weak = password.NewPool(password.Config{Params: password.Params{Memory: 8, Time: 1, Threads: 1}})

// weaken gives Alice a password whose next login hashes it anew.
func (w *world) weaken(t *testing.T, plain string) {
	t.Helper()
	if _, err := user.New(w.store, w.feed, weak, w.audit).SetPassword(t.Context(), caller.AtCommandLine, w.alice.ID, pw(t, plain)); err != nil {
		t.Fatal(err)
	}
}

// standing is which of the passwords logs Alice in; the test ends unless it is
// exactly one.
func (w *world) standing(t *testing.T, passwords ...string) string {
	t.Helper()
	var working []string
	for _, p := range passwords {
		switch _, err := w.logins.Login(context.Background(), "alice", pw(t, p), nil); {
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

// dead checks that a session has ended for whoever asks.
func (w *world) dead(t *testing.T, what string, tokens *session.Tokens) {
	t.Helper()
	if got := w.verdict(tokens.Access); got != revoked {
		t.Errorf("%s: Verify: %v", what, got)
	}
	if _, err := w.sessions.Refresh(context.Background(), tokens.Refresh, nil); !errors.Is(err, session.ErrRevoked) {
		t.Errorf("%s: Refresh: %v", what, err)
	}
}

func (w *world) caller(t *testing.T, id string, tokens *session.Tokens) caller.Caller {
	t.Helper()
	u, err := w.users.Get(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: id}, SessionID: tokens.SessionID, Version: u.Version, Roles: u.Roles}
}

// sequences are all orders of n of the letters.
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

// Login (with a rehash), ChangePassword, SetPassword and disabling have all read
// what they go by, and then write one after the other, in every order.
func TestWhatWasReadBeforeAHashIsCheckedAfterIt(t *testing.T) {
	for _, order := range append(sequences("LCSTD", 2), sequences("LCSD", 4)...) {
		t.Run("order "+order, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { interleave(t, order) })
		})
	}
}

func interleave(t *testing.T, order string) {
	w := newWorld(t)
	start := w.login(t)
	by := w.caller(t, w.alice.ID, start)
	if strings.Contains(order, "L") { // the hash is weak again, and the session lives
		err := w.store.Write(t.Context(), func(tx *store.Tx) error {
			u, err := tx.User(w.alice.ID)
			if err != nil {
				return err
			}
			if u.PasswordHash, err = weak.Hash(context.Background(), password.SignedIn, pw(t, sesame)); err != nil {
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
			tk, err := w.logins.Login(context.Background(), "alice", pw(t, sesame), nil)
			done('L', tk, err)
		},
		'C': func() {
			tk, err := w.logins.ChangePassword(context.Background(), by, pw(t, sesame), pw(t, "changed by Alice"))
			done('C', tk, err)
		},
		'S': func() {
			_, err := w.users.SetPassword(context.Background(), caller.AtCommandLine, w.alice.ID, pw(t, "set by one admin"))
			done('S', nil, err)
		},
		'T': func() {
			_, err := w.users.SetPassword(context.Background(), caller.AtCommandLine, w.alice.ID, pw(t, "set by another admin"))
			done('T', nil, err)
		},
		'D': func() {
			_, err := w.users.Update(context.Background(), caller.AtCommandLine, w.alice.ID, user.Change{Disabled: new(true)})
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
		w.dead(t, "the session of before", start)
		if acked('L') {
			w.dead(t, "the session that raced", tokens['L'])
		}
	} else {
		w.wantVerdict(t, start.Access, good)
	}
	if acked('C') && over {
		w.dead(t, "the changer's session", tokens['C'])
	} else if acked('C') {
		w.wantVerdict(t, tokens['C'].Access, good)
	}
	if acked('D') {
		if _, err := w.users.Update(context.Background(), caller.AtCommandLine, w.alice.ID, user.Change{Disabled: new(false)}); err != nil {
			t.Fatal(err)
		}
	}
	want := sesame
	if acked('C') {
		want = "changed by Alice"
	}
	if i := strings.LastIndexAny(order, "ST"); i >= 0 { // the last one set stands
		want = map[byte]string{'S': "set by one admin", 'T': "set by another admin"}[order[i]]
	}
	if got := w.standing(t, sesame, "changed by Alice", "set by one admin", "set by another admin"); got != want {
		t.Errorf("%q logs in, want %q", got, want)
	}
}

// change is a call of a random round: what it left, and when.
type change struct {
	what       string
	password   string // that stands if this was the last one
	tokens     *session.Tokens
	start, end time.Time
	err        error
}

// Everything at once, many times: exactly one password stands, which no later
// call has replaced, and no session lives that it did not open.
func TestPasswordsUnderRace(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		current := sesame
		for round := range 40 {
			w.weaken(t, current)
			start, err := w.logins.Login(t.Context(), "alice", pw(t, current), nil)
			if err != nil {
				t.Fatal(err)
			}
			by := w.caller(t, w.alice.ID, start)
			disable := round%5 == 0
			calls := race(t, w, by, current, round, disable)
			if disable {
				for _, c := range append(calls, &change{what: "the first session", tokens: start}) {
					if c.tokens != nil {
						w.dead(t, c.what+", of a user who is disabled", c.tokens)
					}
				}
				if _, err := w.users.Update(t.Context(), caller.AtCommandLine, w.alice.ID, user.Change{Disabled: new(false)}); err != nil {
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
				w.dead(t, "the first session", start)
			}
			current = stands
			if t.Failed() {
				t.Fatalf("round %d", round)
			}
		}
	})
}

// race starts a handful of calls at once.
func race(t *testing.T, w *world, by caller.Caller, current string, round int, disable bool) []*change {
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
			c.tokens, c.err = w.logins.Login(ctx, "alice", pw(t, c.password), nil)
		})
		add(&change{what: "change of password", password: fmt.Sprintf("changed %d in round %d", i, round)}, func(c *change) {
			c.tokens, c.err = w.logins.ChangePassword(ctx, by, pw(t, current), pw(t, c.password))
		})
	}
	for i := range 1 + rand.IntN(2) {
		add(&change{what: "password set", password: fmt.Sprintf("set %d in round %d", i, round)}, func(c *change) {
			_, c.err = w.users.SetPassword(ctx, caller.AtCommandLine, w.alice.ID, pw(t, c.password))
		})
	}
	if disable {
		add(&change{what: "disabled"}, func(c *change) {
			_, c.err = w.users.Update(ctx, caller.AtCommandLine, w.alice.ID, user.Change{Disabled: new(true)})
		})
	}
	close(begin)
	tasks.Wait()
	return calls
}

// settle judges a round by what each call was told.
func settle(t *testing.T, w *world, calls []*change, current, stands string, disabled bool) {
	t.Helper()
	var last *change
	for _, c := range calls {
		if c.what != "login" && c.password == stands {
			last = c
		}
	}
	if (last == nil) != (stands == current) || last != nil && last.err != nil {
		t.Errorf("%q stands, and nobody was told so", stands)
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
			w.dead(t, c.what, c.tokens)
		} else {
			w.wantVerdict(t, c.tokens.Access, good)
		}
	}
}

// A call that the verifier let in is judged again by what is committed before it
// writes, and a caller whose rights have gone by then writes nothing.
func TestRightsThatGoWhileACallWaits(t *testing.T) {
	type step func(w *world, by caller.Caller, tokens *session.Tokens) error
	ctx := context.Background()
	update := func(c user.Change) step {
		return func(w *world, by caller.Caller, _ *session.Tokens) error {
			_, err := w.users.Update(ctx, caller.AtCommandLine, by.ID, c)
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
		"deleted": {func(w *world, by caller.Caller, _ *session.Tokens) error {
			return w.users.Delete(ctx, caller.AtCommandLine, by.ID)
		}, caller.ErrRevoked},
		"all sessions revoked": {func(w *world, by caller.Caller, _ *session.Tokens) error {
			return w.users.RevokeSessions(ctx, caller.AtCommandLine, by.ID)
		}, caller.ErrRevoked},
		"logged out": {func(w *world, _ caller.Caller, tokens *session.Tokens) error {
			return w.sessions.Logout(ctx, tokens.Refresh)
		}, caller.ErrRevoked},
		"password set": {func(w *world, by caller.Caller, _ *session.Tokens) error {
			_, err := w.users.SetPassword(ctx, caller.AtCommandLine, by.ID, pw(t, "a new one for the boss"))
			return err
		}, caller.ErrRevoked},
	}
	calls := map[string]func(w *world, by caller.Caller) error{
		"create": func(w *world, by caller.Caller) error {
			_, err := w.users.Create(ctx, by, "mallory", user.Roles{caller.Admin}, pw(t, sesame))
			return err
		},
		"update": func(w *world, by caller.Caller) error {
			_, err := w.users.Update(ctx, by, w.alice.ID, user.Change{Roles: &user.Roles{caller.Admin}})
			return err
		},
		"delete": func(w *world, by caller.Caller) error { return w.users.Delete(ctx, by, w.alice.ID) },
		"set password": func(w *world, by caller.Caller) error {
			_, err := w.users.SetPassword(ctx, by, w.alice.ID, pw(t, "set by a stale admin"))
			return err
		},
		"revoke sessions":  func(w *world, by caller.Caller) error { return w.users.RevokeSessions(ctx, by, w.alice.ID) },
		"revoke a session": func(w *world, by caller.Caller) error { return w.sessions.Revoke(ctx, by, w.aliceSession(t)) },
		"change one's own password": func(w *world, by caller.Caller) error {
			_, err := w.logins.ChangePassword(ctx, by, pw(t, sesame), pw(t, "one's own new one"))
			return err
		},
	}
	for end, e := range ends {
		for name, call := range calls {
			t.Run(end+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					boss, err := w.users.Create(ctx, caller.AtCommandLine, "boss", user.Roles{caller.Admin}, pw(t, sesame))
					if err != nil {
						t.Fatal(err)
					}
					w.login(t)
					tokens, err := w.logins.Login(ctx, "boss", pw(t, sesame), nil)
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
					w.wantVerdict(t, w.login(t).Access, good)
				})
			})
		}
	}
}

// state is what a call for Alice could have changed.
type state struct {
	head  int64
	users int
	alice any
}

func (w *world) state(t *testing.T) (s state) {
	t.Helper()
	err := w.store.Read(context.Background(), func(tx *store.Tx) (err error) {
		all, err1 := tx.Users("", 100)
		alice, err2 := tx.User(w.alice.ID)
		sessions, err3 := tx.Sessions(w.alice.ID, "", 100)
		s.users, s.alice = len(all), []any{alice, sessions}
		s.head, err = tx.Head()
		return errors.Join(err, err1, err2, err3)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) aliceSession(t *testing.T) (id string) {
	err := w.store.Read(context.Background(), func(tx *store.Tx) error {
		sessions, err := tx.Sessions(w.alice.ID, "", 1)
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
