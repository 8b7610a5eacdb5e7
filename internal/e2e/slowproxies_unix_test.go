//go:build unix

package e2e

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const (
	heartbeat = 5 * time.Second
	// streamBackoff is the longest pause between two streams of a verifier.
	streamBackoff = 10 * time.Second
)

// proxied is a server behind a proxy, with a verifier, and a client that calls all the time.
type proxied struct {
	server   *server
	flags    []string // the flags of the server
	gateway  *gateway
	client   *client
	verifier *authn.Verifier
	outages  *outages
	calls    *steadyCalls
}

// startProxied starts a server, a proxy with a configuration, a verifier, and the calls of another
// client.
func startProxied(t *testing.T, kind gatewayKind, config string) *proxied {
	t.Helper()
	ca := newAuthority(t, t.TempDir(), "ca")
	_, cert, key := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	flags := []string{"--trusted-proxy", "127.0.0.1", "--tls-cert", cert, "--tls-key", key}
	b := &proxied{server: serve(t, t.TempDir(), flags...), flags: flags, outages: &outages{}}
	b.gateway = kind.start(t, ca, config, b.server.grpcAddr, b.server.httpAddr)
	b.client = b.gateway.dial(t, "127.0.0.21")
	var err error
	b.verifier, err = authn.NewVerifier(callCtx(t), b.gateway.dial(t, "127.0.0.22").conn, authn.WithAudience("internal"), authn.WithLogger(slog.New(b.outages)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.verifier.Close() })
	b.calls = callSteadily(t, b.gateway.dial(t, "127.0.0.23"))
	return b
}

// restart stops the server, and starts the server again at the same addresses.
func (b *proxied) restart(t *testing.T) {
	t.Helper()
	before := b.server
	before.stop(t)
	args := append([]string{"serve", "--grpc-addr", before.grpcAddr, "--http-addr", before.httpAddr, "--datastore-uri", database(before.dir)}, b.flags...)
	b.server = serveCommand(t, before.dir, exec.Command(watchword(t), args...))
	b.server.admin = before.admin
}

// wantRevocation logs in and out through the proxy, and waits until the verifier behind the proxy
// refuses the token.
func (b *proxied) wantRevocation(t *testing.T, when string) {
	t.Helper()
	pair := b.client.login(t, "admin", b.server.admin)
	_, err := b.verifier.Verify(callCtx(t), pair.GetAccessToken())
	wantOK(t, when+": the token before the logout", err)
	wantOK(t, when+": the logout", b.client.logout(callCtx(t), pair))
	took := eventually(t, streamBackoff+propagation, when+": the revocation", func() error {
		_, err := b.verifier.Verify(t.Context(), pair.GetAccessToken())
		return checkRefusal(err, "TOKEN_REVOKED")
	})
	t.Logf("%s: refused %v after the logout", when, took)
}

// wantShortOutages waits until the verifier has had more than one stream, and checks that no
// outage was longer than the backoff.
func (b *proxied) wantShortOutages(t *testing.T, after string) {
	t.Helper()
	eventually(t, 6*streamBackoff, after+": another stream", func() error {
		if count, longest := b.outages.read(); count == 0 {
			return fmt.Errorf("%d outages, the longest of %v", count, longest)
		}
		return nil
	})
	b.wantRevocation(t, after)
	count, longest := b.outages.read()
	t.Logf("%s: %d outages, the longest %v", after, count, longest)
	if longest > streamBackoff+propagation {
		t.Errorf("%s: the verifier had no stream for %v", after, longest)
	}
	b.outages.mu.Lock()
	defer b.outages.mu.Unlock()
	b.outages.count, b.outages.longest = 0, 0
}

