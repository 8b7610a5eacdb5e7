package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// desk holds a client of a server, and an admin's tokens.
type desk struct {
	*client
	admin *watchwordv1.TokenPair
}

func (d desk) asAdmin(ctx context.Context) context.Context { return bearer(ctx, d.admin) }

// held holds a session's tokens on the client's side.
type held struct {
	pair   *watchwordv1.TokenPair // the newest received pair
	before *watchwordv1.TokenPair // the pair before; nil before the first refresh
	stale  bool                   // the user's roles have changed since pair
}

// refresh refreshes with the newest token. With again, refresh presents the token before,
// like a client without an answer.
func (h *held) refresh(ctx context.Context, c *client, again bool) error {
	with := h.pair
	if again && h.before != nil {
		with = h.before
	}
	next, err := c.tryRefresh(ctx, with)
	if err != nil {
		return err
	}
	if next.GetRefreshToken() != h.pair.GetRefreshToken() {
		h.before = h.pair
	}
	h.pair, h.stale = next, false
	return nil
}

// ended refreshes a session, and reports whether the session has ended.
func (h *held) ended(ctx context.Context, c *client) (bool, error) {
	err := h.refresh(ctx, c, false)
	if err == nil {
		return false, nil
	}
	return true, checkRefusal(err, "SESSION_REVOKED")
}

// checkLive checks that a session without a logout works: the newest access token, a
// refresh, and the roles in the new access token.
func (h *held) checkLive(ctx context.Context, c *client, roles []string) error {
	_, err := c.verify(ctx, h.pair)
	if h.stale {
		err = checkRefusal(err, "TOKEN_STALE")
	}
	if err != nil {
		return fmt.Errorf("verify of the access token from before the kill: %w", err)
	}
	if err := h.refresh(ctx, c, rand.IntN(3) == 0); err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	principal, err := c.verify(ctx, h.pair)
	if err == nil && !slices.Equal(principal.GetRoles(), roles) {
		err = fmt.Errorf("the new access token has roles %v, want %v", principal.GetRoles(), roles)
	}
	return err
}

// checkEnded checks that Refresh and Verify refuse a session after the acknowledged end.
func (h *held) checkEnded(ctx context.Context, c *client) error {
	_, refreshed := c.tryRefresh(ctx, h.pair)
	_, verified := c.verify(ctx, h.pair)
	return errors.Join(checkRefusal(refreshed, "SESSION_REVOKED"), checkRefusal(verified, "TOKEN_REVOKED"))
}

// account is a user with the expected state. A single goroutine makes all calls of an
// account, one after another. So a kill of the server leaves at most one call without an
// answer, and the rest of the state is known.
type account struct {
	id, name string
	password string
	roles    []string
	disabled bool
	live     []*held
	ended    []*held
	guests   []*guest

	checked    int   // the first entries of ended, checked already
	reset      bool  // the password has changed since the last check
	names      int   // the number of used names for guests and roles
	unanswered *call // without an answer because of the kill
}

// guest is a user that an account's calls create and delete.
type guest struct {
	name, id string
	deleted  bool
	checked  bool // whether the test has checked the deleted guest
}

// call is a call of an account to the server.
type call struct {
	kind string
	make func(ctx context.Context, d desk) error
	// then changes the account's expected state, after an answer.
	then func()
	// happened asks a new server if the old server carried out the call without an
	// answer. happened is nil if no later check depends on the call, as for a login.
	happened func(ctx context.Context, d desk) (bool, error)
}

func (a *account) endAll() {
	a.ended = append(a.ended, a.live...)
	a.live = nil
}

func (a *account) end(h *held) {
	a.ended = append(a.ended, h)
	a.live = slices.DeleteFunc(a.live, func(l *held) bool { return l == h })
}

// newName returns an unused name.
func (a *account) newName() string {
	a.names++
	return fmt.Sprintf("%s-%d", a.name, a.names)
}

// calls lists an account's possible calls. choose returns nil if the call makes no sense
// now. The server hashes passwords one at a time, about twenty a second, so calls with a
// hash have low weights: otherwise most accounts would wait for a hash.
var calls = []struct {
	kind   string
	weight int
	choose func(*account) *call
}{
	{"refresh", 800, (*account).refresh},
	{"login", 12, (*account).login},
	{"logout", 10, (*account).logout},
	{"revoke", 6, (*account).revoke},
	{"revoke all", 2, (*account).revokeAll},
	{"set password", 2, (*account).setPassword},
	{"change password", 2, (*account).changePassword},
	{"roles", 20, (*account).changeRoles},
	{"disable", 2, (*account).disable},
	{"enable", 12, (*account).enable},
	{"create", 1, (*account).createGuest},
	{"delete", 4, (*account).deleteGuest},
}

// next returns a random call. If preferred is not empty, about half of the calls are of
// that kind.
func (a *account) next(preferred string) *call {
	total := 0
	for _, c := range calls {
		total += c.weight
	}
	for {
		roll, prefer := rand.IntN(total), preferred != "" && rand.IntN(2) == 0
		for _, c := range calls {
			roll -= c.weight
			if (prefer && c.kind == preferred) || (!prefer && roll < 0) {
				if next := c.choose(a); next != nil {
					next.kind = c.kind
					return next
				}
				break
			}
		}
	}
}

