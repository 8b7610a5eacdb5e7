package server_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// scrape returns the values of our series, by the name with the labels.
func (h *harness) scrape(t *testing.T) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	_, page := h.get(t, http.MethodGet, "/metrics")
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "watchword_") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
		if err != nil {
			t.Fatal(err)
		}
		values[line[:at]] = value
	}
	return values
}

// moves lists calls of clients and operators, each with the series that counts the call.
var moves = []struct {
	series string
	do     func(*testing.T, *harness)
}{
	{`watchword_calls_total{method="Login",outcome="OK",service="AuthService"}`, func(t *testing.T, h *harness) { h.make(t) }},
	{`watchword_audit_events_total{type="login"}`, func(t *testing.T, h *harness) { h.make(t) }},
	{`watchword_password_hash_seconds_count`, func(t *testing.T, h *harness) { h.make(t) }},
	{`watchword_password_wait_seconds_count`, func(t *testing.T, h *harness) { h.make(t) }},
	{`watchword_call_duration_seconds_count{method="Login"}`, func(t *testing.T, h *harness) { h.make(t) }},
	{`watchword_calls_total{method="Login",outcome="INVALID_CREDENTIALS",service="AuthService"}`, wrongPassword},
	{`watchword_throttled_tries_total{by="username"}`, func(t *testing.T, h *harness) {
		for range 4 {
			wrongPassword(t, h)
		}
	}},
	{`watchword_calls_total{method="Refresh",outcome="OK",service="AuthService"}`, func(t *testing.T, h *harness) {
		h.refresh(t, h.make(t).GetRefreshToken())
	}},
	{`watchword_database_call_duration_seconds_count{call="refresh"}`, func(t *testing.T, h *harness) {
		h.refresh(t, h.make(t).GetRefreshToken())
	}},
	{`watchword_audit_events_total{type="refresh.repeated"}`, func(t *testing.T, h *harness) {
		spent := h.make(t).GetRefreshToken()
		h.refresh(t, spent)
		wants(t, "a repeat", h.refresh(t, spent), "ok")
	}},
	{`watchword_audit_events_total{type="refresh.reused"}`, reuse},
	{`watchword_calls_total{method="Refresh",outcome="REFRESH_TOKEN_REUSED",service="AuthService"}`, reuse},
	{`watchword_verifier_revocations{of="session"}`, logout},
	{`watchword_feed_position`, logout},
	{`watchword_verifier_revocations{of="user"}`, func(t *testing.T, h *harness) {
		_, err := h.sessions.RevokeUserSessions(h.admin.as(t.Context()), &watchwordv1.RevokeUserSessionsRequest{UserId: h.make(t).id})
		wants(t, "ending all sessions", outcome(err), "ok")
	}},
	{`watchword_verifier_tokens_refused_total{reason="TOKEN_INVALID"}`, func(t *testing.T, h *harness) { h.verify(t, "garbage") }},
	{`watchword_verifier_tokens_accepted_total{by="check"}`, func(t *testing.T, h *harness) { h.verify(t, h.make(t).GetAccessToken()) }},
	{`watchword_verifier_tokens_accepted_total{by="cache"}`, func(t *testing.T, h *harness) {
		h.verify(t, h.admin.GetAccessToken())
		h.verify(t, h.admin.GetAccessToken())
	}},
	{`watchword_keys{state="retired"}`, func(t *testing.T, h *harness) {
		_, err := h.keys.RotateKey(h.admin.as(t.Context()), &watchwordv1.RotateKeyRequest{})
		wants(t, "rotating", outcome(err), "ok")
	}},
	{`watchword_watcher_delay_seconds_count`, func(t *testing.T, h *harness) {
		stream := h.watch(t)
		logout(t, h)
		awaitMessage(t, stream, func(m *watchwordv1.WatchBundleResponse) bool { return m.GetChange() != nil })
	}},
	{`watchword_places_taken{bound="watchers"}`, func(t *testing.T, h *harness) { h.watch(t) }},
	{`watchword_places_refused_total{bound="watchers"}`, func(t *testing.T, h *harness) {
		for range 12 { // six may come from one network
			stream, err := h.trust.WatchBundle(t.Context(), &watchwordv1.WatchBundleRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			if outcome(err) == "OVERLOADED" {
				return
			}
		}
		t.Error("every watcher got a place")
	}},
	{`watchword_places_refused_total{bound="streams"}`, func(t *testing.T, h *harness) {
		for range 12 { // eight may come from one network
			stream, err := healthv1.NewHealthClient(h.conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			if outcome(err) == "OVERLOADED" {
				return
			}
		}
		t.Error("every stream got a place")
	}},
	{`watchword_password_overloads_total`, func(t *testing.T, h *harness) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // enough time for a few hashes only
		defer cancel()
		var logins sync.WaitGroup
		for range 60 {
			logins.Go(func() {
				_, _ = h.auth.Login(ctx, &watchwordv1.LoginRequest{Username: "stranger", Password: "guessed by a stranger"})
			})
		}
		logins.Wait()
	}},
	{`watchword_places_evicted_total{bound="grpc_connections"}`, func(t *testing.T, h *harness) { // the last entry of the list, since it may close the connection of h
		for range 20 {
			conn, err := net.Dial("tcp", h.server.GRPCAddr())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
		}
	}},
}

func wrongPassword(t *testing.T, h *harness) {
	_, _ = h.auth.Login(t.Context(), &watchwordv1.LoginRequest{Username: "nobody-at-all", Password: "guessed by a stranger"})
}

func logout(t *testing.T, h *harness) {
	_, err := h.auth.Logout(t.Context(), &watchwordv1.LogoutRequest{RefreshToken: h.make(t).GetRefreshToken()})
	wants(t, "a logout", outcome(err), "ok")
}

// reuse repeats refreshes in more generations than the server allows.
func reuse(t *testing.T, h *harness) {
	spent := h.make(t).GetRefreshToken()
	for _, want := range []string{"ok", "REFRESH_TOKEN_REUSED"} {
		next, err := h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: spent})
		if err != nil {
			t.Fatal(err)
		}
		wants(t, "a repeat", h.refresh(t, spent), want)
		spent = next.GetTokens().GetRefreshToken()
	}
}