// Through nginx, HAProxy and Caddy, with the configurations of docs/proxies.md: the server knows
// the address of the client; a client with long headers, and a client with very many streams,
// disturb no other client; streams outlive the idle timeouts by two minutes; a reload of the
// proxy and a restart of the server end no stream for longer than the backoff; and a verifier
// behind the proxy refuses a token after its logout, each time.
func TestSlowBehindAProxy(t *testing.T) {
	slow(t)
	idle, behind := time.Minute, []*proxied{}
	for _, kind := range gatewayKinds {
		b := startProxied(t, kind, kind.block(t))
		behind, idle = append(behind, b), max(idle, longestTimeout(t, kind.block(t)))
		t.Run(kind.name, func(t *testing.T) {
			b.wantKeySet(t)
			b.wantSource(t)
			b.wantRevocation(t, "at the beginning")
			b.longHeaders(t)
			b.crowd(t)
		})
	}
	idle += 2 * time.Minute
	var others []*openStream
	for _, b := range behind {
		others = append(others, keepOpen(t, b.gateway.dial(t, "127.0.0.24").conn, nil))
		wantOK(t, "a stream", others[len(others)-1].opened(t))
	}
	select {
	case <-time.After(idle):
	case <-t.Context().Done():
	}
	for i, b := range behind {
		t.Run(b.gateway.kind.name+" after "+idle.String(), func(t *testing.T) {
			others[i].wantServed(t, "a stream of another client")
			b.wantEveryStream(t)
			b.wantRevocation(t, "after the time")
			b.calls.wantNone(t, "after the time")
			b.reloadAndRestart(t)
		})
	}
}

// wantEveryStream checks that neither stream of the verifier has ended.
func (b *proxied) wantEveryStream(t *testing.T) {
	t.Helper()
	if count, _ := b.outages.read(); count > 0 {
		t.Errorf("the proxy has ended %d streams of the verifier", count)
	}
	if ended := b.server.metric(t, `watchword_calls_total\{method="ReportWatcher",outcome="OK",service="TrustService"\}`); ended > 0 ||
		b.server.metric(t, `watchword_places_taken\{bound="reports"\}`) != 1 {
		t.Error("the first stream of ReportWatcher has ended")
	}
}

// reloadAndRestart reloads the proxy, and then stops and starts the server.
func (b *proxied) reloadAndRestart(t *testing.T) {
	t.Helper()
	b.gateway.kind.reload(t, b.gateway)
	b.client = b.gateway.dial(t, "127.0.0.21") // a connection to the new configuration
	if b.gateway.kind.endless {
		b.wantRevocation(t, "after the reload of the proxy")
	} else {
		b.wantShortOutages(t, "after the reload of the proxy")
	}
	b.calls.wantNone(t, "after the reload of the proxy")
	b.restart(t)
	b.wantShortOutages(t, "after the restart of the server")
	t.Logf("%d calls of another client", b.calls.wantNone(t, "after the restart of the server"))
}

// longestTimeout returns the longest idle timeout of a configuration, or a minute.
func longestTimeout(t *testing.T, config string) time.Duration {
	t.Helper()
	longest := time.Minute
	for _, m := range regexp.MustCompile(`timeout[a-z_ -]* ([0-9]+[smh])\b`).FindAllStringSubmatch(config, -1) {
		d, err := time.ParseDuration(m[1])
		if err != nil {
			t.Fatal(err)
		}
		longest = max(longest, d)
	}
	return longest
}

