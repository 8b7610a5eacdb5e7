package e2e

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// story holds a server, a downstream service, and the tokens of an admin.
type story struct {
	*client
	server *server
	notes  *grpc.ClientConn
	admin  *watchwordv1.TokenPair
}

func TestStoryWithGoClient(t *testing.T) {
	s := serve(t, t.TempDir())
	st := story{dial(t, s.grpcAddr), s, dialConn(t, serveNotes(t, s), insecure.NewCredentials()), nil}
	st.admin = st.login(t, "admin", s.admin, "watchword")
	t.Run("login, refresh, logout", st.session)
	t.Run("change of roles", st.changeRoles)
	t.Run("change of the password", st.newPassword)
	t.Run("disable and enable a user", st.disabled)
	t.Run("delete a user", st.deleted)
}

// awaitDownstream waits until notes refuses an access token for a reason, and returns the
// time until then.
func (st story) awaitDownstream(t *testing.T, pair *watchwordv1.TokenPair, reason string) time.Duration {
	t.Helper()
	return eventually(t, propagation, "notes refusing with "+reason, func() error {
		return checkRefusal(listNotes(callCtx(t), st.notes, pair), reason)
	})
}

func (st story) wantPrincipal(t *testing.T, pair *watchwordv1.TokenPair, user *watchwordv1.User, roles ...string) {
	t.Helper()
	p, err := st.verify(callCtx(t), pair)
	if err != nil {
		t.Errorf("verify: %v", err)
	} else if p.GetSubject() != user.GetId() || p.GetSessionId() != pair.GetSessionId() || !slices.Equal(p.GetRoles(), roles) {
		t.Errorf("got principal %v, want user %s, session %s, roles %v", p, user.GetId(), pair.GetSessionId(), roles)
	}
}

// wantEnded checks that Verify, Refresh, a guarded method and notes refuse a session's
// tokens.
func (st story) wantEnded(t *testing.T, pair *watchwordv1.TokenPair) {
	t.Helper()
	_, err := st.verify(callCtx(t), pair)
	wantRefusal(t, "verify", err, "TOKEN_REVOKED")
	_, err = st.tryRefresh(callCtx(t), pair)
	wantRefusal(t, "refresh", err, "SESSION_REVOKED")
	_, err = st.ListSessions(bearer(callCtx(t), pair), &watchwordv1.ListSessionsRequest{})
	wantRefusal(t, "ListSessions", err, "TOKEN_REVOKED")
	st.awaitDownstream(t, pair, "TOKEN_REVOKED")
}

func (st story) session(t *testing.T) {
	password := newPassword()
	alice := st.create(t, st.admin, "alice", password, "writer")
	_, err := st.CreateUser(bearer(callCtx(t), st.admin), &watchwordv1.CreateUserRequest{Username: "ALICE", Password: password})
	wantRefusal(t, "creating the same name in capitals", err, "USER_EXISTS")

	first, other := st.login(t, "alice", password), st.login(t, "alice", password)
	st.wantPrincipal(t, first, alice, "writer")
	_, err = st.ListUsers(bearer(callCtx(t), first), &watchwordv1.ListUsersRequest{})
	wantRefusal(t, "alice lists users with a token for other services", err, "AUDIENCE_MISMATCH")
	_, err = st.ListUsers(bearer(callCtx(t), st.login(t, "alice", password, "watchword")), &watchwordv1.ListUsersRequest{})
	wantRefusal(t, "alice lists users", err, "ROLE_REQUIRED")
	wantRefusal(t, "notes without a token", st.notes.Invoke(callCtx(t), "/notes.v1.NotesService/ListNotes",
		&watchwordv1.GetKeySetRequest{}, &watchwordv1.GetKeySetRequest{}), "TOKEN_MISSING")
	wantOK(t, "alice adds a note", addNote(callCtx(t), st.notes, first, "tea at four"))

	second := st.refresh(t, first)
	if again := st.refresh(t, first); again.GetRefreshToken() != second.GetRefreshToken() {
		t.Error("a second refresh with the same token within the grace returned another refresh token")
	}
	st.wantPrincipal(t, first, alice, "writer") // a refresh does not revoke older access tokens
	wantOK(t, "notes before the logout", listNotes(callCtx(t), st.notes, second))
	wantOK(t, "logout by a spent token", st.logout(callCtx(t), first))
	t.Logf("notes knew of the logout within %v", st.awaitDownstream(t, second, "TOKEN_REVOKED"))
	wantOK(t, "second logout", st.logout(callCtx(t), second))
	st.wantEnded(t, first)
	st.wantEnded(t, second)
	st.wantPrincipal(t, other, alice, "writer") // alice's other session goes on
	wantOK(t, "notes in alice's other session", listNotes(callCtx(t), st.notes, other))
}

func (st story) changeRoles(t *testing.T) {
	password := newPassword()
	bob := st.create(t, st.admin, "bob", password)
	before := st.login(t, "bob", password)
	wantRefusal(t, "bob adds a note without the role", addNote(callCtx(t), st.notes, before, "me too"), "ROLE_REQUIRED")

	_, err := st.UpdateUser(bearer(callCtx(t), st.admin), &watchwordv1.UpdateUserRequest{
		User: &watchwordv1.User{Id: bob.GetId(), Roles: []string{"writer"}},
	})
	wantOK(t, "giving bob a role", err)
	_, err = st.verify(callCtx(t), before)
	wantRefusal(t, "verify after the roles changed", err, "TOKEN_STALE")
	st.awaitDownstream(t, before, "TOKEN_STALE")

	after := st.refresh(t, before)
	st.wantPrincipal(t, after, bob, "writer")
	wantOK(t, "bob adds a note with the role", addNote(callCtx(t), st.notes, after, "me too"))
}

