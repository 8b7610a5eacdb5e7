package server_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// A flood of logins beyond what the machine can hash is refused at once. Verify, and
// calls with an access token, still work.
func TestOverload(t *testing.T) {
	h := start(t)
	victim := h.make(t)
	idle := h.verifying(t, func() { time.Sleep(300 * time.Millisecond) })

	const callers, enough = 400, 5
	errs, took := make([]error, callers), make([]time.Duration, callers)
	var helped string
	answered := make(chan struct{}, callers) // receives a value after each hash
	busy := h.verifying(t, func() {
		var tasks sync.WaitGroup
		ctx, giveUp := context.WithCancel(t.Context())
		defer giveUp()
		for i := range callers {
			tasks.Go(func() {
				began := time.Now()
				_, err := h.auth.Login(ctx, &watchwordv1.LoginRequest{Username: fmt.Sprint("guess-", i%3), Password: "guessed by a stranger"})
				errs[i], took[i] = err, time.Since(began)
				if outcome(err) == "INVALID_CREDENTIALS" {
					answered <- struct{}{}
				}
			})
		}
		// While strangers fill the queue for hashes, an admin still gets a place in the queue.
		_, err := h.users.SetPassword(h.admin.as(t.Context()), &watchwordv1.SetPasswordRequest{Id: victim.id, Password: victim.password})
		helped = outcome(err)
		for range enough {
			<-answered
		}
		giveUp() // giveUp ends the logins that still wait in the queue for hashes
		tasks.Wait()
	})
	var refused, hashed []time.Duration
	for i := range callers {
		switch outcome(errs[i]) {
		case "OVERLOADED":
			refusedBy(t, errs[i], "OVERLOADED", "")
			refused = append(refused, took[i])
		case "INVALID_CREDENTIALS":
			hashed = append(hashed, took[i])
		case "Canceled":
		default:
			t.Errorf("a login: %v", errs[i])
		}
	}
	if len(refused) == 0 || len(hashed) == 0 {
		t.Fatalf("%d refused, %d hashed", len(refused), len(hashed))
	}
	if slices.Max(refused) >= slices.Max(hashed) {
		t.Errorf("a refusal took %v, the last hash %v: refusals stand in the queue", slices.Max(refused), slices.Max(hashed))
	}
	wants(t, "an admin's SetPassword meanwhile", helped, "ok")
	t.Logf("%d logins: %d refused within %v, %d hashed within %v", callers, len(refused), slices.Max(refused), len(hashed), slices.Max(hashed))
	t.Logf("Verify idle: median %v, p99 %v; under the flood: median %v, p99 %v of %d",
		quantile(idle, 50), quantile(idle, 99), quantile(busy, 50), quantile(busy, 99), len(busy))
	h.relogin(t, victim)
	h.relogin(t, h.admin)
}

// verifying calls Verify all the time while something else happens, and returns
// how long each call took.
func (h *harness) verifying(t *testing.T, while func()) []time.Duration {
	t.Helper()
	var over atomic.Bool
	var took []time.Duration
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for !over.Load() || len(took) == 0 {
			began := time.Now()
			wants(t, "Verify", h.verify(t, h.admin.GetAccessToken()), "ok")
			took = append(took, time.Since(began))
		}
	})
	while()
	over.Store(true)
	tasks.Wait()
	slices.Sort(took)
	return took
}

func quantile(sorted []time.Duration, percent int) time.Duration {
	return sorted[(len(sorted)-1)*percent/100]
}

// If callers leave while they wait for a hash, no place of the queue stays taken.
func TestCallersWhoGiveUp(t *testing.T) {
	h := start(t)
	before := h.dump(t)
	var tasks sync.WaitGroup
	for i := range 50 {
		tasks.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*time.Millisecond)
			defer cancel()
			_, err := h.auth.Login(ctx, &watchwordv1.LoginRequest{Username: "nobody", Password: "guessed by a stranger"})
			if got := outcome(err); got != "DeadlineExceeded" && got != "INVALID_CREDENTIALS" && got != "OVERLOADED" {
				t.Errorf("%v", err)
			}
		})
	}
	tasks.Wait()
	h.relogin(t, &account{name: "admin", password: h.admin.password})
	if after := h.dump(t); len(after) <= len(before) {
		t.Error("no session was made")
	}
}

// Tested through the whole server: after the last acknowledged change of a password, only the
// password of this change logs in, and the earlier passwords and sessions are refused.
func TestPasswordsUnderRace(t *testing.T) {
	h := start(t)
	a := h.make(t)
	for round := range 4 {
		first := a.TokenPair
		admins, users := fmt.Sprintf("set by the admin in %d", round), fmt.Sprintf("changed by the user in %d", round)
		var changed *watchwordv1.ChangePasswordResponse
		var setErr, changeErr error
		logins := make([]*watchwordv1.LoginResponse, 3)
		var tasks sync.WaitGroup
		tasks.Go(func() {
			changed, changeErr = h.auth.ChangePassword(bearing(context.Background(), first.GetAccessToken()),
				&watchwordv1.ChangePasswordRequest{CurrentPassword: a.password, NewPassword: users})
		})
		tasks.Go(func() {
			_, setErr = h.users.SetPassword(h.admin.as(context.Background()), &watchwordv1.SetPasswordRequest{Id: a.id, Password: admins})
		})
		for i := range logins {
			tasks.Go(func() {
				logins[i], _ = h.auth.Login(context.Background(), &watchwordv1.LoginRequest{Username: a.name, Password: a.password})
			})
		}
		tasks.Wait()
		if got := outcome(changeErr); setErr != nil || got != "ok" && got != "TOKEN_REVOKED" {
			t.Fatalf("%v, %v", setErr, changeErr)
		}
		dead := []*watchwordv1.TokenPair{first, changed.GetTokens()}
		for _, l := range logins {
			dead = append(dead, l.GetTokens())
		}
		for _, tokens := range dead {
			if tokens != nil {
				wants(t, "Verify", h.verify(t, tokens.GetAccessToken()), "TOKEN_REVOKED")
				wants(t, "Refresh", h.refresh(t, tokens.GetRefreshToken()), "SESSION_REVOKED")
			}
		}
		for _, old := range []string{a.password, users} {
			wants(t, "an earlier password", outcome(h.login(&account{name: a.name, password: old})), "INVALID_CREDENTIALS")
		}
		a.password = admins
		h.relogin(t, a)
	}
}
