package server_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/server"
)

// events lists the security record as an admin, the oldest first.
func (h *harness) events(t *testing.T, filter *watchwordv1.ListEventsRequest) (events []*watchwordv1.Event) {
	t.Helper()
	for {
		resp, err := h.audit.ListEvents(h.admin.as(t.Context()), filter)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, resp.GetEvents()...)
		if filter.PageToken = resp.GetNextPageToken(); filter.PageToken == "" {
			slices.Reverse(events)
			return events
		}
	}
}

// eventually calls is again and again until is returns true, for 30 seconds at most. says
// returns the error text.
func eventually(t *testing.T, is func() bool, says func() string) {
	t.Helper()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(30 * time.Second); !is(); <-poll.C {
		if time.Now().After(deadline) {
			t.Fatal(says())
		}
	}
}

func line(e *watchwordv1.Event) string {
	outcome := "ok"
	if !e.GetSuccess() {
		outcome = e.GetReason()
	}
	return fmt.Sprintf("%s %s by=%s to=%s session=%s kid=%s from=%s ×%d %s", e.GetType(), outcome, both(e.GetActorName(), e.GetActorId()),
		both(e.GetUserName(), e.GetUserId()), e.GetSessionId(), e.GetKid(), e.GetSource(), e.GetCount(), e.GetDetail())
}

// both is a user's name and id, or nothing.
func both(name, id string) string {
	if name+id == "" {
		return ""
	}
	return name + "/" + id
}

func (a *account) both() string { return both(a.name, a.id) }

// Every action leaves one record with the actor, the user and the session concerned,
// the source and the outcome.
func TestWhatIsDoneIsOnRecord(t *testing.T) {
	eachEngine(t, func(t *testing.T, on func(*server.Config)) {
		h := start(t, on)
		ctx, admin := t.Context(), h.admin.as(t.Context())
		must := func(_ any, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		first := h.events(t, &watchwordv1.ListEventsRequest{})
		begun := time.Now()

		alice := h.make(t, "reader") // makes the events user.created and login
		one := alice.TokenPair
		must(h.users.UpdateUser(admin, &watchwordv1.UpdateUserRequest{
			User: &watchwordv1.User{Id: alice.id, Roles: []string{"writer", "reader"}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"roles"}}}))
		must(h.auth.Refresh(ctx, &watchwordv1.RefreshRequest{RefreshToken: one.GetRefreshToken()})) // a refresh leaves no record
		must(h.auth.Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: one.GetRefreshToken()}))
		must(h.auth.Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: one.GetRefreshToken()})) // the session has ended before, so this call leaves no record
		h.relogin(t, alice)
		two := alice.TokenPair
		must(h.sessions.RevokeSession(admin, &watchwordv1.RevokeSessionRequest{SessionId: two.GetSessionId()}))
		h.relogin(t, alice)
		three := alice.TokenPair
		changed, err := h.auth.ChangePassword(alice.as(ctx), &watchwordv1.ChangePasswordRequest{CurrentPassword: alice.password, NewPassword: "another password"})
		must(changed, err)
		must(h.users.SetPassword(admin, &watchwordv1.SetPasswordRequest{Id: alice.id, Password: alice.password}))
		must(h.sessions.RevokeUserSessions(admin, &watchwordv1.RevokeUserSessionsRequest{UserId: alice.id}))
		must(h.users.DeleteUser(admin, &watchwordv1.DeleteUserRequest{Id: alice.id}))
		rotated, err := h.keys.RotateKey(admin, &watchwordv1.RotateKeyRequest{})
		must(rotated, err)
		revoked := rotated.GetKey().GetKid()
		must(h.keys.RevokeKey(admin, &watchwordv1.RevokeKeyRequest{Kid: revoked}))

		by, to := "by="+h.admin.both(), "to="+alice.both()
		want := []string{
			"user.created ok " + by + " " + to + " session= kid= from=127.0.0.1 ×1 username: " + alice.name + ", roles: reader, disabled: false",
			"login ok by=" + alice.both() + " " + to + " session=" + one.GetSessionId() + " kid= from=127.0.0.1 ×1 ",
			"user.updated ok " + by + " " + to + " session= kid= from=127.0.0.1 ×1 username: " + alice.name + ", roles: reader writer, disabled: false",
			"logout ok by=" + alice.both() + " " + to + " session=" + one.GetSessionId() + " kid= from=127.0.0.1 ×1 ",
			"login ok by=" + alice.both() + " " + to + " session=" + two.GetSessionId() + " kid= from=127.0.0.1 ×1 ",
			"session.revoked ok " + by + " " + to + " session=" + two.GetSessionId() + " kid= from=127.0.0.1 ×1 ",
			"login ok by=" + alice.both() + " " + to + " session=" + three.GetSessionId() + " kid= from=127.0.0.1 ×1 ",
			"password.changed ok by=" + alice.both() + " " + to + " session=" + changed.GetTokens().GetSessionId() + " kid= from=127.0.0.1 ×1 ",
			"password.set ok " + by + " " + to + " session= kid= from=127.0.0.1 ×1 ",
			"user.sessions_revoked ok " + by + " " + to + " session= kid= from=127.0.0.1 ×1 ",
			"user.deleted ok " + by + " " + to + " session= kid= from=127.0.0.1 ×1 ",
			"key.rotated ok " + by + " to= session= kid=" + revoked + " from=127.0.0.1 ×1 EdDSA, signs from " +
				rotated.GetKey().GetSignsFrom().AsTime().Format(time.RFC3339),
			"key.revoked ok " + by + " to= session= kid=" + revoked + " from=127.0.0.1 ×1 ",
		}
		all := h.events(t, &watchwordv1.ListEventsRequest{PageSize: 3})
		var got []string
		for _, e := range all[len(first):] {
			got = append(got, line(e))
			if at := e.GetTime().AsTime(); at.Before(begun.Add(-time.Second)) || at.After(time.Now()) {
				t.Errorf("%s at %v", e.GetType(), at)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("on record:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if got := line(first[0]); !strings.HasPrefix(got, "user.created ok by= to="+h.admin.both()) || !strings.Contains(got, "from=server") {
			t.Errorf("the first record is %s", got)
		}
		for filter, want := range map[*watchwordv1.ListEventsRequest]int{
			{Type: "login", UserId: alice.id}:                         3,
			{UserId: alice.id}:                                        11,
			{SessionId: two.GetSessionId()}:                           2,
			{StartTime: timestamppb.New(time.Now().Add(time.Minute))}: 0,
			{EndTime: timestamppb.New(begun)}:                         len(first),
			{Type: "key.revoked", UserId: h.admin.id, StartTime: timestamppb.New(begun.Add(-time.Hour))}: 1,
		} {
			if got := h.events(t, filter); len(got) != want {
				t.Errorf("%v: %d events, want %d", filter, len(got), want)
			}
		}
	})
}

