package e2e

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/strangertest"
)

// Some proxies, such as nginx, make a connection for each call. Two clients that hold as many
// streams as the bounds allow leave room for the calls of other clients of the same proxy.
func TestTwoClientsBehindAProxyLeaveRoom(t *testing.T) {
	t.Parallel()
	const watchers, health = 24, 8 // what one client can hold of 64 connections
	s := serve(t, t.TempDir(), "--trusted-proxy", "127.0.0.50", "--max-connections", "64")
	call := func(client, method string, end bool, request []byte) *strangertest.Conn {
		t.Helper()
		c := strange(t, "127.0.0.50", s.grpcAddr)
		if err := c.Headers(1, method, false, "x-forwarded-for", client); err != nil {
			t.Fatal(err)
		}
		if err := c.Data(1, end, request); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, client := range []string{"198.51.100.7", "203.0.113.8"} {
		for i := range watchers {
			call(client, watchwordv1.TrustService_WatchBundle_FullMethodName, true, strangertest.Message(&watchwordv1.WatchBundleRequest{}))
			call(client, watchwordv1.TrustService_ReportWatcher_FullMethodName, false, strangertest.Message(&watchwordv1.ReportWatcherRequest{Message: &watchwordv1.ReportWatcherRequest_Identity{
				Identity: &watchwordv1.WatcherIdentity{Watcher: fmt.Appendf(nil, "%s %9d", client[:6], i)}}}))
		}
		for range health {
			call(client, healthv1.Health_Watch_FullMethodName, true, make([]byte, 5))
		}
	}
	for bound, want := range map[string]int{"watchers": 2 * watchers, "reports": 2 * watchers, "streams": 2 * health} {
		eventually(t, propagation, bound, func() error {
			if got := s.metric(t, `watchword_places_taken\{bound="`+bound+`"\}`); got != want {
				return fmt.Errorf("%d places taken, want %d", got, want)
			}
			return nil
		})
	}
	c := call("192.0.2.9", login, true, strangertest.Message(&watchwordv1.LoginRequest{Username: "admin", Password: s.admin}))
	if a, err := c.AnswerTo(callCtx(t), 1); err != nil || a.Status.Code() != codes.OK {
		t.Errorf("a login of another client: %+v, %v", a, err)
	}
}
