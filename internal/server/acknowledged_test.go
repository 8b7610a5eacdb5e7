package server_test

import (
	"fmt"
	"testing"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// rounds is the number of times that each acknowledgement is tested. The test waits for nothing
// and tries nothing twice, so the test fails if one acknowledgement comes too early.
const rounds = 200

func TestLogoutIsKnownAtOnce(t *testing.T) {
	h := shared(t)
	a := h.make(t)
	logout := func(refreshToken string) {
		t.Helper()
		if _, err := h.auth.Logout(t.Context(), &watchwordv1.LogoutRequest{RefreshToken: refreshToken}); err != nil {
			t.Fatal(err)
		}
	}
	// A login costs the time of a hash, so most rounds use a session that was inserted into the
	// database.
	mac, mint, ids := keyMaterial(t, h)[macKey], h.minter(t, a), h.insertSessions(t, a.id, rounds)
	for i, id := range ids {
		tokens := &watchwordv1.TokenPair{AccessToken: mint(id), RefreshToken: refreshToken(t, mac, id, 1)}
		if i%10 == 0 {
			h.relogin(t, a)
			tokens = a.TokenPair
		}
		spent := tokens.GetRefreshToken()
		if i%4 == 0 { // a spent refresh token ends the session in the same way as the newest token
			resp, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: spent})
			if err != nil {
				t.Fatal(err)
			}
			tokens = resp.GetTokens()
		}
		wants(t, "before", h.verify(t, tokens.GetAccessToken()), "ok")
		for range 2 { // the second call has nothing left to do
			logout(spent)
			wants(t, "Verify", h.verify(t, tokens.GetAccessToken()), "TOKEN_REVOKED")
		}
		logout(tokens.GetRefreshToken())
		wants(t, "Refresh", h.refresh(t, tokens.GetRefreshToken()), "SESSION_REVOKED")
		_, err := h.sessions.ListSessions(bearing(t.Context(), tokens.GetAccessToken()), &watchwordv1.ListSessionsRequest{})
		refusedBy(t, err, "TOKEN_REVOKED", "")
	}
}

// minter makes access tokens of sessions that were inserted without a login.
func (h *harness) minter(t *testing.T, a *account) func(session string) string {
	t.Helper()
	key, base := h.signer(t), h.claims(t, a)
	return func(session string) string {
		c := *base
		c.SessionID = session
		return sign(t, key, &c)
	}
}

func TestRevokeSessionIsKnownAtOnce(t *testing.T) {
	h := shared(t)
	a := h.make(t)
	mint, ids := h.minter(t, a), h.insertSessions(t, a.id, rounds)
	for i, id := range ids {
		by := a
		if i%2 == 0 {
			by = h.admin
		}
		raw := mint(id)
		wants(t, "before", h.verify(t, raw), "ok")
		for range 2 { // the second call has nothing left to do
			if _, err := h.sessions.RevokeSession(by.as(t.Context()), &watchwordv1.RevokeSessionRequest{SessionId: id}); err != nil {
				t.Fatal(err)
			}
			wants(t, "Verify", h.verify(t, raw), "TOKEN_REVOKED")
		}
	}
	wants(t, "the session that did it", h.verify(t, a.GetAccessToken()), "ok")
}

func TestRevokeUserSessionsIsKnownAtOnce(t *testing.T) {
	h := shared(t)
	a := h.make(t)
	for range rounds {
		// The version of the user's rights changes in each round, so the claims are read again.
		id := h.insertSessions(t, a.id, 1)[0]
		mint := h.minterOf(t, a)
		raw := mint(id)
		wants(t, "before", h.verify(t, raw), "ok")
		if _, err := h.sessions.RevokeUserSessions(h.admin.as(t.Context()), &watchwordv1.RevokeUserSessionsRequest{UserId: a.id}); err != nil {
			t.Fatal(err)
		}
		wants(t, "Verify", h.verify(t, raw), "TOKEN_REVOKED")
	}
	wants(t, "the first one", h.verify(t, a.GetAccessToken()), "TOKEN_REVOKED")
	wants(t, "the first one's refresh", h.refresh(t, a.GetRefreshToken()), "SESSION_REVOKED")

	// A user ends all sessions of the user, also the session of the call.
	h.relogin(t, a)
	if _, err := h.sessions.RevokeUserSessions(a.as(t.Context()), &watchwordv1.RevokeUserSessionsRequest{}); err != nil {
		t.Fatal(err)
	}
	wants(t, "one's own", h.verify(t, a.GetAccessToken()), "TOKEN_REVOKED")
	_, err := h.sessions.RevokeUserSessions(a.as(t.Context()), &watchwordv1.RevokeUserSessionsRequest{})
	refusedBy(t, err, "TOKEN_REVOKED", "")
}

