package e2e

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// The names of the spans that otelgrpc makes.
const (
	loginSpan = "watchword.v1.AuthService/Login"
	listSpan  = "watchword.v1.UserService/ListUsers"
	checkSpan = "grpc.health.v1.Health/Check"
)

// TestTraces follows a login and guarded calls from the client to SQL.
func TestTraces(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) {
		c := startCollector(t)
		dir := t.TempDir()
		cmd := exec.Command(watchword(t), serveArgs(dir, "--log-level", "debug")...)
		cmd.Env = c.variables()
		tr := tracing{collector: c, server: serveCommand(t, dir, cmd), client: c.traced(t, "client")}
		login := tr.login(t)
		c.await(t, login, "login", "client/ "+loginSpan, "watchword/ "+loginSpan, "throttle.admit", "store.read", "SELECT users")
		c.await(t, login, "login", "watchword/ "+loginSpan, "store.write", "store.queue")
		c.await(t, login, "login", "watchword/ "+loginSpan, "store.write", "INSERT sessions")
		c.await(t, login, "login", "watchword/ "+loginSpan, "store.write", "store.transaction", "COMMIT")
		tr.guarded(t, "SELECT users")
		tr.privacy(t)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		c := startCollector(t)
		in := install(t, "--log-level", "debug")
		cmd := in.serveCommand(in.direct)
		cmd.Env = append(cmd.Env, c.variables()...)
		tr := tracing{collector: c, server: serveCommand(t, "", cmd), client: c.traced(t, "client")}
		login := tr.login(t)
		c.await(t, login, "login", "watchword/ "+loginSpan, "throttle.admit", "store.read", "SELECT users")
		c.await(t, login, "login", "watchword/ "+loginSpan, "store.write", "store.connection")
		c.await(t, login, "login", "watchword/ "+loginSpan, "store.write", "BEGIN; SELECT; SELECT users; SELECT")
		tr.guarded(t, "BEGIN; SELECT; SELECT users")
		tr.privacy(t)
	})
}

// tracing is a traced client of a traced server.
type tracing struct {
	collector *collector
	server    *server
	client    traced
}

