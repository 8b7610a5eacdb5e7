package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// outage holds a replica, clients of the replica, and a user.
type outage struct {
	*story
	replica  *replica
	verifier *authn.Verifier
	user     *watchwordv1.User
	password string
	pair     *watchwordv1.TokenPair // the tokens of a live session of the user
	ended    *watchwordv1.TokenPair // the tokens of a session that ended before the outage
}

// TestDatabaseDown kills the database, and in a second run freezes the database. Calls that
// need no database must keep working from memory. All other calls must return
// STORE_UNAVAILABLE within the caller's deadline. When the database is back, all calls must
// work again, without a restart of a program.
func TestDatabaseDown(t *testing.T) {
	in := install(t, "--access-ttl", "1h")
	r := in.replicate(t)
	c := r.dial(t)
	o := &outage{
		story:   &story{client: c, server: r.now(), notes: dialConn(t, serveNotes(t, r.now()), insecure.NewCredentials())},
		replica: r, password: newPassword(),
	}
	o.admin = c.login(t, "admin", in.admin, "watchword")
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
			o.checkWithoutDatabase(t, time.Now().Add(time.Hour))
			logged := len(o.server.stderr.String())
			failures := o.server.metric(t, "watchword_database_failed_calls_total")
			fault.away()
			away := time.Now()
			o.checkWithoutDatabase(t, away)
			o.checkUnavailable(t)
			o.checkHealth(t, true)
			o.checkMetric(t, 0, failures)
			o.checkWithoutDatabase(t, away)
			fault.back()
			back := time.Now()
			eventually(t, propagation, "refreshing after the outage", func() error {
				next, err := c.tryRefresh(callCtx(t), o.pair)
				if err == nil {
					o.pair = next
				}
				return err
			})
			t.Logf("refreshed %v after the database was back", time.Since(back).Round(time.Millisecond))
			wantOK(t, "login", c.tryLogin(callCtx(t), "alice", o.password))
			eventually(t, propagation, "sending a current bundle", func() error { return o.knownSince(t, back) })
			o.checkHealth(t, false)
			o.checkMetric(t, 1, failures)
			o.checkOutageLog(t, logged)
			o.checkWithoutDatabase(t, time.Now().Add(time.Hour))
		})
	}
	o.checkSchemaChange(t, in)
	if r.now() != o.server {
		t.Error("the replica was started again")
	}
}

// checkMetric checks the metrics about the database. failures is the number of failed calls
// before the outage.
func (o *outage) checkMetric(t *testing.T, up, failures int) {
	t.Helper()
	eventually(t, runTimeout, "watchword_database_up", func() error { // an outage ends after some seconds of good answers
		if got := o.server.metric(t, "watchword_database_up"); got != up {
			return fmt.Errorf("%d, want %d", got, up)
		}
		return nil
	})
	if got := o.server.metric(t, "watchword_database_failed_calls_total"); got <= failures {
		t.Errorf("%d failed calls, and %d before the outage", got, failures)
	}
}

// checkHealth waits until the health service tells that the services which need the database
// do not serve, or serve again. The replica itself must be ready in both cases.
func (o *outage) checkHealth(t *testing.T, away bool) {
	t.Helper()
	probe := healthv1.NewHealthClient(o.conn)
	for name, needsDatabase := range map[string]bool{
		"": false, "watchword.v1.TrustService": false, "watchword.v1.AuthService": true, "watchword.v1.UserService": true,
		"watchword.v1.SessionService": true, "watchword.v1.KeyService": true, "watchword.v1.AuditService": true, "watchword.v1.FederationService": true,
	} {
		want := healthv1.HealthCheckResponse_SERVING
		if needsDatabase && away {
			want = healthv1.HealthCheckResponse_NOT_SERVING
		}
		check := func() error {
			resp, err := probe.Check(callCtx(t), &healthv1.HealthCheckRequest{Service: name})
			if err == nil && resp.GetStatus() != want {
				err = fmt.Errorf("%v, want %v", resp.GetStatus(), want)
			}
			return err
		}
		if needsDatabase {
			eventually(t, startTimeout, "the health of "+name, check)
		} else if err := check(); err != nil {
			t.Errorf("the health of %q: %v", name, err)
		}
	}
	text := "ok\n"
	if away {
		text = "ok: the database is away"
	}
	if err := o.server.readyz(t, http.StatusOK, text); err != nil {
		t.Error(err)
	}
}

// checkSchemaChange gives the database a schema that excludes the replica, and takes the
// schema away.
func (o *outage) checkSchemaChange(t *testing.T, in *installation) {
	t.Helper()
	floor := "UPDATE settings SET value = '%s' WHERE name = 'schema_floor'"
	in.asSuperuser("INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)", fmt.Sprintf(floor, "99999"))
	eventually(t, startTimeout, "turning readiness off", func() error {
		return o.server.readyz(t, http.StatusServiceUnavailable, "cannot work with the database")
	})
	in.asSuperuser("DELETE FROM goose_db_version WHERE version_id = 99999", fmt.Sprintf(floor, "1"))
	eventually(t, startTimeout, "turning readiness on", func() error { return o.server.readyz(t, http.StatusOK, "ok") })
}

// readyz returns an error unless /readyz has a status, and a text that contains says.
func (s *server) readyz(t *testing.T, status int, says string) error {
	t.Helper()
	resp, err := http.Get("http://" + s.httpAddr + "/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != status || !strings.Contains(string(body), says)) {
		err = fmt.Errorf("/readyz: %s %q, want %d %q", resp.Status, body, status, says)
	}
	return err
}

