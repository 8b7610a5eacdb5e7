package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// outage is an installation whose database goes away, and those who depend on it.
type outage struct {
	*story
	replica  *replica
	verifier *authn.Verifier
	user     *watchwordv1.User
	password string
	pair     *watchwordv1.TokenPair // the user's, alive
	ended    *watchwordv1.TokenPair // of a session that had ended before
}

// The database is killed, and another time it freezes: what needs none goes on
// from memory, everything else says so within its caller's deadline, and when the
// database is back all is as before, without a restart of anything.
func TestDatabaseDown(t *testing.T) {
	in := install(t, "--access-ttl", "1h")
	r := in.replicate(t)
	c := r.dial(t)
	o := &outage{
		story:   &story{client: c, server: r.now(), notes: dialConn(t, serveNotes(t, r.now()), insecure.NewCredentials())},
		replica: r, password: newPassword(),
	}
	o.admin = c.login(t, "admin", in.admin)
	o.user = c.create(t, o.admin, "alice", o.password)
	o.pair, o.ended = c.login(t, "alice", o.password), c.login(t, "alice", o.password)
	var err error
	if o.verifier, err = authn.NewVerifier(callCtx(t), c.conn, authn.WithAudience("internal")); err != nil {
		t.Fatal(err)
	}
	defer o.verifier.Close()
	wantOK(t, "logout", c.logout(callCtx(t), o.ended))
	o.awaitDownstream(t, o.ended, "TOKEN_REVOKED")
	for name, fault := range map[string]struct{ away, back func() }{
		"killed": {in.primary.Kill, in.primary.Restart},
		"frozen": {in.primary.Pause, in.primary.Resume},
	} {
		t.Run(name, func(t *testing.T) {
			o.goesOn(t, time.Now().Add(time.Hour))
			fault.away()
			away := time.Now()
			o.goesOn(t, away)
			o.saysSo(t)
			o.goesOn(t, away)
			fault.back()
			back := time.Now()
			eventually(t, propagation, "refresh", func() error {
				next, err := c.tryRefresh(callCtx(t), o.pair)
				if err == nil {
					o.pair = next
				}
				return err
			})
			t.Logf("refreshed %v after the database was back", time.Since(back).Round(time.Millisecond))
			wantOK(t, "login", c.tryLogin(callCtx(t), "alice", o.password))
			eventually(t, propagation, "the bundle is up to date", func() error { return o.knownSince(t, back) })
			o.goesOn(t, time.Now().Add(time.Hour))
		})
	}
	if r.now() != o.server {
		t.Error("it was started again")
	}
}

// goesOn asks everything that needs no database. What is known is as of a time
// that is not after `latest`.
func (o *outage) goesOn(t *testing.T, latest time.Time) {
	t.Helper()
	_, err := o.client.verify(callCtx(t), o.pair)
	wantOK(t, "verify", err)
	_, err = o.client.verify(callCtx(t), o.ended)
	wantRefusal(t, "verify after the logout", err, "TOKEN_REVOKED")
	wantOK(t, "a call downstream", listNotes(callCtx(t), o.notes, o.pair))
	wantRefusal(t, "a call downstream after the logout", listNotes(callCtx(t), o.notes, o.ended), "TOKEN_REVOKED")
	_, err = o.verifier.Verify(callCtx(t), o.pair.GetAccessToken())
	wantOK(t, "a verifier's", err)
	keys, err := o.GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{})
	if err != nil || len(keys.GetKeys()) == 0 {
		t.Errorf("keys: %v, %v", keys, err)
	}
	fresh, err := authn.NewVerifier(callCtx(t), o.conn, authn.WithAudience("internal"))
	if err != nil {
		t.Fatalf("who comes only now: %v", err)
	}
	defer fresh.Close()
	_, err = fresh.Verify(callCtx(t), o.ended.GetAccessToken())
	wantRefusal(t, "by who comes only now", err, "TOKEN_REVOKED")
	if o.knownSince(t, latest) == nil {
		t.Error("a heartbeat says that all is known, and the database is away")
	}
}

// knownSince returns an error unless a new stream says that all is known up to a
// time.
func (o *outage) knownSince(t *testing.T, since time.Time) error {
	t.Helper()
	ctx, cancel := context.WithCancel(callCtx(t))
	defer cancel()
	stream, err := o.WatchBundle(ctx, &watchwordv1.WatchBundleRequest{})
	for err == nil {
		var m *watchwordv1.WatchBundleResponse
		if m, err = stream.Recv(); m.GetHeartbeat() != nil {
			if asOf := m.GetHeartbeat().GetAsOf().AsTime(); !asOf.After(since) {
				return fmt.Errorf("known as of %v, %v too early", asOf, since.Sub(asOf))
			}
			return nil
		}
	}
	t.Errorf("a new stream: %v", err)
	return err
}