// Refused calls are counted by kind, with the user concerned if the user is known.
func TestRefusalsAreOnRecord(t *testing.T) {
	h := start(t, withGrace(0))
	alice := h.make(t)
	if err := h.login(alice, caller.AdminAudience); err != nil {
		t.Fatal(err)
	}
	guess := func(name, password string) {
		_, err := h.auth.Login(t.Context(), &watchwordv1.LoginRequest{Username: name, Password: password})
		wants(t, "a guess", outcome(err), "INVALID_CREDENTIALS")
	}
	for range 3 {
		guess(alice.name, "a wrong password")
		guess("nobody", "whatever password")
		wants(t, "a forged token", h.refresh(t, tamper(alice.GetRefreshToken(), 20)), "REFRESH_TOKEN_INVALID")
		_, err := h.users.ListUsers(alice.as(t.Context()), &watchwordv1.ListUsersRequest{})
		wants(t, "without the role", outcome(err), "ROLE_REQUIRED")
		_, err = h.users.ListUsers(t.Context(), &watchwordv1.ListUsersRequest{})
		wants(t, "without a token", outcome(err), "TOKEN_MISSING")
		wants(t, "a question", h.verify(t, "no token"), "TOKEN_INVALID") // Verify answers a question, so no refused call is recorded
	}
	_, err := h.auth.ChangePassword(alice.as(t.Context()), &watchwordv1.ChangePasswordRequest{CurrentPassword: "wrong one", NewPassword: "another password"})
	wants(t, "a wrong current password", outcome(err), "INVALID_CREDENTIALS")
	old := alice.GetRefreshToken()
	for range 2 {
		resp, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: alice.GetRefreshToken()})
		if err != nil {
			t.Fatal(err)
		}
		alice.TokenPair = resp.GetTokens()
	}
	wants(t, "reuse", h.refresh(t, old), "REFRESH_TOKEN_REUSED")
	wants(t, "after reuse", h.refresh(t, old), "SESSION_REVOKED")
	session := alice.GetSessionId()

	want := []string{
		"call ROLE_REQUIRED by=" + alice.both() + " to= session=" + session + " kid= from=127.0.0.1 ×3 /watchword.v1.UserService/ListUsers",
		"call TOKEN_MISSING by= to= session= kid= from=127.0.0.1 ×3 /watchword.v1.UserService/ListUsers",
		"login INVALID_CREDENTIALS by= to= session= kid= from=127.0.0.1 ×3 ",
		"login INVALID_CREDENTIALS by= to=" + alice.both() + " session= kid= from=127.0.0.1 ×3 ",
		"password.changed INVALID_CREDENTIALS by= to=" + alice.both() + " session=" + session + " kid= from=127.0.0.1 ×1 ",
		"refresh REFRESH_TOKEN_INVALID by= to= session= kid= from=127.0.0.1 ×3 ",
		"refresh SESSION_REVOKED by= to=" + alice.both() + " session=" + session + " kid= from=127.0.0.1 ×1 ",
		"refresh.reused REFRESH_TOKEN_REUSED by= to=" + alice.both() + " session=" + session + " kid= from=127.0.0.1 ×1 ",
	}
	var got []string
	eventually(t, func() bool { // counts are written down each second
		got = nil
		for _, e := range h.events(t, &watchwordv1.ListEventsRequest{}) {
			if !e.GetSuccess() {
				got = append(got, line(e))
			}
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	}, func() string { return strings.Join(got, "\n") + "\nwant:\n" + strings.Join(want, "\n") })
}

