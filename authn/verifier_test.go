package authn_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// Each token has one flaw, and also every flaw that is checked later. So the reason of the
// error shows the order of the checks.
func TestOrderOfReasons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.watch.tell(endedSession("session-1", time.Now().Add(time.Hour)), raisedVersion("user-1", 8, false))
		time.Sleep(10 * time.Second)

		stale := func(c *token.Claims) { c.SessionID = "session-2" }
		expired := func(c *token.Claims) { c.ExpiresAt = time.Now(); c.IssuedAt = c.ExpiresAt.Add(-time.Second) }
		elsewhere := func(c *token.Claims) { c.Audience = []string{"other"} }
		long := func(c *token.Claims) { c.ExpiresAt = c.IssuedAt.Add(maxLifetime + time.Second) }
		foreign := func(c *token.Claims) { c.Issuer = "https://elsewhere" }
		fresh := func(c *token.Claims) { c.SessionID, c.Version = "session-2", 8 }

		w.wants(t, mint(t, w.key, fresh), "ok")
		w.wants(t, mint(t, w.key, stale), "TOKEN_STALE")
		w.wants(t, mint(t, w.key), "TOKEN_REVOKED")
		w.wants(t, mint(t, w.key, expired), "TOKEN_EXPIRED")
		w.wants(t, mint(t, w.key, expired, elsewhere), "AUDIENCE_MISMATCH")
		w.wants(t, mint(t, w.key, long, elsewhere), "TOKEN_INVALID")
		w.wants(t, mint(t, w.key, foreign, expired, elsewhere), "TOKEN_INVALID")
		w.wants(t, mint(t, newKey(t), expired, elsewhere), "TOKEN_INVALID")
		w.wants(t, "x", "TOKEN_INVALID")
		w.wants(t, strings.Repeat("x", 2*token.MaxLength), "TOKEN_INVALID")
	})
}

func TestKeyPastItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		state := trustState(w.key)
		state.Keys[0].VerifiesUntil = timestamppb.New(time.Now().Add(time.Minute))
		w.watch.tell(change(&watchwordv1.Change{TrustState: state}))
		raw := mint(t, w.key)
		time.Sleep(time.Minute - time.Second)
		w.watch.tell(heartbeat(time.Now()))
		w.wants(t, raw, "ok")
		time.Sleep(2 * time.Second)
		w.wants(t, raw, "TOKEN_INVALID")
	})
}

func TestExpiry(t *testing.T) {
	for _, test := range []struct {
		leeway time.Duration
		lives  time.Duration
	}{
		{0, maxLifetime},
		{time.Minute, maxLifetime + time.Minute},
		{time.Hour, maxLifetime + margin}, // no longer than the server keeps revocations
	} {
		t.Run(fmt.Sprint(test.leeway), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, authn.WithLeeway(test.leeway))
				raw, revoked := mint(t, w.key), mint(t, w.key, func(c *token.Claims) { c.SessionID = "session-2" })
				w.watch.tell(endedSession("session-2", time.Now().Add(maxLifetime)))
				for left := test.lives - drift; left > 0; left -= 30 * time.Second {
					w.watch.tell(heartbeat(time.Now()))
					w.wants(t, raw, "ok")
					w.wants(t, revoked, "TOKEN_REVOKED") // also after the time of the message
					time.Sleep(min(left, 30*time.Second))
				}
				w.wants(t, raw, "ok")
				time.Sleep(drift)
				w.wants(t, raw, "TOKEN_EXPIRED")
			})
		})
	}
}

// drift is more than two clocks drift apart in a minute by a verifier's reckoning.
const drift = 20 * time.Millisecond

func TestClockFollowsTheServer(t *testing.T) {
	for _, off := range []time.Duration{-time.Hour, 0, time.Hour} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{key: newKey(t)}
				server, conn := serveTrust(t)
				w.Verifier = newVerifier(t, conn, authn.WithAudience("internal"))
				there := func() time.Time { return time.Now().Add(off) }
				watch := <-server.streams
				watch.tell(snapshot(trustState(w.key)), heartbeat(there()))
				raw := mint(t, w.key, func(c *token.Claims) {
					c.IssuedAt, c.ExpiresAt = there(), there().Add(maxLifetime)
				})
				// Delayed heartbeats do not set the clock back.
				for range 29 {
					time.Sleep(5 * time.Second)
					late := heartbeat(there())
					time.Sleep(5 * time.Second)
					watch.tell(late)
					w.wants(t, raw, "ok")
				}
				time.Sleep(10*time.Second - drift)
				w.wants(t, raw, "ok")
				time.Sleep(drift)
				w.wants(t, raw, "TOKEN_EXPIRED")
			})
		})
	}
}