func (st story) newPassword(t *testing.T) {
	old, changed, set := newPassword(), newPassword(), newPassword()
	carol := st.create(t, st.admin, "carol", old)
	first, second := st.login(t, "carol", old), st.login(t, "carol", old)

	_, err := st.ChangePassword(bearer(callCtx(t), first), &watchwordv1.ChangePasswordRequest{CurrentPassword: changed, NewPassword: changed})
	wantRefusal(t, "change with a wrong current password", err, "INVALID_CREDENTIALS")
	_, err = st.ChangePassword(bearer(callCtx(t), first), &watchwordv1.ChangePasswordRequest{CurrentPassword: old, NewPassword: "carol"})
	wantRefusal(t, "change to a weak password", err, "PASSWORD_TOO_WEAK")
	st.wantPrincipal(t, first, carol) // a refused change leaves the session

	resp, err := st.ChangePassword(bearer(callCtx(t), first), &watchwordv1.ChangePasswordRequest{CurrentPassword: old, NewPassword: changed})
	if err != nil {
		t.Fatalf("change with the right password: %v", err)
	}
	third := noteTokens(resp.GetTokens())
	st.wantEnded(t, first)
	st.wantEnded(t, second)
	st.wantPrincipal(t, third, carol)
	wantOK(t, "notes in the new session", listNotes(callCtx(t), st.notes, third))
	wantRefusal(t, "login with the old password", st.tryLogin(callCtx(t), "carol", old), "INVALID_CREDENTIALS")
	wantOK(t, "login with the new password", st.tryLogin(callCtx(t), "carol", changed))

	_, err = st.SetPassword(bearer(callCtx(t), st.admin), &watchwordv1.SetPasswordRequest{Id: carol.GetId(), Password: set})
	wantOK(t, "the admin sets a password", err)
	st.wantEnded(t, third)
	wantRefusal(t, "login with the password from before SetPassword", st.tryLogin(callCtx(t), "carol", changed), "INVALID_CREDENTIALS")
	st.wantPrincipal(t, st.login(t, "carol", set), carol)
}

func (st story) disabled(t *testing.T) {
	password := newPassword()
	dave := st.create(t, st.admin, "dave", password)
	before := st.login(t, "dave", password)
	set := func(disabled bool) {
		t.Helper()
		resp, err := st.UpdateUser(bearer(callCtx(t), st.admin), &watchwordv1.UpdateUserRequest{
			User:       &watchwordv1.User{Id: dave.GetId(), Disabled: disabled},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"disabled"}},
		})
		if err != nil || resp.GetUser().GetDisabled() != disabled {
			t.Errorf("setting disabled to %v: got user %v, error %v", disabled, resp.GetUser(), err)
		}
	}

	set(true)
	st.wantEnded(t, before)
	wantRefusal(t, "login with the right password", st.tryLogin(callCtx(t), "dave", password), "USER_DISABLED")
	wantRefusal(t, "login with a wrong password", st.tryLogin(callCtx(t), "dave", newPassword()), "INVALID_CREDENTIALS")

	set(false)
	st.wantEnded(t, before)
	after := st.login(t, "dave", password)
	st.wantPrincipal(t, after, dave)
	wantOK(t, "notes in the new session", listNotes(callCtx(t), st.notes, after))
	st.wantEnded(t, before)
}

func (st story) deleted(t *testing.T) {
	password := newPassword()
	erin := st.create(t, st.admin, "erin", password)
	before := st.login(t, "erin", password)
	_, err := st.DeleteUser(bearer(callCtx(t), st.admin), &watchwordv1.DeleteUserRequest{Id: erin.GetId()})
	wantOK(t, "deleting erin", err)
	st.wantEnded(t, before)
	wantRefusal(t, "login", st.tryLogin(callCtx(t), "erin", password), "INVALID_CREDENTIALS")
	_, err = st.GetUser(bearer(callCtx(t), st.admin), &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: erin.GetId()}})
	wantRefusal(t, "looking erin up", err, "USER_NOT_FOUND")

	namesake := st.create(t, st.admin, "erin", password)
	if namesake.GetId() == erin.GetId() {
		t.Error("a new user got the id of a deleted user")
	}
	st.wantEnded(t, before)
}

func TestNotesClient(t *testing.T) {
	s := serve(t, t.TempDir())
	notes := serveNotes(t, s)
	c, writer, reader := dial(t, s.grpcAddr), newPassword(), newPassword()
	admin := c.login(t, "admin", s.admin, "watchword")
	c.create(t, admin, "writer", writer, "writer")
	c.create(t, admin, "reader", reader)

	for _, test := range []struct {
		name, username, password string
		code                     int
		want                     []string // the words expected on standard output
	}{
		{"writer", "writer", writer, 0, []string{"add a note: ok", "list notes after the logout: refused with TOKEN_REVOKED"}},
		{"reader", "reader", reader, 0, []string{"add a note: refused with ROLE_REQUIRED", "list notes after the logout: refused with TOKEN_REVOKED"}},
		{"wrong password", "writer", reader, 1, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(program(t, "notes-client", buildNotes), "--addr", notes, "--auth-addr", s.grpcAddr, "--username", test.username)
			cmd.Env, cmd.Stdin = environment(), strings.NewReader(test.password+"\n")
			r := run(t, cmd)
			if r.code != test.code {
				t.Errorf("got %v, want status %d", r, test.code)
			}
			for _, line := range test.want {
				if !strings.Contains(r.stdout, line) {
					t.Errorf("standard output lacks the line %q: %v", line, r)
				}
			}
			if found := leaks(r.stdout + r.stderr); len(found) > 0 {
				t.Errorf("notes-client prints secrets: %q", found)
			}
			t.Log(r.stdout)
		})
	}
}