func (tr tracing) dial(t *testing.T, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(append(keepErrors(), opts...), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(tr.client.options()...)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// login logs in and checks the spans that both databases have.
func (tr tracing) login(t *testing.T) trace.TraceID {
	t.Helper()
	ctx, id, end := tr.client.root(callCtx(t), "login")
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", "first-login")
	newClientLogin(t, ctx, tr.dial(t, tr.server.grpcAddr), tr.server.admin)
	end()
	for _, name := range []string{"password.wait", "password.hash", "session.sign"} {
		tr.collector.await(t, id, "login", "client/ "+loginSpan, "watchword/ "+loginSpan, name)
	}
	line := tr.server.awaitLog(t, regexp.MustCompile(`(?m)^.*Login.*request_id=first-login trace_id=(\S+).*$`))
	if line[1] != id.String() {
		t.Errorf("the log line of the login has the trace %s, want %s:\n%s", line[1], id, line[0])
	}
	return id
}

func newClientLogin(t *testing.T, ctx context.Context, conn *grpc.ClientConn, password string) {
	t.Helper()
	resp, err := watchwordv1.NewAuthServiceClient(conn).Login(ctx, &watchwordv1.LoginRequest{Username: "admin", Password: password})
	if err != nil {
		t.Fatal(err)
	}
	noteTokens(resp.GetTokens())
}

// guarded calls a guarded service of another program, and a guarded method of the server.
func (tr tracing) guarded(t *testing.T, statement string) {
	t.Helper()
	c, addr := tr.collector, tr.serveGuarded(t)
	source, err := tokensource.Password(tr.dial(t, tr.server.grpcAddr), "admin", tr.server.admin, tokensource.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	notes := healthv1.NewHealthClient(tr.dial(t, addr, source.DialOptions()...))
	for i, by := range []string{"check", ""} { // the second call finds the token in the cache
		ctx, id, end := tr.client.root(callCtx(t), "call")
		if _, err := notes.Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
			t.Fatal(err)
		}
		end()
		if got := attributeOf(c.await(t, id, "call", "client/ "+checkSpan, "notes/ "+checkSpan), "watchword.token"); got != by {
			t.Errorf("call %d: watchword.token is %q, want %q", i, got, by)
		}
		if i == 0 { // the renewal belongs to the call that caused the renewal
			c.await(t, id, "call", "client/ "+checkSpan, "tokensource.renew", "client/ "+loginSpan, "watchword/ "+loginSpan, "store.write")
		}
	}

	admin, err := tokensource.Password(tr.dial(t, tr.server.grpcAddr), "admin", tr.server.admin, tokensource.WithAudience("watchword"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx, id, end := tr.client.root(callCtx(t), "list")
	if _, err := watchwordv1.NewUserServiceClient(tr.dial(t, tr.server.grpcAddr, admin.DialOptions()...)).ListUsers(ctx, &watchwordv1.ListUsersRequest{}); err != nil {
		t.Fatal(err)
	}
	end()
	c.await(t, id, "list", "client/ "+listSpan, "watchword/ "+listSpan, "store.read", statement)
	tr.refused(t)
}

// refused makes a call without a token, and finds the reason, the request id and the trace in
// the span, the trailer and the log. The second call has a request id and a tracestate as a
// stranger may send them.
func (tr tracing) refused(t *testing.T) {
	t.Helper()
	for _, call := range []struct {
		sent             string
		want             *regexp.Regexp
		state, stateKept string
	}{
		{"refused-1", regexp.MustCompile(`^refused-1$`), "a=b", "a=b"},
		{`a "b" ` + strings.Repeat("c", 100), regexp.MustCompile(`^[0-9a-f]{16}$`), "a=" + strings.Repeat("b", 255) + ",c=" + strings.Repeat("d", 255), ""},
	} {
		ctx, id, end := tr.client.root(callCtx(t), "refused")
		var trailer metadata.MD
		_, err := watchwordv1.NewUserServiceClient(tr.dial(t, tr.server.grpcAddr)).ListUsers(
			metadata.AppendToOutgoingContext(ctx, "x-request-id", call.sent, "tracestate", call.state), &watchwordv1.ListUsersRequest{}, grpc.Trailer(&trailer))
		wantRefusal(t, "ListUsers", err, "TOKEN_MISSING")
		end()
		span := tr.collector.await(t, id, "refused", "client/ "+listSpan, "watchword/ "+listSpan)
		if got := attributeOf(span, "watchword.refused"); got != "TOKEN_MISSING" {
			t.Errorf("the reason on the span is %q, want TOKEN_MISSING", got)
		}
		if got := span.GetTraceState(); got != call.stateKept {
			t.Errorf("the tracestate on the span has %d bytes, want %q", len(got), call.stateKept)
		}
		got := strings.Join(trailer.Get("x-request-id"), ",")
		if !call.want.MatchString(got) {
			t.Errorf("the request id in the trailer is %q for %q", got, call.sent)
		}
		tr.server.awaitLog(t, regexp.MustCompile(`request_id=`+regexp.QuoteMeta(got)+` trace_id=`+id.String()))
	}
}

// serveGuarded runs a guarded service in this process, and returns its address.
func (tr tracing) serveGuarded(t *testing.T) string {
	t.Helper()
	auth, err := tokensource.Dial(tr.server.grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { auth.Close() })
	verifier, err := authn.NewVerifier(t.Context(), auth, authn.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifier.Close() })
	s := grpc.NewServer(append(verifier.ServerOptions(),
		grpc.StatsHandler(otelgrpc.NewServerHandler(tr.collector.traced(t, "notes").options()...)))...)
	healthv1.RegisterHealthServer(s, health.NewServer())
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(lis) }()
	t.Cleanup(s.Stop)
	return lis.Addr().String()
}

// privacy checks that no span has a secret, a username, or the stream of a verifier.
func (tr tracing) privacy(t *testing.T) {
	t.Helper()
	text := tr.collector.text()
	if found := leaks(text); len(found) > 0 {
		t.Errorf("the spans contain secrets: %q", found)
	}
	for _, word := range []string{"admin", "WatchBundle", "ReportWatcher"} {
		if strings.Contains(text, word) {
			t.Errorf("the spans contain %s", word)
		}
	}
}

// TestTracesAreOff checks that a server without the variables, or with one that switches traces
// off, makes no connection, no span and no id of a trace in the log.
func TestTracesAreOff(t *testing.T) {
	for name, variables := range map[string]func(*collector) []string{
		"not asked for":   func(*collector) []string { return nil },
		"no exporter":     func(c *collector) []string { return append(c.variables(), "OTEL_TRACES_EXPORTER=none") },
		"disabled":        func(c *collector) []string { return append(c.variables(), "OTEL_SDK_DISABLED=true") },
		"other protocol":  func(c *collector) []string { return append(c.variables(), "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf") },
		"other exporters": func(c *collector) []string { return append(c.variables(), "OTEL_TRACES_EXPORTER=zipkin") },
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := startCollector(t), t.TempDir()
			cmd := exec.Command(watchword(t), serveArgs(dir, "--log-level", "debug")...)
			cmd.Env = variables(c)
			s := serveCommand(t, dir, cmd)
			dial(t, s.grpcAddr).login(t, "admin", s.admin)
			s.stop(t)
			log := s.stderr.String()
			if c.connections.Load() > 0 || strings.Contains(log, "trace_id") || strings.Contains(log, "traces are on") {
				t.Errorf("%d connections to the collector, and the log\n%s", c.connections.Load(), log)
			}
			if !strings.Contains(log, "request_id=") {
				t.Errorf("the log line of the login has no request id:\n%s", log)
			}
			if other := strings.HasPrefix(name, "other"); other != strings.Contains(log, "traces are off") {
				t.Errorf("the log says that traces are off: %t, want %t", !other, other)
			}
		})
	}
}