func TestArguments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		raw := mint(t, w.key)
		field := func(err error) string {
			for _, d := range status.Convert(err).Details() {
				if bad, ok := d.(*errdetails.BadRequest); ok {
					return bad.GetFieldViolations()[0].GetField()
				}
			}
			return ""
		}
		_, err := w.Verify(t.Context(), "")
		refusedBy(t, err, codes.InvalidArgument, "INVALID_REQUEST", "")
		if field(err) != "access_token" {
			t.Error(err)
		}
		for _, none := range [][]string{nil, {""}, {"internal", ""}} {
			_, err := w.VerifyFor(t.Context(), raw, none...)
			refusedBy(t, err, codes.InvalidArgument, "INVALID_REQUEST", "")
			if field(err) != "audience" {
				t.Error(err)
			}
		}
		if _, err := w.VerifyFor(t.Context(), raw, "other", "internal"); err != nil {
			t.Error(err)
		}
		_, err = w.VerifyFor(t.Context(), raw, "other")
		refusedBy(t, err, codes.Unauthenticated, "AUDIENCE_MISMATCH", "")
	})
}

func TestAnyAudience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, conn := serveTrust(t)
		w := &world{key: newKey(t), Verifier: newVerifier(t, conn, authn.WithAnyAudience())}
		(<-server.streams).tell(snapshot(trustState(w.key)), heartbeat(time.Now()))
		w.wants(t, mint(t, w.key, func(c *token.Claims) { c.Audience = []string{"whatever"} }), "ok")
	})
}

func TestPrincipal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		want := claims()
		p, err := w.Verify(t.Context(), mint(t, w.key))
		if err != nil {
			t.Fatal(err)
		}
		if p.Subject() != want.Subject || p.Username() != want.Username || p.Issuer() != want.Issuer ||
			p.SessionID() != want.SessionID || p.TokenID() != want.ID || p.TokenVersion() != want.Version ||
			!p.IssuedAt().Equal(want.IssuedAt) || !p.ExpiresAt().Equal(want.ExpiresAt) {
			t.Errorf("%v, want %v", p, want)
		}
		p.Roles()[0], p.Audience()[0] = "admin", "other"
		if p.HasRole("admin") || !p.HasRole("reader") || p.Audience()[0] != "internal" {
			t.Error("the principal was changed")
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("call", "caller", p)
		if !strings.Contains(log.String(), "caller.username=alice") || p.String() != "alice (user-1)" {
			t.Errorf("%s%s", log.String(), p)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		raw := mint(t, w.key)
		w.wants(t, raw, "ok")
		var closing sync.WaitGroup
		for range 3 {
			closing.Go(func() {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		closing.Wait()
		w.wants(t, raw, "BUNDLE_STALE")
		w.wants(t, "", "BUNDLE_STALE")
		_, err := w.VerifyFor(t.Context(), raw, "internal")
		refusedBy(t, err, codes.Unavailable, "BUNDLE_STALE", "")
		refusedBy(t, w.Ready(t.Context()), codes.Unavailable, "BUNDLE_STALE", "")
		<-w.watch.gone // the stream has ended
	})
}

func TestCloseWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, conn := serveTrust(t)
		v := newVerifier(t, conn, authn.WithAudience("internal"))
		<-server.streams
		ready := make(chan error)
		go func() { ready <- v.Ready(t.Context()) }()
		synctest.Wait()
		v.Close()
		refusedBy(t, <-ready, codes.Unavailable, "BUNDLE_STALE", "")
	})
}

// A NewVerifier that fails does not close conn.
func TestConnStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, conn := serveTrust(t)
		for range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-server.streams; cancel() }()
			_, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"))
			errorIs(t, err, context.Canceled)
		}
	})
}