// wantKeySet checks that the proxy forwards the key set, and neither metrics nor readiness.
func (b *proxied) wantKeySet(t *testing.T) {
	t.Helper()
	config := b.gateway.ca.trusting()
	config.ServerName = "auth.example"
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	for path, want := range map[string]bool{"/.well-known/jwks.json": true, "/.well-known/openid-configuration": true, "/metrics": false, "/readyz": false} {
		req, err := http.NewRequestWithContext(callCtx(t), "GET", "https://"+b.gateway.addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "auth.example"
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if (resp.StatusCode == http.StatusOK) != want {
			t.Errorf("%s: status %d; forwarded: %v", path, resp.StatusCode, want)
		}
	}
}

// wantSource checks that the security record has the client's address, and not an address that
// the client has written into headers of its own.
func (b *proxied) wantSource(t *testing.T) {
	t.Helper()
	const client = "127.0.0.27"
	c := b.gateway.dial(t, client)
	for _, forged := range []string{"203.0.113.1", "203.0.113.1, 127.0.0.1", "127.0.0.1"} {
		ctx := metadata.AppendToOutgoingContext(callCtx(t), "x-forwarded-for", forged)
		wantRefusal(t, "a guess", c.tryLogin(ctx, "guest", newPassword()), "INVALID_CREDENTIALS")
	}
	eventually(t, propagation, "the record of the guesses", func() error {
		guesses := int64(0)
		for _, r := range auditRecords(t, b.server, "--type", "login") {
			if r.Reason != "INVALID_CREDENTIALS" {
				continue
			}
			if guesses += r.Count; r.Source != client {
				return fmt.Errorf("a guess from %s, want %s", r.Source, client)
			}
		}
		if guesses != 3 {
			return fmt.Errorf("%d guesses, want 3", guesses)
		}
		return nil
	})
}

// longHeaders makes calls with 20 kB of headers, in one field and in many. Each call is refused,
// and the streams of the same connection, of other clients and of the verifier go on. Far longer
// headers may end the connection between their client and the proxy, and no other.
func (b *proxied) longHeaders(t *testing.T) {
	t.Helper()
	long := func(c *client, bytes, fields int) error {
		ctx := callCtx(t)
		for range fields {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-long", strings.Repeat("x", bytes/fields))
		}
		_, err := c.GetKeySet(ctx, &watchwordv1.GetKeySetRequest{})
		return err
	}
	others := keepOpen(t, b.gateway.dial(t, "127.0.0.24").conn, nil)
	wantOK(t, "a stream of another client", others.opened(t))
	c := b.gateway.dial(t, "127.0.0.25")
	own := keepOpen(t, c.conn, nil)
	wantOK(t, "a stream of the same connection", own.opened(t))
	for _, fields := range []int{1, 50} { // HAProxy takes at most 101 fields
		wantRefusal(t, fmt.Sprintf("20 kB of headers in %d fields", fields), long(c, 20_000, fields), "INVALID_REQUEST")
	}
	own.wantServed(t, "after 20 kB of headers on the same connection")
	for _, bytes := range []int{70_000, 300_000, 3_000_000} {
		for _, fields := range []int{1, 100} {
			if err := long(b.gateway.dial(t, "127.0.0.25"), bytes, fields); err == nil {
				t.Errorf("%d bytes of headers in %d fields were accepted", bytes, fields)
			}
		}
	}
	b.calls.wantNone(t, "after long headers")
	others.wantServed(t, "after long headers of another client")
	if count, _ := b.outages.read(); count > 0 {
		t.Error("long headers have ended the stream of the verifier")
	}
}

// crowd opens more streams of one client than one connection of the server carries.
func (b *proxied) crowd(t *testing.T) {
	t.Helper()
	var streams []*openStream
	for range 3 {
		c := b.gateway.dial(t, "127.0.0.26")
		for range 70 {
			streams = append(streams, keepOpen(t, c.conn, nil))
		}
	}
	for _, s := range streams {
		if err := s.opened(t); err != nil && status.Code(err) != codes.ResourceExhausted {
			t.Fatalf("a stream of a crowd: %v", err)
		}
	}
	wantOK(t, "a stream beside a crowd", keepOpen(t, b.gateway.dial(t, "127.0.0.24").conn, nil).opened(t))
	b.calls.wantNone(t, "with a crowd")
	if count, _ := b.outages.read(); count > 0 {
		t.Error("a crowd has ended the stream of the verifier")
	}
}

// An idle timeout below the time between two heartbeats ends each stream of a verifier. The
// verifier opens the next stream, and knows each revocation.
func TestSlowAProxyWithShortTimeouts(t *testing.T) {
	slow(t)
	for _, kind := range gatewayKinds {
		if kind.name == "caddy" {
			continue // has no idle timeout of streams
		}
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			b := startProxied(t, kind, regexp.MustCompile(`(timeout[a-z_ ]*) 1m\b`).ReplaceAllString(kind.block(t), "$1 2s"))
			for range 3 {
				eventually(t, heartbeat+streamBackoff, "an outage", func() error {
					if count, _ := b.outages.read(); count == 0 {
						return errors.New("no stream has ended")
					}
					return nil
				})
				b.wantShortOutages(t, "with a timeout of two seconds")
			}
		})
	}
}