// TestACollectorThatIsAway checks that logins go on, that the log has one line for each outage,
// that a stop sends the last spans, and that no secret of a header gets into the log.
func TestACollectorThatIsAway(t *testing.T) {
	c, dir := startCollector(t), t.TempDir()
	c.away.Store(true)
	key := noteSecret("collector-key-4711")
	cmd := exec.Command(watchword(t), serveArgs(dir)...)
	cmd.Env = append(c.variables(), "OTEL_EXPORTER_OTLP_TIMEOUT=50", "OTEL_SERVICE_NAME=auth",
		"OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20"+key+",broken=%zz"+noteSecret("broken-key-0815"))
	s := serveCommand(t, dir, cmd)
	client := dial(t, s.grpcAddr)
	client.login(t, "admin", s.admin)
	eventually(t, startTimeout, "exports that fail", func() error {
		if c.exports.Load() >= 3 {
			return nil
		}
		client.login(t, "admin", s.admin)
		return errors.New("not yet")
	})
	const lost, again = "traces are lost", "takes traces again"
	if n := strings.Count(s.stderr.String(), lost); n != 1 {
		t.Errorf("%d lines for one outage:\n%s", n, s.stderr)
	}
	c.away.Store(false)
	eventually(t, startTimeout, "a span after the outage", func() error {
		client.login(t, "admin", s.admin)
		if strings.Contains(s.stderr.String(), again) {
			return nil
		}
		return errors.New("not yet")
	})
	c.mu.Lock()
	if c.key != "Bearer "+key || c.spans[0].service != "auth" {
		t.Errorf("the collector got the key %q and the service %q", c.key, c.spans[0].service)
	}
	c.mu.Unlock()
	if !strings.Contains(s.stderr.String(), "cannot be used") {
		t.Errorf("the log does not name the broken header:\n%s", s.stderr)
	}
}

// TestTheLogOfTheExporter checks that neither a key in the place of a header's name nor a long
// text of the collector gets into the log.
func TestTheLogOfTheExporter(t *testing.T) {
	for name, headers := range map[string]string{"long text": "", "key without a name": noteSecret("key+1138+4711") + "=="} {
		t.Run(name, func(t *testing.T) {
			c, dir := startCollector(t), t.TempDir()
			c.says = strings.Repeat("a lie ", 100_000)
			cmd := exec.Command(watchword(t), serveArgs(dir)...)
			cmd.Env = append(c.variables(), "OTEL_EXPORTER_OTLP_HEADERS="+headers)
			s := serveCommand(t, dir, cmd)
			dial(t, s.grpcAddr).login(t, "admin", s.admin)
			if line := s.awaitLog(t, regexp.MustCompile(`(?m)^.*traces are lost.*$`)); len(line[0]) > 1000 {
				t.Errorf("a line of %d bytes: %.500s", len(line[0]), line[0])
			}
			s.stop(t) // the end of the test searches the log for the key
		})
	}
}

// TestAStopSendsTheLastSpans checks the spans of a call directly before the stop.
func TestAStopSendsTheLastSpans(t *testing.T) {
	c, dir := startCollector(t), t.TempDir()
	cmd := exec.Command(watchword(t), serveArgs(dir)...)
	cmd.Env = append(c.variables(), "OTEL_BSP_SCHEDULE_DELAY=3600000") // of two variables with the same name, the program reads the later one
	s := serveCommand(t, dir, cmd)
	dial(t, s.grpcAddr).login(t, "admin", s.admin)
	s.stop(t)
	if text := c.text(); !strings.Contains(text, loginSpan) || !strings.Contains(text, "password.hash") {
		t.Errorf("the collector has only\n%s", text)
	}
}
