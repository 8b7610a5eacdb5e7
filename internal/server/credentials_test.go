package server_test

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// carrying calls the server with credentials, as a service that it guards.
func (h *harness) carrying(t *testing.T, creds *authn.Credentials, err error) watchwordv1.SessionServiceClient {
	t.Helper()
	return watchwordv1.NewSessionServiceClient(h.dialCarrying(t, creds, err))
}

func (h *harness) dialCarrying(t *testing.T, creds *authn.Credentials, err error) *grpc.ClientConn {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { creds.Close() })
	conn, err := grpc.NewClient(h.server.GRPCAddr(), append(creds.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A caller's day: nothing that happens to its user takes a second call.
func TestCredentials(t *testing.T) {
	h := shared(t)
	a := h.make(t, "reader")
	newest := ""
	store := func(_ context.Context, token string) error {
		secrets.add("refresh_token", token)
		newest = token
		return nil
	}
	creds, err := authn.NewPasswordCredentials(h.conn, a.name, a.password, authn.WithTokenStore(store), authn.WithCredentialsAudience("internal"))
	sessions := h.carrying(t, creds, err)
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
	calls(sessions, "ok") // TOKEN_STALE, and made again
	if newest == first {
		t.Error("the token was not refreshed")
	}

	// Another process goes on with what was stored, and this one stops.
	creds.Close()
	calls(sessions, "Canceled")
	creds, err = authn.NewRefreshCredentials(h.conn, newest, authn.WithTokenStore(store))
	resumed := h.carrying(t, creds, err)
	calls(resumed, "ok")
	creds, err = authn.NewPasswordCredentials(h.conn, a.name, a.password)
	sessions = h.carrying(t, creds, err)
	calls(sessions, "ok")

	if _, err := h.sessions.RevokeUserSessions(h.admin.as(t.Context()), &watchwordv1.RevokeUserSessionsRequest{UserId: a.id}); err != nil {
		t.Fatal(err)
	}
	for _, by := range []watchwordv1.SessionServiceClient{sessions, resumed} {
		if _, err := by.ListSessions(t.Context(), new(watchwordv1.ListSessionsRequest)); outcome(err) != "TOKEN_REVOKED" {
			t.Error(err)
		}
	}
	calls(sessions, "ok") // logged in anew
	calls(resumed, "SESSION_REVOKED")

	creds, err = authn.NewPasswordCredentials(h.conn, a.name, "not "+a.password)
	calls(h.carrying(t, creds, err), "INVALID_CREDENTIALS")
}

// What Verify says of a token that it was asked about concerns nobody's own.
func TestVerifyWithCredentials(t *testing.T) {
	h := shared(t)
	a := h.make(t, "reader")
	logins := 0
	store := func(_ context.Context, token string) error {
		secrets.add("refresh_token", token)
		logins++
		return nil
	}
	creds, err := authn.NewPasswordCredentials(h.conn, a.name, a.password, authn.WithTokenStore(store), authn.WithCredentialsAudience("internal"))
	conn := h.dialCarrying(t, creds, err)
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