// session returns a random live session, or nil.
func (a *account) session() *held {
	if len(a.live) == 0 {
		return nil
	}
	return a.live[rand.IntN(len(a.live))]
}

func (a *account) refresh() *call {
	h := a.session()
	if h == nil {
		return nil
	}
	again := h.before != nil && rand.IntN(8) == 0
	return &call{
		make: func(ctx context.Context, d desk) error {
			newest := h.pair.GetRefreshToken()
			err := h.refresh(ctx, d.client, again)
			if err == nil && again != (newest == h.pair.GetRefreshToken()) {
				return fmt.Errorf("refresh with the token before: %v, but the newest token stays the same: %v", again, !again)
			}
			return err
		},
		then: func() {},
	}
}

func (a *account) login() *call {
	if a.disabled || len(a.live) >= 5 {
		return nil
	}
	var pair *watchwordv1.TokenPair
	return &call{
		make: func(ctx context.Context, d desk) error {
			resp, err := d.Login(ctx, &watchwordv1.LoginRequest{Username: a.name, Password: a.password})
			pair = noteTokens(resp.GetTokens())
			return err
		},
		then: func() { a.live = append(a.live, &held{pair: pair}) },
	}
}

func (a *account) logout() *call {
	h := a.session()
	if h == nil {
		return nil
	}
	return a.ending(h, func(ctx context.Context, d desk) error {
		if h.before != nil && rand.IntN(4) == 0 {
			return d.logout(ctx, h.before) // Logout accepts a spent token of the session
		}
		return d.logout(ctx, h.pair)
	})
}

func (a *account) revoke() *call {
	h := a.session()
	if h == nil {
		return nil
	}
	return a.ending(h, func(ctx context.Context, d desk) error {
		by := d.admin
		if !h.stale && rand.IntN(2) == 0 {
			by = h.pair
		}
		_, err := d.RevokeSession(bearer(ctx, by), &watchwordv1.RevokeSessionRequest{SessionId: h.pair.GetSessionId()})
		return err
	})
}

// ending returns a call that ends the session h.
func (a *account) ending(h *held, make func(context.Context, desk) error) *call {
	return &call{
		make: make, then: func() { a.end(h) },
		happened: func(ctx context.Context, d desk) (bool, error) { return h.ended(ctx, d.client) },
	}
}

func (a *account) revokeAll() *call {
	h := a.session()
	if h == nil {
		return nil
	}
	return &call{
		make: func(ctx context.Context, d desk) error {
			_, err := d.RevokeUserSessions(d.asAdmin(ctx), &watchwordv1.RevokeUserSessionsRequest{UserId: a.id})
			return err
		},
		then:     a.endAll,
		happened: func(ctx context.Context, d desk) (bool, error) { return h.ended(ctx, d.client) },
	}
}

func (a *account) setPassword() *call {
	next := newPassword()
	return &call{
		make: func(ctx context.Context, d desk) error {
			_, err := d.SetPassword(d.asAdmin(ctx), &watchwordv1.SetPasswordRequest{Id: a.id, Password: next})
			return err
		},
		then:     func() { a.endAll(); a.password, a.reset = next, true },
		happened: func(ctx context.Context, d desk) (bool, error) { return a.passwordIs(ctx, d, next) },
	}
}

func (a *account) changePassword() *call {
	h := a.session()
	if h == nil || h.stale {
		return nil
	}
	next := newPassword()
	var pair *watchwordv1.TokenPair
	return &call{
		make: func(ctx context.Context, d desk) error {
			resp, err := d.ChangePassword(bearer(ctx, h.pair), &watchwordv1.ChangePasswordRequest{CurrentPassword: a.password, NewPassword: next})
			pair = noteTokens(resp.GetTokens())
			return err
		},
		then: func() {
			a.endAll()
			a.password, a.reset = next, true
			if pair.GetRefreshToken() != "" { // empty if the call got no answer
				a.live = append(a.live, &held{pair: pair})
			}
		},
		happened: func(ctx context.Context, d desk) (bool, error) { return a.passwordIs(ctx, d, next) },
	}
}

// passwordIs reports whether the server accepts a password for the account.
func (a *account) passwordIs(ctx context.Context, d desk, password string) (bool, error) {
	err := d.tryLogin(ctx, a.name, password)
	switch {
	case err == nil && !a.disabled, a.disabled && checkRefusal(err, "USER_DISABLED") == nil:
		return true, nil
	default:
		return false, checkRefusal(err, "INVALID_CREDENTIALS")
	}
}

func (a *account) changeRoles() *call {
	roles := []string{a.newName()}
	return a.update(&watchwordv1.User{Id: a.id, Roles: roles}, "roles",
		func(u *watchwordv1.User) bool { return slices.Equal(u.GetRoles(), roles) },
		func() {
			a.roles = roles
			for _, h := range a.live {
				h.stale = true
			}
		})
}