func TestOptions(t *testing.T) {
	conn := newHandFed()
	ours := authn.WithAudience("internal")
	for name, opts := range map[string][]authn.Option{
		"no audience":       nil,
		"both audiences":    {ours, authn.WithAnyAudience()},
		"empty audience":    {authn.WithAudience("internal", "")},
		"nothing named":     {authn.WithAudience()},
		"negative leeway":   {ours, authn.WithLeeway(-1)},
		"method alone":      {ours, authn.WithPublicMethods("Check")},
		"no leading slash":  {ours, authn.WithPublicMethods("a.B/C")},
		"service alone":     {ours, authn.WithPublicMethods("/a.B")},
		"empty method":      {ours, authn.WithPublicMethods("/a.B/")},
		"empty service":     {ours, authn.WithPublicMethods("//C")},
		"everything":        {ours, authn.WithPublicMethods("/*")},
		"every service":     {ours, authn.WithPublicMethods("/*/*")},
		"part of a name":    {ours, authn.WithPublicMethods("/a.B/Get*")},
		"part of a package": {ours, authn.WithPublicMethods("/a.*/*")},
		"three parts":       {ours, authn.WithPublicMethods("/a/B/C")},
		"white space":       {ours, authn.WithPublicMethods("/a.B/C ")},
		"a role required":   {ours, authn.WithPublicMethods("/watchword.v1.UserService/CreateUser")},
		"an empty option":   {ours, authn.WithPublicMethods(notes + "Mine")},
		"nil rule":          {ours, authn.WithMethodRule("/a.B/C", nil)},
		"a rule's pattern":  {ours, tokenNeeded("/a.B/C*")},
		"public with roles": {ours, authn.WithMethodRule("/a.B/C", &watchwordv1.Access{Public: true, Roles: []string{"admin"}})},
		"impossible role":   {ours, authn.WithMethodRule("/a.B/C", &watchwordv1.Access{Roles: []string{"admin", "Admin"}})},
		"empty role":        {ours, authn.WithMethodRule("/a.B/C", &watchwordv1.Access{Roles: []string{""}})},
		"two rules":         {ours, tokenNeeded("/a.B/C"), authn.WithPublicMethods("/a.B/C")},
		"less than asked":   {ours, tokenNeeded("/watchword.v1.UserService/CreateUser")},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // if NewVerifier accepts wrong options by mistake, the test does not wait for a bundle
			v, err := authn.NewVerifier(ctx, conn, opts...)
			if v != nil || status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(err.Error(), "authn: ") {
				t.Errorf("%v, %v", v, err)
			}
		})
	}
	if _, err := authn.NewVerifier(t.Context(), nil, ours); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

func TestReason(t *testing.T) {
	withInfo := func(domain, reason string) error {
		st, err := status.New(codes.Unauthenticated, "no").WithDetails(
			&errdetails.RetryInfo{}, &errdetails.ErrorInfo{Domain: domain, Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	expired := withInfo("watchword", "TOKEN_EXPIRED")
	const unspecified = watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	for _, test := range []struct {
		err  error
		want watchwordv1.ErrorReason
	}{
		{nil, unspecified},
		{errors.New("other"), unspecified},
		{status.Error(codes.Unauthenticated, "TOKEN_EXPIRED"), unspecified},
		{withInfo("example.com", "TOKEN_EXPIRED"), unspecified},
		{withInfo("watchword", "FROM_THE_FUTURE"), unspecified},
		{expired, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED},
		{fmt.Errorf("listing: %w", expired), watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED},
		{errors.Join(errors.New("other"), expired), watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED},
	} {
		if got := authn.Reason(test.err); got != test.want {
			t.Errorf("%v: %v, want %v", test.err, got, test.want)
		}
	}
}

func TestNoTokenInLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := start(t, authn.WithLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))), authn.WithLeeway(time.Hour))
		conn := serveNotes(t, w.Verifier)
		raw := mint(t, w.key)
		for _, value := range []string{"Bearer " + raw, "Bearer x" + raw, "Basic " + raw} {
			_ = conn.Invoke(bearing(t.Context(), value), notes+"List", empty, newText(), grpc.WaitForReady(true))
		}
		w.watch.end <- status.Error(codes.Unavailable, "stopping")
		<-w.server.streams
		got := log.String()
		for _, want := range []string{"stopping", "up to date", "leeway"} {
			if !strings.Contains(got, want) {
				t.Errorf("the log lacks %q:\n%s", want, got)
			}
		}
		for part := range strings.SplitSeq(raw, ".") {
			if strings.Contains(got, part) {
				t.Errorf("the log has a token:\n%s", got)
			}
		}
	})
}