// deadline is what callers have while the database is away.
const deadline = 2 * time.Second

// saysSo makes every call that needs the database, all at once, and then again,
// when the server knows already that it is away.
func (o *outage) saysSo(t *testing.T) {
	t.Helper()
	for range 2 {
		var calls sync.WaitGroup
		for what, call := range o.calls() {
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				if err := unavailable(call(ctx)); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		calls.Wait()
	}
}

// unavailable returns an error unless err says that the database is away, and when
// to come again.
func unavailable(err error) error {
	if status.Code(err) != codes.Unavailable || authn.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE {
		return fmt.Errorf("got %w, want STORE_UNAVAILABLE", err)
	}
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok && retry.GetRetryDelay().AsDuration() > 0 {
			return nil
		}
	}
	return errors.New("it does not say when to come again")
}

// calls are all that need the database.
func (o *outage) calls() map[string]func(context.Context) error {
	keys, records := watchwordv1.NewKeyServiceClient(o.conn), watchwordv1.NewAuditServiceClient(o.conn)
	id, nobody := o.user.GetId(), "AAAAAAAAAAAAAAAA"
	asAdmin := func(call func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error { return call(bearer(ctx, o.admin)) }
	}
	return map[string]func(context.Context) error{
		"login":   func(ctx context.Context) error { return o.tryLogin(ctx, "alice", o.password) },
		"refresh": func(ctx context.Context) error { _, err := o.tryRefresh(ctx, o.pair); return err },
		"logout":  func(ctx context.Context) error { return o.logout(ctx, o.ended) },
		"change password": func(ctx context.Context) error {
			_, err := o.ChangePassword(bearer(ctx, o.pair), &watchwordv1.ChangePasswordRequest{CurrentPassword: o.password, NewPassword: newPassword()})
			return err
		},
		"create": asAdmin(func(ctx context.Context) error {
			_, err := o.CreateUser(ctx, &watchwordv1.CreateUserRequest{Username: "bob", Password: o.password})
			return err
		}),
		"get": asAdmin(func(ctx context.Context) error {
			_, err := o.GetUser(ctx, &watchwordv1.GetUserRequest{Key: &watchwordv1.GetUserRequest_Id{Id: id}})
			return err
		}),
		"list": asAdmin(func(ctx context.Context) error {
			_, err := o.ListUsers(ctx, &watchwordv1.ListUsersRequest{})
			return err
		}),
		"update": asAdmin(func(ctx context.Context) error {
			_, err := o.UpdateUser(ctx, &watchwordv1.UpdateUserRequest{User: &watchwordv1.User{Id: id, Username: "alice"}})
			return err
		}),
		"delete": asAdmin(func(ctx context.Context) error {
			_, err := o.DeleteUser(ctx, &watchwordv1.DeleteUserRequest{Id: nobody})
			return err
		}),
		"set password": asAdmin(func(ctx context.Context) error {
			_, err := o.SetPassword(ctx, &watchwordv1.SetPasswordRequest{Id: id, Password: o.password})
			return err
		}),
		"list sessions": asAdmin(func(ctx context.Context) error {
			_, err := o.ListSessions(ctx, &watchwordv1.ListSessionsRequest{UserId: id})
			return err
		}),
		"revoke session": asAdmin(func(ctx context.Context) error {
			_, err := o.RevokeSession(ctx, &watchwordv1.RevokeSessionRequest{SessionId: o.ended.GetSessionId()})
			return err
		}),
		"revoke sessions": asAdmin(func(ctx context.Context) error {
			_, err := o.RevokeUserSessions(ctx, &watchwordv1.RevokeUserSessionsRequest{UserId: nobody})
			return err
		}),
		"list keys": asAdmin(func(ctx context.Context) error {
			_, err := keys.ListKeys(ctx, &watchwordv1.ListKeysRequest{})
			return err
		}),
		"rotate key": asAdmin(func(ctx context.Context) error {
			_, err := keys.RotateKey(ctx, &watchwordv1.RotateKeyRequest{})
			return err
		}),
		"revoke key": asAdmin(func(ctx context.Context) error {
			_, err := keys.RevokeKey(ctx, &watchwordv1.RevokeKeyRequest{Kid: "none"})
			return err
		}),
		"list events": asAdmin(func(ctx context.Context) error {
			_, err := records.ListEvents(ctx, &watchwordv1.ListEventsRequest{})
			return err
		}),
	}
}
