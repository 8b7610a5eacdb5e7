package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// stopBound bounds the time of a stop without calls in flight: half of the default of
// --drain-timeout. A stop takes some milliseconds, on a busy machine more than a second.
const stopBound = 5 * time.Second

func TestStopsCleanly(t *testing.T) {
	t.Run("with idle streams", stopsWithIdleStreams)
	t.Run("with silent connections", stopsWithSilentConnections)
	t.Run("with calls in flight", stopsWithCallsInFlight)
}

// idleStream is a stream that has sent the first answers and is silent now.
type idleStream struct {
	name string
	recv func() error
}

// stopsWithIdleStreams stops a server with many open streams. The stop must take less than
// stopBound.
func stopsWithIdleStreams(t *testing.T) {
	const conns, watchers = 10, 100
	s := serve(t, t.TempDir())
	var streams []idleStream
	for range conns {
		c := dial(t, s.grpcAddr)
		for range watchers / conns {
			streams = append(streams, watchBundle(t, c))
		}
	}
	streams = append(streams, watchHealth(t, dial(t, s.grpcAddr).conn), reflect(t, dial(t, s.grpcAddr).conn))
	if body := get(t, "http://"+s.httpAddr+"/readyz"); body != "ok\n" { // leaves an open HTTP connection
		t.Errorf("/readyz returned %q, want ok", body)
	}

	ends := make(chan error, len(streams))
	for _, stream := range streams {
		go func() { ends <- stream.end() }()
	}
	took := s.stop(t)
	t.Logf("stopped in %v with %d streams", took, len(streams))
	if log := strings.TrimSpace(s.stderr.String()); !strings.HasSuffix(log, "level=INFO msg=stopped") {
		t.Errorf("the last line of the log is not `stopped`:\n%s", log)
	}
	if took >= stopBound {
		t.Errorf("stopping took %v, want less than %v", took, stopBound)
	}
	for range streams {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
}

// end reads until the stream ends, and returns an error unless the stream ends with
// UNAVAILABLE.
func (s idleStream) end() error {
	for {
		if err := s.recv(); status.Code(err) == codes.Unavailable {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s ended with %w, want UNAVAILABLE", s.name, err)
		}
	}
}

// watchBundle opens a stream, and returns after the snapshot and the first heartbeat.
func watchBundle(t *testing.T, c *client) idleStream {
	t.Helper()
	stream, err := c.WatchBundle(callCtx(t), &watchwordv1.WatchBundleRequest{})
	for beat := false; err == nil && !beat; {
		var message *watchwordv1.WatchBundleResponse
		message, err = stream.Recv()
		beat = message.GetHeartbeat() != nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return idleStream{"WatchBundle", func() error { _, err := stream.Recv(); return err }}
}

func watchHealth(t *testing.T, conn *grpc.ClientConn) idleStream {
	t.Helper()
	stream, err := healthv1.NewHealthClient(conn).Watch(callCtx(t), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("health: got %v, error %v; want SERVING", resp, err)
	}
	return idleStream{"health", func() error { _, err := stream.Recv(); return err }}
}

func reflect(t *testing.T, conn *grpc.ClientConn) idleStream {
	t.Helper()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(callCtx(t))
	if err == nil {
		err = stream.Send(&reflectionv1.ServerReflectionRequest{
			MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || len(resp.GetListServicesResponse().GetService()) == 0 {
		t.Fatalf("reflection: got %v, error %v; want a list of services", resp, err)
	}
	return idleStream{"reflection", func() error { _, err := stream.Recv(); return err }}
}

// stopsWithSilentConnections opens a connection and sends no bytes, as a load balancer does
// for a check of the port or for a pool of connections.
func stopsWithSilentConnections(t *testing.T) {
	for _, address := range []struct {
		name string
		of   func(*server) string
	}{
		{"grpc", func(s *server) string { return s.grpcAddr }},
		{"http", func(s *server) string { return s.httpAddr }},
	} {
		t.Run(address.name, func(t *testing.T) {
			s := serve(t, t.TempDir())
			conn, err := net.Dial("tcp", address.of(s))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			took := s.stop(t)
			t.Logf("stopped in %v", took)
			if took >= stopBound {
				t.Errorf("stopping took %v, want less than %v", took, stopBound)
			}
		})
	}
}

// stopsWithCallsInFlight sends SIGTERM during logins. The server must answer every login
// that has begun.
func stopsWithCallsInFlight(t *testing.T) {
	const logins = 8 // more than the server hashes at a time, so some logins wait in the queue
	for range 5 {
		s := serve(t, t.TempDir())
		clients := make([]*client, logins)
		for i := range clients {
			clients[i] = dial(t, s.grpcAddr)
			if _, err := clients[i].GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{}); err != nil { // opens the connection
				t.Fatal(err)
			}
		}
		answers := make(chan error, logins)
		for _, c := range clients {
			go func() { answers <- c.tryLogin(t.Context(), "admin", s.admin) }()
		}
		var handled int
		eventually(t, runTimeout, "beginning all logins", func() error {
			var started int
			if started, handled = s.countLogins(t); started < logins {
				return errors.New("some logins have not begun")
			}
			return nil
		})
		took := s.stop(t)
		for range logins {
			wantOK(t, "a login that began before SIGTERM", <-answers)
		}
		if handled < logins {
			t.Logf("stopped in %v with %d logins in flight", took, logins-handled)
			return
		}
	}
	t.Error("in five rounds, all logins ended before SIGTERM")
}

// countLogins returns the numbers of begun and of ended logins, from the metrics. A login that
// moves on while countLogins reads counts once at most.
func (s *server) countLogins(t *testing.T) (started, handled int) {
	t.Helper()
	handled = s.metric(t, `watchword_calls_total\{method="Login",outcome="OK",service="AuthService"\}`)
	started = handled + s.metric(t, "watchword_password_hashes_running")
	return started + s.metric(t, `watchword_places_taken\{bound="password_queue_of_admins"\}`) + s.metric(t, `watchword_places_taken\{bound="password_queue"\}`), handled
}

// TestHealthcheckOfAKilledServer also checks that the harness sees a killed server's status.
func TestHealthcheckOfAKilledServer(t *testing.T) {
	s := serve(t, t.TempDir())
	s.kill()
	if code := s.cmd.ProcessState.ExitCode(); code == 0 {
		t.Error("a killed server ended with status 0")
	}
	r := run(t, exec.Command(watchword(t), "healthcheck", "--plaintext", "--addr", s.grpcAddr))
	wantExit(t, 1, r)
}

// TestShutdownDelay stops a server with --shutdown-delay. The server turns readiness off at
// once and goes on serving new calls on new connections. A second signal ends the server.
func TestShutdownDelay(t *testing.T) {
	s := serve(t, t.TempDir(), "--shutdown-delay", "1h")
	health := healthv1.NewHealthClient(dial(t, s.grpcAddr).conn)
	watch, err := health.Watch(callCtx(t), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantHealth := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if got, err := watch.Recv(); err != nil || got.GetStatus() != want {
			t.Fatalf("the health stream says %v, %v, want %v", got, err, want)
		}
	}
	wantHealth(healthv1.HealthCheckResponse_SERVING)
	s.signal(t, syscall.SIGTERM)
	wantHealth(healthv1.HealthCheckResponse_NOT_SERVING)
	resp, err := http.Get("http://" + s.httpAddr + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("/readyz answers %s, want 503", resp.Status)
	}
	dial(t, s.grpcAddr).login(t, "admin", s.admin)
	if body := get(t, "http://"+s.httpAddr+"/healthz"); body != "ok\n" {
		t.Errorf("/healthz answers %q", body)
	}

	s.killed = true // ends by the signal
	s.signal(t, syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(runTimeout):
		t.Error("the server continues after the second signal")
	}
}