var (
	warningLine = regexp.MustCompile(`(?m)^.*level=(WARN|ERROR).*$`)
	awayLine    = regexp.MustCompile(`(?m)^.*level=WARN msg="the database is not available.*$`)
	backLine    = regexp.MustCompile(`(?m)^.*level=INFO msg="the database is available again".*$`)
)

// checkOutageLog waits for the log line that ends an outage. Since the outage began, after
// the first bytes of the log, the log must have one line about the beginning, one about the
// end, and no other warning, whatever number of calls has failed.
func (o *outage) checkOutageLog(t *testing.T, bytes int) {
	t.Helper()
	eventually(t, startTimeout, "logging the end of the outage", func() error {
		if !backLine.MatchString(o.server.stderr.String()[bytes:]) {
			return errors.New("no such line")
		}
		return nil
	})
	log := o.server.stderr.String()[bytes:]
	warnings, away, back := warningLine.FindAllString(log, -1), awayLine.FindAllString(log, -1), backLine.FindAllString(log, -1)
	if len(warnings) != 1 || len(away) != 1 || len(back) != 1 {
		t.Errorf("%d warnings, %d lines about the beginning and %d about the end, want one of each:\n%s", len(warnings), len(away), len(back), log)
	}
	t.Logf("the log of the outage:\n%s", log)
}

// checkWithoutDatabase makes every call that needs no database. The as-of time in the
// server's heartbeats must not be after latest.
func (o *outage) checkWithoutDatabase(t *testing.T, latest time.Time) {
	t.Helper()
	_, err := o.client.verify(callCtx(t), o.pair)
	wantOK(t, "verify", err)
	_, err = o.client.verify(callCtx(t), o.ended)
	wantRefusal(t, "verify after the logout", err, "TOKEN_REVOKED")
	wantOK(t, "notes", listNotes(callCtx(t), o.notes, o.pair))
	wantRefusal(t, "notes after the logout", listNotes(callCtx(t), o.notes, o.ended), "TOKEN_REVOKED")
	_, err = o.verifier.Verify(callCtx(t), o.pair.GetAccessToken())
	wantOK(t, "verify by a verifier", err)
	keys, err := o.GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{})
	if err != nil || len(keys.GetKeys()) == 0 {
		t.Errorf("GetKeySet returned %v, error %v; want keys", keys, err)
	}
	fresh, err := authn.NewVerifier(callCtx(t), o.conn, authn.WithAudience("internal"))
	if err != nil {
		t.Fatalf("starting a new verifier: %v", err)
	}
	defer fresh.Close()
	_, err = fresh.Verify(callCtx(t), o.ended.GetAccessToken())
	wantRefusal(t, "verify by a new verifier after the logout", err, "TOKEN_REVOKED")
	if o.knownSince(t, latest) == nil {
		t.Error("the database is away, but a heartbeat has an as-of time after the outage's start")
	}
}

// knownSince opens a stream and reads the first heartbeat. knownSince returns an error
// unless the heartbeat's as-of time is after since.
func (o *outage) knownSince(t *testing.T, since time.Time) error {
	t.Helper()
	ctx, cancel := context.WithCancel(callCtx(t))
	defer cancel()
	stream, err := o.WatchBundle(ctx, &watchwordv1.WatchBundleRequest{})
	for err == nil {
		var m *watchwordv1.WatchBundleResponse
		if m, err = stream.Recv(); m.GetHeartbeat() != nil {
			beat := m.GetHeartbeat()
			asOf := beat.GetTimes().GetLatest().AsTime().Add(beat.GetAsOf().AsDuration() - beat.GetTimes().GetNow().AsDuration())
			if !asOf.After(since) {
				return fmt.Errorf("the heartbeat's as-of time is %v, %v too early", asOf, since.Sub(asOf))
			}
			return nil
		}
	}
	t.Errorf("reading a new stream: %v", err)
	return err
}

// deadline bounds each call while the database is away.
const deadline = 2 * time.Second

// checkUnavailable makes every call that needs the database, all at once. checkUnavailable
// does so twice: the second time, the server already knows that the database is away.
func (o *outage) checkUnavailable(t *testing.T) {
	t.Helper()
	for range 2 {
		var calls sync.WaitGroup
		for what, call := range o.calls() {
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				if err := checkStoreUnavailable(call(ctx)); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		calls.Wait()
	}
}

// checkStoreUnavailable returns an error unless err has the reason STORE_UNAVAILABLE and a
// delay for a retry.
func checkStoreUnavailable(err error) error {
	if status.Code(err) != codes.Unavailable || authn.Reason(err) != watchwordv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE {
		return fmt.Errorf("got %w, want STORE_UNAVAILABLE", err)
	}
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok && retry.GetRetryDelay().AsDuration() > 0 {
			return nil
		}
	}
	return errors.New("the error has no RetryInfo with a delay")
}

// calls returns every call that needs the database, by name.
func (o *outage) calls() map[string]func(context.Context) error {
	keys, records := watchwordv1.NewKeyServiceClient(o.conn), watchwordv1.NewAuditServiceClient(o.conn)
	id, unknownID := o.user.GetId(), "AAAAAAAAAAAAAAAA"
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
			_, err := o.DeleteUser(ctx, &watchwordv1.DeleteUserRequest{Id: unknownID})
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
			_, err := o.RevokeUserSessions(ctx, &watchwordv1.RevokeUserSessionsRequest{UserId: unknownID})
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
