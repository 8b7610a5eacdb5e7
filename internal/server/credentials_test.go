package server_test

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// carrying calls the server with a source, as a service that it guards.
func (h *harness) carrying(t *testing.T, source *tokensource.Source, err error) watchwordv1.SessionServiceClient {
	t.Helper()
	return watchwordv1.NewSessionServiceClient(h.dialCarrying(t, source, err))
}

func (h *harness) dialCarrying(t *testing.T, source *tokensource.Source, err error) *grpc.ClientConn {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	conn, err := grpc.NewClient(h.server.GRPCAddr(), append(source.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestCredentials changes the caller's user in every way, as in a day of use: each call of the
// caller succeeds the first time, because the token source renews the token.
func TestCredentials(t *testing.T) {
	h := shared(t)
	a := h.make(t, "reader")
	newest := ""
	store := func(_ context.Context, token string) error {
		secrets.add("refresh_token", token)
		newest = token
		return nil
	}
	source, err := tokensource.Password(h.conn, a.name, a.password, tokensource.WithStore(store), tokensource.WithAudience("internal"))
	sessions := h.carrying(t, source, err)
	calls := func(by watchwordv1.SessionServiceClient, want string) {
		t.Helper()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if _, err := by.ListSessions(t.Context(), new(watchwordv1.ListSessionsRequest)); outcome(err) != want {
					t.Errorf("%v, want %s", err, want)
				}
			})
		}
		all.Wait()
	}
	calls(sessions, "ok")
	first := newest

	_, err = h.users.UpdateUser(h.admin.as(t.Context()), &watchwordv1.UpdateUserRequest{
		User: &watchwordv1.User{Id: a.id, Roles: []string{"reader", "writer"}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"roles"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	calls(sessions, "ok") // the first attempt gets TOKEN_STALE, and the call is sent again with a new token
	if newest == first {
		t.Error("the token was not refreshed")
	}

	// Another process continues the session with the stored refresh token, and this process
	// stops.
	source.Close()
	calls(sessions, "Canceled")
	source, err = tokensource.Refresh(h.conn, newest, tokensource.WithStore(store))
	resumed := h.carrying(t, source, err)
	calls(resumed, "ok")
	source, err = tokensource.Password(h.conn, a.name, a.password)
	sessions = h.carrying(t, source, err)
	calls(sessions, "ok")

	if _, err := h.sessions.RevokeUserSessions(h.admin.as(t.Context()), &watchwordv1.RevokeUserSessionsRequest{UserId: a.id}); err != nil {
		t.Fatal(err)
	}
	for _, by := range []watchwordv1.SessionServiceClient{sessions, resumed} {
		if _, err := by.ListSessions(t.Context(), new(watchwordv1.ListSessionsRequest)); outcome(err) != "TOKEN_REVOKED" {
			t.Error(err)
		}
	}
	calls(sessions, "ok") // the source has logged in again
	calls(resumed, "SESSION_REVOKED")

	source, err = tokensource.Password(h.conn, a.name, "not "+a.password)
	calls(h.carrying(t, source, err), "INVALID_CREDENTIALS")
}

// A bad token in a request of Verify does not make the client's token source log in
// again: the error is not about the client's own token.
func TestVerifyWithCredentials(t *testing.T) {
	h := shared(t)
	a := h.make(t, "reader")
	logins := 0
	store := func(_ context.Context, token string) error {
		secrets.add("refresh_token", token)
		logins++
		return nil
	}
	source, err := tokensource.Password(h.conn, a.name, a.password, tokensource.WithStore(store), tokensource.WithAudience("internal"))
	conn := h.dialCarrying(t, source, err)
	for range 3 {
		_, err := watchwordv1.NewAuthServiceClient(conn).Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: "a.b.c"})
		refusedBy(t, err, "TOKEN_INVALID", "")
		if _, err := watchwordv1.NewSessionServiceClient(conn).ListSessions(t.Context(), new(watchwordv1.ListSessionsRequest)); err != nil {
			t.Error(err)
		}
	}
	if logins != 1 {
		t.Errorf("%d tokens were needed", logins)
	}
}