// watch opens a stream of the trust bundle until the end of the test, and reads the opening.
func (h *harness) watch(t *testing.T) watchwordv1.TrustService_WatchBundleClient {
	t.Helper()
	stream, err := h.trust.WatchBundle(t.Context(), &watchwordv1.WatchBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	awaitMessage(t, stream, func(m *watchwordv1.WatchBundleResponse) bool { return m.GetHeartbeat() != nil })
	return stream
}

func awaitMessage(t *testing.T, stream watchwordv1.TrustService_WatchBundleClient, is func(*watchwordv1.WatchBundleResponse) bool) {
	t.Helper()
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if is(m) {
			return
		}
	}
}

// The value of every series changes when the counted event happens. Clients that make names up
// add no series.
func TestMetricsMove(t *testing.T) {
	h := start(t, func(c *server.Config) {
		c.MaxConnections, c.ThrottleFreeTries, c.RefreshRepeats, c.JWKSMaxAge = 16, 3, 1, 0
	})
	for name, want := range map[string]float64{
		"watchword_ready": 1, "watchword_can_sign": 1, "watchword_database_up": 1, "watchword_verifier_stale": 0,
		// Prometheus notices no increase of a series that begins with 1.
		`watchword_calls_total{method="Login",outcome="INTERNAL",service="AuthService"}`: 0, `watchword_audit_events_total{type="refresh.reused"}`: 0,
		"watchword_key_problems_total": 0, "watchword_database_forks_total": 0,
	} {
		if got, ok := h.scrape(t)[name]; !ok || got != want {
			t.Errorf("%s is %v (there: %v), want %v", name, got, ok, want)
		}
	}
	if due := h.scrape(t)["watchword_key_rotation_due_seconds"]; due < 719*3600 || due > 720*3600 {
		t.Errorf("the next rotation is due in %v s", due)
	}
	for _, move := range moves {
		before := h.scrape(t)[move.series]
		move.do(t, h)
		eventually(t, func() bool { return h.scrape(t)[move.series] > before }, func() string {
			return fmt.Sprintf("%s is %v, and was %v before", move.series, h.scrape(t)[move.series], before)
		})
	}
	storm := func(times int) {
		for i := range times {
			name := fmt.Sprintf("made-up-%d", i)
			_ = h.conn.Invoke(t.Context(), "/watchword.v1.AuthService/"+name, &emptypb.Empty{}, &emptypb.Empty{})
			_ = h.conn.Invoke(t.Context(), "/"+name+"/Login", &emptypb.Empty{}, &emptypb.Empty{})
			_, _ = h.auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: name, Audience: name})
			_, _ = h.auth.Refresh(t.Context(), &watchwordv1.RefreshRequest{RefreshToken: name, Audience: []string{name}})
			if i < 10 { // each login takes the time of a hash
				_, _ = h.auth.Login(t.Context(), &watchwordv1.LoginRequest{Username: name, Password: "guessed by a stranger"})
			}
		}
	}
	storm(1)
	before := slices.Sorted(maps.Keys(h.scrape(t)))
	storm(300)
	if after := slices.Sorted(maps.Keys(h.scrape(t))); !slices.Equal(before, after) {
		t.Errorf("%d series, and %d before a storm of made-up names", len(after), len(before))
	}
}