// minterOf is minter for an account none of whose own tokens is good.
func (h *harness) minterOf(t *testing.T, a *account) func(session string) string {
	t.Helper()
	key, base := h.signer(t), h.claims(t, h.admin)
	base.Subject, base.Username, base.Roles, base.Version = a.id, a.name, nil, h.version(t, a.id)
	base.IssuedAt, base.ExpiresAt = time.Now(), time.Now().Add(time.Minute)
	return func(session string) string {
		c := *base
		c.SessionID = session
		return sign(t, key, &c)
	}
}

func TestUpdateUserIsKnownAtOnce(t *testing.T) {
	h := shared(t)
	a := h.make(t)
	update := func(u *watchwordv1.User) {
		t.Helper()
		u.Id = a.id
		if _, err := h.users.UpdateUser(h.admin.as(t.Context()), &watchwordv1.UpdateUserRequest{User: u}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range rounds {
		change := &watchwordv1.User{Roles: []string{fmt.Sprint("role", i)}}
		if i%2 == 0 {
			a.name = fmt.Sprintf("renamed-%d", i)
			change = &watchwordv1.User{Username: a.name}
		}
		wants(t, "before", h.verify(t, a.GetAccessToken()), "ok")
		for range 2 { // the second call has nothing left to do
			update(change)
			wants(t, "Verify", h.verify(t, a.GetAccessToken()), "TOKEN_STALE")
		}
		_, err := h.sessions.ListSessions(a.as(t.Context()), &watchwordv1.ListSessionsRequest{})
		refusedBy(t, err, "TOKEN_STALE", "")
		resp, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: a.GetRefreshToken()})
		if err != nil {
			t.Fatal(err)
		}
		a.TokenPair = resp.GetTokens()
	}
	verified, err := h.auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: a.GetAccessToken()})
	if p := verified.GetPrincipal(); err != nil || p.GetUsername() != a.name || len(p.GetRoles()) != 1 || p.GetRoles()[0] != fmt.Sprint("role", rounds-1) {
		t.Errorf("%v %v", p, err)
	}
	for range 2 {
		update(&watchwordv1.User{Disabled: true})
		wants(t, "disabled", h.verify(t, a.GetAccessToken()), "TOKEN_REVOKED")
		wants(t, "disabled", h.refresh(t, a.GetRefreshToken()), "SESSION_REVOKED")
	}
	_, err = h.users.UpdateUser(h.admin.as(t.Context()), &watchwordv1.UpdateUserRequest{
		User: &watchwordv1.User{Id: a.id}, UpdateMask: paths("disabled")})
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "enabled, the token of before", h.verify(t, a.GetAccessToken()), "TOKEN_REVOKED")
	wants(t, "enabled, the session of before", h.refresh(t, a.GetRefreshToken()), "SESSION_REVOKED")
	h.relogin(t, a)
	wants(t, "enabled, a new one", h.verify(t, a.GetAccessToken()), "ok")
}