func (a *account) disable() *call {
	if a.disabled {
		return nil
	}
	return a.update(&watchwordv1.User{Id: a.id, Disabled: true}, "disabled", (*watchwordv1.User).GetDisabled,
		func() { a.endAll(); a.disabled = true })
}

func (a *account) enable() *call {
	if !a.disabled {
		return nil
	}
	return a.update(&watchwordv1.User{Id: a.id}, "disabled",
		func(u *watchwordv1.User) bool { return !u.GetDisabled() },
		func() { a.disabled = false })
}

func (a *account) update(u *watchwordv1.User, field string, is func(*watchwordv1.User) bool, then func()) *call {
	return &call{
		make: func(ctx context.Context, d desk) error {
			_, err := d.UpdateUser(d.asAdmin(ctx), &watchwordv1.UpdateUserRequest{User: u, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{field}}})
			return err
		},
		then: then,
		happened: func(ctx context.Context, d desk) (bool, error) {
			resp, err := d.GetUser(d.asAdmin(ctx), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: a.id}})
			return is(resp.GetUser()), err
		},
	}
}

func (a *account) createGuest() *call {
	g := &guest{name: "guest-of-" + a.newName()}
	return &call{
		make: func(ctx context.Context, d desk) error {
			resp, err := d.CreateUser(d.asAdmin(ctx), &watchwordv1.CreateUserRequest{Username: g.name, Password: a.password})
			g.id = resp.GetUser().GetId()
			return err
		},
		then:     func() { a.guests = append(a.guests, g) },
		happened: g.exists,
	}
}

func (a *account) deleteGuest() *call {
	if len(a.guests) == 0 {
		return nil
	}
	g := a.guests[rand.IntN(len(a.guests))]
	if g.deleted {
		return nil
	}
	return &call{
		make: func(ctx context.Context, d desk) error {
			_, err := d.DeleteUser(d.asAdmin(ctx), &watchwordv1.DeleteUserRequest{Id: g.id})
			return err
		},
		then: func() { g.deleted = true },
		happened: func(ctx context.Context, d desk) (bool, error) {
			exists, err := g.exists(ctx, d)
			return !exists, err
		},
	}
}

// exists reports whether the guest exists, and notes the guest's id.
func (g *guest) exists(ctx context.Context, d desk) (bool, error) {
	resp, err := d.GetUser(d.asAdmin(ctx), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Username{Username: g.name}})
	if err == nil {
		g.id = resp.GetUser().GetId()
		return true, nil
	}
	return false, checkRefusal(err, "USER_NOT_FOUND")
}

// check compares the server's state with the account's expected state. check looks at all
// changes since the last check and at a sample of the rest, or at everything.
func (a *account) check(ctx context.Context, d desk, everything bool) error {
	errs := []error{a.settle(ctx, d), a.checkRow(ctx, d)}
	if a.reset || everything {
		if accepted, err := a.passwordIs(ctx, d, a.password); !accepted {
			errs = append(errs, fmt.Errorf("the server refuses the acknowledged password: %w", err))
		}
		a.reset = false
	}
	for _, h := range a.live {
		if err := h.checkLive(ctx, d.client, a.roles); err != nil {
			errs = append(errs, fmt.Errorf("session %s: %w", h.pair.GetSessionId(), err))
		}
	}
	for i, h := range a.ended {
		if i < a.checked && !everything && rand.IntN(10) > 0 {
			continue
		}
		if err := h.checkEnded(ctx, d.client); err != nil {
			errs = append(errs, fmt.Errorf("ended session %s: %w", h.pair.GetSessionId(), err))
		}
	}
	a.checked = len(a.ended)
	errs = append(errs, a.checkGuests(ctx, d, everything))
	return errors.Join(errs...)
}

// settle asks the server if the call without an answer was carried out.
func (a *account) settle(ctx context.Context, d desk) error {
	c := a.unanswered
	a.unanswered = nil
	if c == nil || c.happened == nil {
		return nil
	}
	happened, err := c.happened(ctx, d)
	if err != nil {
		return fmt.Errorf("finding out if the call %q was carried out: %w", c.kind, err)
	}
	if happened {
		c.then()
	}
	return nil
}

func (a *account) checkRow(ctx context.Context, d desk) error {
	resp, err := d.GetUser(d.asAdmin(ctx), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: a.id}})
	if u := resp.GetUser(); err == nil && (u.GetDisabled() != a.disabled || !slices.Equal(u.GetRoles(), a.roles)) {
		err = fmt.Errorf("got user %v, want roles %v, disabled %v", u, a.roles, a.disabled)
	}
	return err
}

func (a *account) checkGuests(ctx context.Context, d desk, everything bool) error {
	for _, g := range a.guests {
		if g.checked && !everything {
			continue
		}
		if exists, err := g.exists(ctx, d); err != nil || exists == g.deleted {
			return fmt.Errorf("guest %s: deleted %v, exists %v, error %v", g.name, g.deleted, exists, err)
		}
		g.checked = g.deleted
	}
	return nil
}
