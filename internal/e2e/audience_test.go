package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// TestAudiences checks the audiences of a login, a refresh and Verify: the first --audience is
// the default, and a token for `watchword` can always be asked for, and is for no other
// audience.
func TestAudiences(t *testing.T) {
	s := serve(t, t.TempDir(), "--audience", "mail", "--audience", "billing")
	c := dial(t, s.grpcAddr)
	wants := func(what string, pair *watchwordv1.TokenPair, want ...string) {
		t.Helper()
		if p, err := c.verify(callCtx(t), pair); err != nil || !slices.Equal(p.GetAudience(), want) {
			t.Errorf("%s is for %q (error %v), want %q", what, p.GetAudience(), err, want)
		}
	}
	plain := c.login(t, "admin", s.admin)
	wants("a login that names no audience", plain, "mail")
	wants("its refresh", c.refresh(t, plain), "mail")
	wide := c.login(t, "admin", s.admin, "billing", "mail")
	wants("a login for both services", wide, "billing", "mail")
	wants("its refresh", c.refresh(t, wide), "billing", "mail")
	admin := c.login(t, "admin", s.admin, "watchword", "watchword")
	wants("a login for administration", admin, "watchword")
	admin = c.refresh(t, admin)
	wants("its refresh", admin, "watchword")

	refresh := func(pair *watchwordv1.TokenPair, audience ...string) error {
		_, err := c.Refresh(callCtx(t), &watchwordv1.RefreshRequest{RefreshToken: pair.GetRefreshToken(), Audience: audience})
		return err
	}
	login := func(audience ...string) error {
		_, err := c.Login(callCtx(t), &watchwordv1.LoginRequest{Username: "admin", Password: s.admin, Audience: audience})
		return err
	}
	for what, err := range map[string]error{
		"a login for administration and a service":    login("watchword", "mail"),
		"a login for a service and administration":    login("mail", "billing", "watchword"),
		"a login for another service":                 login("search"),
		"a refresh beyond the login":                  refresh(plain, "billing"),
		"a refresh of a service for administration":   refresh(wide, "watchword"),
		"a refresh of services with administration":   refresh(wide, "mail", "watchword"),
		"a refresh of administration for a service":   refresh(admin, "mail"),
		"a refresh of administration and for another": refresh(admin, "watchword", "mail"),
	} {
		wantRefusal(t, what, err, "INVALID_REQUEST")
		if got := badField(err); got != "audience" {
			t.Errorf("%s: the field is %q, want audience", what, got)
		}
	}
	wantOK(t, "a refresh of administration that names its audience", refresh(admin, "watchword"))

	for _, test := range []struct {
		pair           *watchwordv1.TokenPair
		audience, want string
	}{
		{admin, "watchword", ""}, {admin, "mail", "AUDIENCE_MISMATCH"}, {admin, "search", "AUDIENCE_MISMATCH"},
		{plain, "mail", ""}, {plain, "watchword", "AUDIENCE_MISMATCH"}, {plain, "billing", "AUDIENCE_MISMATCH"},
	} {
		_, err := c.Verify(callCtx(t), &watchwordv1.VerifyRequest{AccessToken: test.pair.GetAccessToken(), Audience: test.audience})
		if test.want == "" {
			wantOK(t, "Verify for "+test.audience, err)
		} else {
			wantRefusal(t, "Verify for "+test.audience, err, test.want)
		}
	}
	verifier, err := authn.NewVerifier(callCtx(t), c.conn, authn.WithAudience("mail", "billing"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifier.Close() })
	_, err = verifier.Verify(t.Context(), admin.GetAccessToken())
	wantRefusal(t, "a service that is shown a token for administration", err, "AUDIENCE_MISMATCH")
}

// badField returns the field that an INVALID_REQUEST names.
func badField(err error) string {
	for _, d := range status.Convert(err).Details() {
		if b, ok := d.(*errdetails.BadRequest); ok && len(b.GetFieldViolations()) == 1 {
			return b.GetFieldViolations()[0].GetField()
		}
	}
	return ""
}

