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

// desk is where an account's calls go: a server, and an admin's token.
type desk struct {
	*client
	admin *watchwordv1.TokenPair
}

func (d desk) asAdmin(ctx context.Context) context.Context { return bearer(ctx, d.admin) }

// held is what a client holds of a session.
type held struct {
	pair   *watchwordv1.TokenPair // the newest that it received
	before *watchwordv1.TokenPair // the one before; nil: none
	stale  bool                   // rights have changed since pair
}

// refresh goes on with the newest token, or, as one does who got no answer,
// with the one before it.
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

// ended asks whether a session has ended, by refreshing it.
func (h *held) ended(ctx context.Context, c *client) (bool, error) {
	err := h.refresh(ctx, c, false)
	if err == nil {
		return false, nil
	}
	return true, checkRefusal(err, "SESSION_REVOKED")
}

// checkLive goes on with a session that nobody has ended.
func (h *held) checkLive(ctx context.Context, c *client, roles []string) error {
	_, err := c.verify(ctx, h.pair)
	if h.stale {
		err = checkRefusal(err, "TOKEN_STALE")
	}
	if err != nil {
		return fmt.Errorf("access token from before the kill: %w", err)
	}
	if err := h.refresh(ctx, c, rand.IntN(3) == 0); err != nil {
		return fmt.Errorf("cannot go on: %w", err)
	}
	principal, err := c.verify(ctx, h.pair)
	if err == nil && !slices.Equal(principal.GetRoles(), roles) {
		err = fmt.Errorf("the new access token has roles %v, want %v", principal.GetRoles(), roles)
	}
	return err
}

// checkEnded looks at a session whose end was acknowledged.
func (h *held) checkEnded(ctx context.Context, c *client) error {
	_, refreshed := c.tryRefresh(ctx, h.pair)
	_, verified := c.verify(ctx, h.pair)
	return errors.Join(checkRefusal(refreshed, "SESSION_REVOKED"), checkRefusal(verified, "TOKEN_REVOKED"))
}

// account is a user, all of whose calls are made one after the other. So when
// the server is killed one of them at most is without an answer, and everything
// else about the user is known.
type account struct {
	id, name string
	password string
	roles    []string
	disabled bool
	live     []*held
	ended    []*held
	guests   []*guest

	asked      int   // so many of ended have been looked at
	reset      bool  // the password was changed since it was last used
	names      int   // of guests and roles, given out so far
	unanswered *call // when the server was killed
}

// guest is a user made by an account's worker, to be made and deleted.
type guest struct {
	name, id string
	deleted  bool
	asked    bool // since it was deleted
}

// call is something that an account does.
type call struct {
	kind string
	make func(ctx context.Context, d desk) error
	// then notes what an answered call has changed.
	then func()
	// happened asks the next server whether an unanswered call was carried
	// out; nil where nothing but the call's own answer depends on it.
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

// fresh makes a name that was not used yet.
func (a *account) fresh() string {
	a.names++
	return fmt.Sprintf("%s-%d", a.name, a.names)
}

// calls are what an account chooses from. They are nil where there is nothing
// to do. Passwords are hashed one at a time, about twenty in a second: so the
// weights see to it that most accounts are not waiting for one.
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

// next chooses a call at random, and every second time the preferred one, if any.
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

// session picks one that lives.
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
				return fmt.Errorf("again: %v, and the newest token stays: %v", again, !again)
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
			return d.logout(ctx, h.before) // any authentic one will do
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
		happened: func(ctx context.Context, d desk) (bool, error) { return a.opens(ctx, d, next) },
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
			if pair.GetRefreshToken() != "" { // else the answer was lost
				a.live = append(a.live, &held{pair: pair})
			}
		},
		happened: func(ctx context.Context, d desk) (bool, error) { return a.opens(ctx, d, next) },
	}
}

// opens reports whether a password is the account's.
func (a *account) opens(ctx context.Context, d desk, password string) (bool, error) {
	err := d.tryLogin(ctx, a.name, password)
	switch {
	case err == nil && !a.disabled, a.disabled && checkRefusal(err, "USER_DISABLED") == nil:
		return true, nil
	default:
		return false, checkRefusal(err, "INVALID_CREDENTIALS")
	}
}

func (a *account) changeRoles() *call {
	roles := []string{a.fresh()}
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
	g := &guest{name: "guest-of-" + a.fresh()}
	return &call{
		make: func(ctx context.Context, d desk) error {
			resp, err := d.CreateUser(d.asAdmin(ctx), &watchwordv1.CreateUserRequest{Username: g.name, Password: a.password})
			g.id = resp.GetUser().GetId()
			return err
		},
		then:     func() { a.guests = append(a.guests, g) },
		happened: g.there,
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
			there, err := g.there(ctx, d)
			return !there, err
		},
	}
}

// there reports whether a guest exists, and notes the id.
func (g *guest) there(ctx context.Context, d desk) (bool, error) {
	resp, err := d.GetUser(d.asAdmin(ctx), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Username{Username: g.name}})
	if err == nil {
		g.id = resp.GetUser().GetId()
		return true, nil
	}
	return false, checkRefusal(err, "USER_NOT_FOUND")
}

// check asks a new server for what was acknowledged: for all that has changed
// since the last time, and for a sample of the rest, or for everything.
func (a *account) check(ctx context.Context, d desk, everything bool) error {
	errs := []error{a.settle(ctx, d), a.checkRow(ctx, d)}
	if a.reset || everything {
		if opens, err := a.opens(ctx, d, a.password); !opens {
			errs = append(errs, fmt.Errorf("the acknowledged password is refused: %w", err))
		}
		a.reset = false
	}
	for _, h := range a.live {
		if err := h.checkLive(ctx, d.client, a.roles); err != nil {
			errs = append(errs, fmt.Errorf("session %s: %w", h.pair.GetSessionId(), err))
		}
	}
	for i, h := range a.ended {
		if i < a.asked && !everything && rand.IntN(10) > 0 {
			continue
		}
		if err := h.checkEnded(ctx, d.client); err != nil {
			errs = append(errs, fmt.Errorf("session %s, which has ended: %w", h.pair.GetSessionId(), err))
		}
	}
	a.asked = len(a.ended)
	errs = append(errs, a.checkGuests(ctx, d, everything))
	return errors.Join(errs...)
}

// settle finds out what became of the call that had no answer.
func (a *account) settle(ctx context.Context, d desk) error {
	c := a.unanswered
	a.unanswered = nil
	if c == nil || c.happened == nil {
		return nil
	}
	happened, err := c.happened(ctx, d)
	if err != nil {
		return fmt.Errorf("what became of %q: %w", c.kind, err)
	}
	if happened {
		c.then()
	}
	return nil
}

func (a *account) checkRow(ctx context.Context, d desk) error {
	resp, err := d.GetUser(d.asAdmin(ctx), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: a.id}})
	if u := resp.GetUser(); err == nil && (u.GetDisabled() != a.disabled || !slices.Equal(u.GetRoles(), a.roles)) {
		err = fmt.Errorf("the user is %v, want roles %v, disabled %v", u, a.roles, a.disabled)
	}
	return err
}

func (a *account) checkGuests(ctx context.Context, d desk, everything bool) error {
	for _, g := range a.guests {
		if g.asked && !everything {
			continue
		}
		if there, err := g.there(ctx, d); err != nil || there == g.deleted {
			return fmt.Errorf("%s, deleted: %v, is there: %v, %v", g.name, g.deleted, there, err)
		}
		g.asked = g.deleted
	}
	return nil
}