// listensForHeaders starts a gRPC server that refuses its first call. The channel gets the values
// of x-forwarded-for.
func listensForHeaders(t *testing.T) (addr string, forwarded <-chan []string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []string, 1)
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		got <- metadata.ValueFromIncomingContext(stream.Context(), "x-forwarded-for")
		return status.Error(codes.Unimplemented, "only for its headers")
	}))
	go s.Serve(lis)
	t.Cleanup(s.Stop)
	return lis.Addr().String(), got
}

// A server without TLS on the machine of the proxy needs the lines in the table of
// docs/proxies.md. Each proxy writes x-forwarded-for in the form that the page says. An nginx
// before 1.23.4 needs the line grpc_ssl_protocols for a server with TLS.
func TestSlowProxyLines(t *testing.T) {
	slow(t)
	for _, kind := range gatewayKinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			ca := newAuthority(t, t.TempDir(), "ca")
			s := serve(t, t.TempDir(), "--trusted-proxy", "127.0.0.1")
			kind.start(t, ca, kind.plainBlock(t), s.grpcAddr, s.httpAddr).dial(t, "127.0.0.21").login(t, "admin", s.admin)

			addr, forwarded := listensForHeaders(t)
			c := kind.start(t, ca, kind.plainBlock(t), addr, addr).dial(t, "127.0.0.27")
			ctx := metadata.AppendToOutgoingContext(callCtx(t), "x-forwarded-for", "203.0.113.1")
			if _, err := c.GetKeySet(ctx, &watchwordv1.GetKeySetRequest{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("through %s: %v, want UNIMPLEMENTED of the test's server", kind.name, err)
			}
			want := map[string][]string{
				"nginx": {"203.0.113.1, 127.0.0.27"}, "haproxy": {"203.0.113.1", "127.0.0.27"}, "caddy": {"127.0.0.27"},
			}[kind.name]
			if got := <-forwarded; !slices.Equal(got, want) {
				t.Errorf("%s sends x-forwarded-for %q, and docs/proxies.md says %q", kind.name, got, want)
			}

			_, cert, key := newAuthority(t, t.TempDir(), "another").issue(t, "server", x509.ExtKeyUsageServerAuth)
			s = serve(t, t.TempDir(), "--tls-cert", cert, "--tls-key", key)
			c = kind.start(t, ca, kind.block(t), s.grpcAddr, s.httpAddr).dial(t, "127.0.0.21")
			if _, err := c.GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{}); status.Code(err) != codes.Unavailable {
				t.Errorf("a server with a certificate of another CA behind %s: %v, want UNAVAILABLE", kind.name, err)
			}
		})
	}
	t.Run("nginx without TLS 1.3", func(t *testing.T) {
		t.Parallel()
		kind := gatewayKinds[0]
		var minor, patch int
		version := run(t, exec.Command(kind.program(t), "-v")).stderr
		if _, err := fmt.Sscanf(version[strings.Index(version, "1."):], "1.%d.%d", &minor, &patch); err != nil {
			t.Fatalf("%v in %q", err, version)
		}
		if minor > 23 || minor == 23 && patch >= 4 {
			t.Skip("this nginx offers TLS 1.3 by itself")
		}
		ca := newAuthority(t, t.TempDir(), "ca")
		_, cert, key := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
		s := serve(t, t.TempDir(), "--tls-cert", cert, "--tls-key", key)
		config := regexp.MustCompile(`(?m)^ *grpc_ssl_protocols .*\n`).ReplaceAllString(kind.block(t), "")
		c := kind.start(t, ca, config, s.grpcAddr, s.httpAddr).dial(t, "127.0.0.21")
		if _, err := c.GetKeySet(callCtx(t), &watchwordv1.GetKeySetRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "502") {
			t.Errorf("without the line grpc_ssl_protocols: %v, want UNAVAILABLE with the status 502", err)
		}
	})
}