// A user that asks about sessions of another user gets the same answer as for a session
// that does not exist. The record counts the call as ROLE_REQUIRED, with both users. The
// record never holds an id that the caller has made up.
func TestProbingOfSessionsIsOnRecord(t *testing.T) {
	h := start(t, func(*server.Config) {})
	alice, mallory := h.make(t), h.make(t)
	ctx := mallory.as(t.Context())
	ask := func(userID, sessionID string) (answers []error) {
		_, err1 := h.sessions.ListSessions(ctx, &watchwordv1.ListSessionsRequest{UserId: userID})
		_, err2 := h.sessions.RevokeUserSessions(ctx, &watchwordv1.RevokeUserSessionsRequest{UserId: userID})
		_, err3 := h.sessions.RevokeSession(ctx, &watchwordv1.RevokeSessionRequest{SessionId: sessionID})
		return []error{err1, err2, err3}
	}
	for i, err := range ask("a made up id", "a made up id") {
		refusedBy(t, err, "SESSION_NOT_FOUND", "")
		if real := ask(alice.id, alice.GetSessionId())[i]; real.Error() != err.Error() || !proto.Equal(status.Convert(real).Proto(), status.Convert(err).Proto()) {
			t.Errorf("the answers differ: %v, %v", real, err)
		}
	}
	prefix, service := "call ROLE_REQUIRED by="+mallory.both()+" to=", "/watchword.v1.SessionService/"
	suffix := " session=" + mallory.GetSessionId() + " kid= from=127.0.0.1 "
	want := []string{
		prefix + suffix + "×1 " + service + "ListSessions",
		prefix + suffix + "×1 " + service + "RevokeUserSessions",
		prefix + alice.both() + suffix + "×3 " + service + "ListSessions",
		prefix + alice.both() + suffix + "×3 " + service + "RevokeSession",
		prefix + alice.both() + suffix + "×3 " + service + "RevokeUserSessions",
	}
	slices.Sort(want)
	var got []string
	eventually(t, func() bool {
		got = nil
		for _, e := range h.events(t, &watchwordv1.ListEventsRequest{UserId: mallory.id}) {
			if !e.GetSuccess() {
				got = append(got, line(e))
			}
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	}, func() string { return strings.Join(got, "\n") + "\nwant:\n" + strings.Join(want, "\n") })
}

// Strangers leave a bounded number of records and log lines, however often they call, and from
// whatever addresses.
func TestStrangersCannotFillTheDisk(t *testing.T) {
	h := start(t, func(c *server.Config) { c.AuditTTL = time.Hour })
	size := func() int { return len(h.events(t, &watchwordv1.ListEventsRequest{PageSize: 1000})) }
	before := size()
	for i := range 2000 {
		wants(t, "a forged token", h.refresh(t, tamper(h.admin.GetRefreshToken(), 10+i%40)), "REFRESH_TOKEN_INVALID")
	}
	var counted int64
	eventually(t, func() bool {
		counted = 0
		for _, e := range h.events(t, &watchwordv1.ListEventsRequest{Type: "refresh"}) {
			counted += e.GetCount()
		}
		return counted == 2000
	}, func() string { return fmt.Sprint(counted, " counted") })
	if after := size(); after-before != 1 {
		t.Errorf("%d records of 2000 refusals", after-before)
	}
}