// A session that was revoked stays so when rights change afterwards: revoked
// comes before stale.
func TestRevokedComesBeforeStale(t *testing.T) {
	h := shared(t)
	a := h.make(t)
	other := *a
	h.relogin(t, a)
	if _, err := h.auth.Logout(t.Context(), &watchwordv1.LogoutRequest{RefreshToken: other.GetRefreshToken()}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.users.UpdateUser(h.admin.as(t.Context()), &watchwordv1.UpdateUserRequest{User: &watchwordv1.User{Id: a.id, Roles: []string{"x"}}}); err != nil {
		t.Fatal(err)
	}
	wants(t, "logged out and stale", h.verify(t, other.GetAccessToken()), "TOKEN_REVOKED")
	wants(t, "stale", h.verify(t, a.GetAccessToken()), "TOKEN_STALE")
	if _, err := h.users.SetPassword(h.admin.as(t.Context()), &watchwordv1.SetPasswordRequest{Id: a.id, Password: "yet another password"}); err != nil {
		t.Fatal(err)
	}
	wants(t, "stale, then revoked", h.verify(t, a.GetAccessToken()), "TOKEN_REVOKED")
	wants(t, "its refresh", h.refresh(t, a.GetRefreshToken()), "SESSION_REVOKED")
}

// Sessions ended by a new password, by deleting the user, or by a reused refresh token are
// refused at once too.
func TestOtherEndsAreKnownAtOnce(t *testing.T) {
	h := shared(t)
	a := h.make(t)
	for i := range 5 {
		before := a.TokenPair
		next := fmt.Sprint("password number ", i)
		resp, err := h.auth.ChangePassword(a.as(t.Context()), &watchwordv1.ChangePasswordRequest{CurrentPassword: a.password, NewPassword: next})
		if err != nil {
			t.Fatal(err)
		}
		a.TokenPair, a.password = resp.GetTokens(), next
		wants(t, "changed", h.verify(t, before.GetAccessToken()), "TOKEN_REVOKED")
		wants(t, "changed", h.refresh(t, before.GetRefreshToken()), "SESSION_REVOKED")
		wants(t, "the new session", h.verify(t, a.GetAccessToken()), "ok")
	}
	for range 5 {
		if _, err := h.users.SetPassword(h.admin.as(t.Context()), &watchwordv1.SetPasswordRequest{Id: a.id, Password: a.password}); err != nil {
			t.Fatal(err)
		}
		wants(t, "set, to the same", h.verify(t, a.GetAccessToken()), "TOKEN_REVOKED")
		wants(t, "set, to the same", h.refresh(t, a.GetRefreshToken()), "SESSION_REVOKED")
		h.relogin(t, a)
	}
	if _, err := h.users.DeleteUser(h.admin.as(t.Context()), &watchwordv1.DeleteUserRequest{Id: a.id}); err != nil {
		t.Fatal(err)
	}
	wants(t, "deleted", h.verify(t, a.GetAccessToken()), "TOKEN_REVOKED")
	wants(t, "deleted", h.refresh(t, a.GetRefreshToken()), "SESSION_REVOKED")
	wants(t, "deleted", outcome(h.login(a)), "INVALID_CREDENTIALS")
	_, err := h.users.DeleteUser(h.admin.as(t.Context()), &watchwordv1.DeleteUserRequest{Id: a.id})
	refusedBy(t, err, "USER_NOT_FOUND", "")

	// The name of the deleted user is free, and another user gets the name.
	again := &account{name: a.name, password: a.password}
	if _, err := h.users.CreateUser(h.admin.as(t.Context()), &watchwordv1.CreateUserRequest{Username: a.name, Password: a.password}); err != nil {
		t.Fatal(err)
	}
	h.relogin(t, again)
	if again.id == a.id {
		t.Error("an id was used again")
	}
}

// The setting --refresh-repeats reaches the sessions, and repeats are in the security
// record.
func TestRepeatsEndASessionAndAreRecorded(t *testing.T) {
	const most = 3
	h := start(t, func(c *server.Config) { c.RefreshRepeats, c.RefreshGrace = most, time.Hour })
	h.relogin(t, h.admin)
	token, sessionID := h.admin.GetRefreshToken(), h.admin.GetSessionId()
	for range most {
		resp, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: token})
		if err != nil {
			t.Fatal(err)
		}
		wants(t, "a repeat", h.refresh(t, token), "ok")
		token = resp.GetTokens().GetRefreshToken()
	}
	wants(t, "a generation more", h.refresh(t, token), "ok")
	wants(t, "its repeat", h.refresh(t, token), "REFRESH_TOKEN_REUSED")
	wants(t, "afterwards", h.refresh(t, token), "SESSION_REVOKED")
	h.relogin(t, h.admin)
	var events []*watchwordv1.Event
	eventually(t, func() bool { // counts are written down each second
		resp, err := h.audit.ListEvents(h.admin.as(t.Context()), &watchwordv1.ListEventsRequest{SessionId: sessionID, Type: "refresh.repeated"})
		if err != nil {
			t.Fatal(err)
		}
		events = resp.GetEvents()
		return len(events) == 1 && events[0].GetSuccess() && events[0].GetCount() == most && events[0].GetUserName() == "admin"
	}, func() string { return fmt.Sprintf("in the record: %v", events) })
}

// A client that presents a token spent long before ends the session, and this server's
// verifier has the end before the client has its answer.
func TestReuseIsKnownAtOnce(t *testing.T) {
	h := start(t, withGrace(time.Millisecond))
	for range 20 {
		h.relogin(t, h.admin)
		first := h.admin.GetRefreshToken()
		var last *watchwordv1.TokenPair
		for next := first; ; next = last.GetRefreshToken() {
			time.Sleep(3 * time.Millisecond) // longer than two grace periods
			resp, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: next})
			if err != nil {
				t.Fatal(err)
			}
			spent := last != nil
			if last = resp.GetTokens(); spent {
				break
			}
		}
		time.Sleep(3 * time.Millisecond)
		wants(t, "reuse", h.refresh(t, first), "REFRESH_TOKEN_REUSED")
		wants(t, "its access token", h.verify(t, last.GetAccessToken()), "TOKEN_REVOKED")
		wants(t, "reuse again", h.refresh(t, first), "SESSION_REVOKED")
		wants(t, "the newest", h.refresh(t, last.GetRefreshToken()), "SESSION_REVOKED")
	}
}