// TestAdminsTokenOfAService makes every call of an admin with a token that services see. Only
// calls about the admin's own account may succeed.
func TestAdminsTokenOfAService(t *testing.T) {
	s := serve(t, t.TempDir())
	c, password := dial(t, s.grpcAddr), newPassword()
	admin, seen := c.login(t, "admin", s.admin, "watchword"), c.login(t, "admin", s.admin)
	alice := c.create(t, admin, "alice", password)
	hers, administering := c.login(t, "alice", password), c.login(t, "alice", password, "watchword")

	methods := 0
	for _, service := range []grpc.ServiceDesc{
		watchwordv1.UserService_ServiceDesc, watchwordv1.KeyService_ServiceDesc, watchwordv1.AuditService_ServiceDesc,
	} {
		for _, m := range service.Methods {
			method := "/" + service.ServiceName + "/" + m.MethodName
			call := func(pair *watchwordv1.TokenPair) error {
				return c.conn.Invoke(bearer(callCtx(t), pair), method, &watchwordv1.GetKeySetRequest{}, &watchwordv1.GetKeySetResponse{})
			}
			wantRefusal(t, method+", an admin's token for a service", call(seen), "AUDIENCE_MISMATCH")
			wantRefusal(t, method+", a token for a service", call(hers), "AUDIENCE_MISMATCH")
			wantRefusal(t, method+", a token for administration without the role", call(administering), "ROLE_REQUIRED")
			methods++
		}
	}
	if methods != 10 {
		t.Errorf("%d methods of admins, want 10", methods)
	}

	adminID, unknown := subject(t, c, admin), strings.Repeat("A", 16)
	for _, test := range []struct {
		who           string
		by            *watchwordv1.TokenPair
		user, session string
		want          string
	}{
		{"an admin's token for a service, another's", seen, alice.GetId(), hers.GetSessionId(), "AUDIENCE_MISMATCH"},
		{"an admin's token for a service, unknown", seen, unknown, unknown, "AUDIENCE_MISMATCH"},
		{"a user's token for a service, another's", hers, adminID, admin.GetSessionId(), "SESSION_NOT_FOUND"},
		{"a user's token for a service, unknown", hers, unknown, unknown, "SESSION_NOT_FOUND"},
		{"a user's token for administration, another's", administering, adminID, admin.GetSessionId(), "SESSION_NOT_FOUND"},
	} {
		for method, err := range aboutSessions(t, c, test.by, test.user, test.session) {
			wantRefusal(t, test.who+": "+method, err, test.want)
		}
	}
	for who, pair := range map[string]*watchwordv1.TokenPair{"alice": hers, "the admin": admin} {
		_, err := c.verify(callCtx(t), pair)
		wantOK(t, "a session of "+who+" after the refused calls", err)
	}
	for method, err := range aboutSessions(t, c, admin, alice.GetId(), hers.GetSessionId()) {
		wantOK(t, "a token for administration, another's: "+method, err)
	}
	_, err := c.verify(callCtx(t), hers)
	wantRefusal(t, "alice's session after an admin ended it", err, "TOKEN_REVOKED")

	// The record names the admin that tried, and the user concerned.
	eventually(t, runTimeout, "recording the refusals", func() error {
		out := wantExit(t, 0, cli(t, s.dir, "", "audit", "--datastore-uri", database(s.dir), "--user", "alice", "--type", "call", "--json"))
		if !strings.Contains(out, `"reason":"AUDIENCE_MISMATCH","actor_id":"`+adminID) {
			return fmt.Errorf("the record has no refusal of the admin: %s", out)
		}
		return nil
	})

	// One's own sessions and password need no more than a valid token.
	other := c.login(t, "admin", s.admin)
	for method, err := range aboutSessions(t, c, seen, "", other.GetSessionId()) {
		wantOK(t, "an admin's token for a service, the own sessions: "+method, err)
	}
	next, changed := c.login(t, "admin", s.admin), newPassword()
	resp, err := c.ChangePassword(bearer(callCtx(t), next), &watchwordv1.ChangePasswordRequest{CurrentPassword: s.admin, NewPassword: changed})
	wantOK(t, "the own password", err)
	_, err = c.ListUsers(bearer(callCtx(t), noteTokens(resp.GetTokens())), &watchwordv1.ListUsersRequest{})
	wantRefusal(t, "the tokens after a change of password have the audience of before", err, "AUDIENCE_MISMATCH")
	next = c.login(t, "admin", changed, "watchword")
	resp, err = c.ChangePassword(bearer(callCtx(t), next), &watchwordv1.ChangePasswordRequest{CurrentPassword: changed, NewPassword: newPassword()})
	wantOK(t, "the own password, with a token for administration", err)
	_, err = c.ListUsers(bearer(callCtx(t), noteTokens(resp.GetTokens())), &watchwordv1.ListUsersRequest{})
	wantOK(t, "administration after a change of password", err)
}

// aboutSessions makes every call about sessions, RevokeUserSessions last.
func aboutSessions(t *testing.T, c *client, by *watchwordv1.TokenPair, userID, sessionID string) map[string]error {
	t.Helper()
	ctx := bearer(callCtx(t), by)
	_, list := c.ListSessions(ctx, &watchwordv1.ListSessionsRequest{UserId: userID})
	_, revoke := c.RevokeSession(ctx, &watchwordv1.RevokeSessionRequest{SessionId: sessionID})
	_, all := c.RevokeUserSessions(ctx, &watchwordv1.RevokeUserSessionsRequest{UserId: userID})
	return map[string]error{"ListSessions": list, "RevokeSession": revoke, "RevokeUserSessions": all}
}

// subject returns the id of the user of an access token.
func subject(t *testing.T, c *client, pair *watchwordv1.TokenPair) string {
	t.Helper()
	p, err := c.verify(callCtx(t), pair)
	if err != nil {
		t.Fatal(err)
	}
	return p.GetSubject()
}

// TestAudienceAtTheCommandLine names audiences in flags: none is `watchword` at serve, and
// login and verify take `watchword`.
func TestAudienceAtTheCommandLine(t *testing.T) {
	dir := t.TempDir()
	r := cli(t, dir, "", "serve", "--audience", "internal,watchword", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--datastore-uri", database(dir))
	if r.code != 2 || !strings.Contains(r.stderr, "--audience: watchword is the audience for administration") {
		t.Errorf("serve --audience watchword: %v, want status 2 and the reason", r)
	}
	s := serve(t, t.TempDir())
	addr := []string{"--plaintext", "--addr", s.grpcAddr}
	login := func(code int, audience ...string) string {
		t.Helper()
		return wantExit(t, code, cli(t, s.dir, s.admin+"\n", slices.Concat([]string{"login", "admin", "--print", "--password-stdin"}, addr, audience)...))
	}
	for _, test := range []struct {
		flags []string
		want  string
	}{{nil, "internal"}, {[]string{"--audience", "watchword"}, "watchword"}} {
		pair := &watchwordv1.TokenPair{}
		if err := protojson.Unmarshal([]byte(login(0, test.flags...)), pair); err != nil {
			t.Fatal(err)
		}
		noteTokens(pair)
		for audience, code := range map[string]int{"internal": 1, "watchword": 1} {
			if audience == test.want {
				code = 0
			}
			wantExit(t, code, cli(t, s.dir, pair.GetAccessToken(), slices.Concat([]string{"verify", "--audience", audience}, addr)...))
		}
	}
	login(2, "--audience", "watchword,internal")
}
