package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/strangertest"
)

// Bounds on what a stranger, a client without a password, can cause. The figures are those
// of a server without flags.
const (
	requestsPerPeer = 256
	watchesPerPeer  = 64
	requestArrival  = 10 * time.Second
)

var (
	login = watchwordv1.AuthService_Login_FullMethodName
	// overloaded is in every refusal by a bound.
	overloaded = watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED
)

// strange connects a stranger, and closes the connection at the end of the test.
func strange(t *testing.T, ip, addr string) *strangertest.Conn {
	t.Helper()
	c, err := strangertest.Connect(ip, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A hundred connections of one address send the headers of a thousand requests each, and
// nothing more. The server keeps a bounded number of them, refuses the rest with a reason,
// and serves others at once.
func TestUnfinishedRequestsAreBounded(t *testing.T) {
	t.Parallel()
	const conns, streams = 100, 1000
	s := serve(t, t.TempDir())
	before := s.memory(t, "VmRSS")
	calm := s.metric(t, "go_goroutines")
	refused := 0
	for range conns {
		c := strange(t, "127.0.0.9", s.grpcAddr)
		for i := range uint32(streams) {
			if err := c.Headers(2*i+1, login, false); err != nil {
				t.Fatal(err)
			}
		}
		a, err := c.AnswerTo(callCtx(t), 2*(streams-1)+1) // the last request is one more than the streams that a connection allows
		if err != nil || a.Status != nil || a.Reset != http2.ErrCodeRefusedStream {
			// The last request can also be refused as one more than the requests of a peer. On a
			// slow machine earlier requests may have timed out before, and the last request then
			// times out too.
			switch {
			case err == nil && a.Status.Code() == codes.DeadlineExceeded:
			case err == nil && authn.Reason(a.Status.Err()) == overloaded:
				refused++
			default:
				t.Fatalf("the last of %d requests: %+v, %v", streams, a, err)
			}
		}
	}
	if refused == 0 {
		t.Error("no request was refused by the bound of the peer")
	}
	dialFrom(t, "127.0.0.1", s.grpcAddr).login(t, "admin", s.admin)
	if grown := s.metric(t, "go_goroutines") - calm; grown > requestsPerPeer+10*conns {
		t.Errorf("%d more goroutines: more than the requests of one peer and the connections", grown)
	}
	if most := s.memory(t, "VmHWM"); most > before+100 {
		t.Errorf("the server grew from %d to %d MiB", before, most)
	}
}

// A request that does not arrive whole ends by itself, on every method but the streams that
// are meant to last.
func TestARequestThatDoesNotArriveEnds(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	half := strangertest.Message(&watchwordv1.LoginRequest{Username: "admin", Password: "half a request"})
	half = half[:len(half)/2]
	c := strange(t, "127.0.0.9", s.grpcAddr)
	methods := []string{login, watchwordv1.TrustService_WatchBundle_FullMethodName, "/grpc.health.v1.Health/Watch",
		"/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"}
	began := time.Now()
	for i, method := range methods {
		if err := c.Headers(uint32(2*i+1), method, false); err != nil {
			t.Fatal(err)
		}
		if err := c.Data(uint32(2*i+1), false, half[:2]); err != nil {
			t.Fatal(err)
		}
	}
	for i, method := range methods {
		a, err := c.AnswerTo(callCtx(t), uint32(2*i+1))
		if err != nil || a.Status.Code() != codes.DeadlineExceeded {
			t.Errorf("%s: %+v, %v", method, a, err)
		}
	}
	if took := time.Since(began); took < requestArrival {
		t.Errorf("ended after %v: an honest request on a slow line has %v", took, requestArrival)
	}
	watchHealth(t, dial(t, s.grpcAddr).conn)
}

// One unfinished request does not hold a stop for the drain timeout.
func TestAnUnfinishedRequestDoesNotHoldAStop(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	c := strange(t, "127.0.0.9", s.grpcAddr)
	for i, method := range []string{login, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"} {
		if err := c.Headers(uint32(2*i+1), method, false); err != nil {
			t.Fatal(err)
		}
	}
	// The answer to a later request shows that the server has read the headers before.
	if err := c.Headers(9, "/no.such.Service/Method", true); err != nil {
		t.Fatal(err)
	}
	if a, err := c.AnswerTo(callCtx(t), 9); err != nil || a.Status.Code() != codes.Unimplemented {
		t.Fatalf("an unknown method: %+v, %v", a, err)
	}
	if took := s.stop(t); took >= 5*time.Second { // half of the ten seconds of --drain-timeout
		t.Errorf("stopping took %v", took)
	}
}

// Refused calls leave nothing in memory, whatever deadline they have. gRPC keeps a timer
// for the deadline of a call that a tap refuses.
func TestRefusedCallsLeaveNothing(t *testing.T) {
	t.Parallel()
	const conns, calls = 6, 20_000
	s := serve(t, t.TempDir())
	before := s.memory(t, "VmRSS")
	for i := range conns {
		c := strange(t, fmt.Sprint("127.0.0.", 9+i), s.grpcAddr)
		for stream := uint32(1); stream < 2*calls; stream += 2 {
			if err := c.Headers(stream, "/no.such.Service/Method", true, "grpc-timeout", "99999999H"); err != nil {
				t.Fatal(err)
			}
		}
		if a, err := c.AnswerTo(callCtx(t), 2*calls-1); err != nil || a.Status.Code() != codes.Unimplemented && a.Reset != http2.ErrCodeRefusedStream {
			t.Fatalf("an unknown method: %+v, %v", a, err)
		}
	}
	if most := s.memory(t, "VmHWM"); most > before+40 { // 65 MiB more if the server kept a timer for each refused call
		t.Errorf("the server grew from %d to %d MiB", before, most)
	}
}

// Metadata above 16 KiB is refused for its own stream, with a reason; the other streams of
// the connection live on: a proxy carries everybody over one connection.
func TestLongMetadataIsRefusedForItsStreamAlone(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	c := strange(t, "127.0.0.9", s.grpcAddr)
	if err := c.Headers(1, login, false); err != nil {
		t.Fatal(err)
	}
	for i, size := range []int{17_000, 50_000} {
		stream := uint32(2*i + 3)
		if err := c.Headers(stream, login, false, "x-long", strings.Repeat("x", size)); err != nil {
			t.Fatal(err)
		}
		a, err := c.AnswerTo(callCtx(t), stream)
		if err != nil || a.Status.Code() != codes.InvalidArgument || authn.Reason(a.Status.Err()) != watchwordv1.ErrorReason_ERROR_REASON_INVALID_REQUEST {
			t.Errorf("%d bytes of metadata: %+v, %v", size, a, err)
		}
	}
	if err := c.Data(1, true, strangertest.Message(&watchwordv1.LoginRequest{Username: "admin", Password: s.admin})); err != nil {
		t.Fatal(err)
	}
	if a, err := c.AnswerTo(callCtx(t), 1); err != nil || a.Status.Code() != codes.OK {
		t.Errorf("the login beside: %+v, %v", a, err)
	}
}

// A message in frames of one byte costs the server a bounded multiple of its bytes: a request
// that takes more than a thousand such frames ends, and the other calls of its connection go
// on. A proxy carries the calls of many clients over one connection.
func TestMessagesInCrumbs(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	before := s.memory(t, "VmRSS")
	for i := range 20 {
		c := strange(t, fmt.Sprint("127.0.0.", 9+i), s.grpcAddr)
		for stream := uint32(1); stream < 40; stream += 2 {
			if err := errors.Join(c.Headers(stream, login, false), c.Data(stream, false, []byte{0, 0, 0, 0xff, 0xf0}),
				c.Crumbs(stream, 64_000)); err != nil {
				t.Fatal(err)
			}
		}
		if !alive(c, 41) {
			t.Fatal("the other calls of the connection have ended")
		}
	}
	if most := s.memory(t, "VmHWM"); most > before+60 {
		t.Errorf("the server grew from %d to %d MiB", before, most)
	}
	// A request that arrives in a few pieces is served.
	c := strange(t, "127.0.0.9", s.grpcAddr)
	if err := c.Headers(1, login, false); err != nil {
		t.Fatal(err)
	}
	whole := strangertest.Message(&watchwordv1.LoginRequest{Username: "admin", Password: s.admin})
	for i := range whole {
		if err := c.Data(1, i == len(whole)-1, whole[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if a, err := c.AnswerTo(callCtx(t), 1); err != nil || a.Status.Code() != codes.OK {
		t.Errorf("a login in pieces: %+v, %v", a, err)
	}
}

// A client that reads no answer can hold no more than a client that never ends its requests:
// gRPC keeps the request, its metadata and the answer until the answer is on its way.
func TestUnreadAnswersAreBounded(t *testing.T) {
	t.Parallel()
	const conns = 200
	s := serve(t, t.TempDir())
	before := s.memory(t, "VmRSS")
	for range conns {
		c, err := strangertest.ConnectDeaf("127.0.0.9", s.grpcAddr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		for stream := uint32(1); stream < 200; stream += 2 {
			long := strings.Repeat("x", 2600)
			if err := errors.Join(c.Headers(stream, "/grpc.health.v1.Health/Check", false, "x-a", long, "x-b", long, "x-c", long, "x-d", long, "x-e", long),
				c.Data(stream, true, []byte{0, 0, 0, 0, 0})); err != nil {
				break // the server has closed the connection
			}
		}
	}
	dial(t, s.grpcAddr).login(t, "admin", s.admin)
	if most := s.memory(t, "VmHWM"); most > before+100 {
		t.Errorf("the server grew from %d to %d MiB", before, most)
	}
}

// One address can open a bounded number of streams that have no end of their own, and
// another address still gets one.
func TestStreamsAreBoundedPerPeer(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	greedy := healthv1.NewHealthClient(dialFrom(t, "127.0.0.9", s.grpcAddr).conn)
	for i := range watchesPerPeer + 1 {
		stream, err := greedy.Watch(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if refused := err != nil; refused != (i == watchesPerPeer) {
			t.Fatalf("stream %d: %v", i+1, err)
		}
		if err != nil && (status.Code(err) != codes.ResourceExhausted || authn.Reason(err) != overloaded) {
			t.Errorf("refused with %v", err)
		}
	}
	watchHealth(t, dial(t, s.grpcAddr).conn)
}

// With few files to open, idle connections of strangers keep neither the health check, nor
// a login, nor the metrics from their files; nor do idle connections of the same address.
func TestIdleConnectionsTakeNoFilesOfOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serveCommand(t, dir, exec.Command("sh", append([]string{"-c", `ulimit -n 256; exec "$@"`, "sh", watchword(t)}, serveArgs(dir)...)...))
	var idle []net.Conn
	t.Cleanup(func() {
		for _, c := range idle {
			c.Close()
		}
	})
	for i := range 300 {
		for _, addr := range []string{s.grpcAddr, s.httpAddr} {
			c, err := strangertest.From([]string{"127.0.0.1", "127.0.0.9", "127.0.0.10"}[i%3]).Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, c)
		}
	}
	for range 3 {
		cmd := exec.Command(watchword(t), "healthcheck", "--addr", s.grpcAddr, "--plaintext")
		cmd.Env = environment()
		if r := run(t, cmd); r.code != 0 {
			t.Errorf("health check: %s", r)
		}
		dial(t, s.grpcAddr).login(t, "admin", s.admin)
		for _, page := range []string{"/healthz", "/readyz", "/metrics"} {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: runTimeout}
			resp, err := client.Get("http://" + s.httpAddr + page)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", page, resp.Status)
			}
		}
	}
	if open := s.files(t); open > 256-20 {
		t.Errorf("%d of 256 files are open", open)
	}
}

// A flood of connections from one address cannot close the connection of another peer: the
// peer that holds most gives way.
func TestTheHeaviestPeerGivesWay(t *testing.T) {
	t.Parallel()
	const most = 32
	s := serve(t, t.TempDir(), "--max-connections", fmt.Sprint(most))
	honest := dial(t, s.grpcAddr)
	stream := watchBundle(t, honest)
	var strangers []*strangertest.Conn
	for i := range 4 * most {
		c, err := strangertest.Connect(fmt.Sprint("127.0.0.", 9+i%4), s.grpcAddr)
		if err != nil {
			continue // closed at once
		}
		strangers = append(strangers, c)
		t.Cleanup(func() { c.Close() })
	}
	late := dialFrom(t, "127.0.0.77", s.grpcAddr)
	late.login(t, "admin", s.admin)
	closed := 0
	for _, c := range strangers {
		if !alive(c, 1) {
			closed++
		}
	}
	if closed == 0 {
		t.Error("no stranger gave way")
	}
	if err := stream.recv(); err != nil { // the next heartbeat
		t.Errorf("the stream of an honest peer: %v", err)
	}
}

// alive reports whether the server still answers a stranger, on a new stream.
func alive(c *strangertest.Conn, stream uint32) bool {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	if c.Headers(stream, "/no.such.Service/Method", true) != nil {
		return false
	}
	_, err := c.AnswerTo(ctx, stream)
	return err == nil
}

// Behind a trusted proxy the security record and the bounds use the address that the proxy
// forwards; from anybody else the header says nothing.
func TestTheSourceBehindAProxy(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir(), "--trusted-proxy", "127.0.0.50,127.0.0.51")
	guess := func(ip string, forwarded ...string) {
		c := strange(t, ip, s.grpcAddr)
		if err := c.Headers(1, login, false, forwarded...); err != nil {
			t.Fatal(err)
		}
		if err := c.Data(1, true, strangertest.Message(&watchwordv1.LoginRequest{Username: "nobody-" + ip, Password: "a guess"})); err != nil {
			t.Fatal(err)
		}
		if a, err := c.AnswerTo(callCtx(t), 1); err != nil || a.Status.Code() != codes.Unauthenticated {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	guess("127.0.0.50", "x-forwarded-for", "198.51.100.7")
	guess("127.0.0.50", "x-forwarded-for", "203.0.113.1", "x-forwarded-for", "198.51.100.8, 127.0.0.51") // HAProxy adds a second header of this name
	guess("127.0.0.9", "x-forwarded-for", "198.51.100.9")
	want := []string{"127.0.0.9", "198.51.100.7", "198.51.100.8"}
	eventually(t, propagation, "the record of the guesses", func() error {
		var got []string
		for _, r := range auditRecords(t, s, "--type", "login") {
			if r.Reason == "INVALID_CREDENTIALS" {
				got = append(got, r.Source)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("sources %q, want %q", got, want)
		}
		return nil
	})
}

// auditRecord is a line of `watchword audit --json`.
type auditRecord struct {
	Type, Reason, Source string
	Count                int64
}

// auditRecords returns the security record of a server on SQLite.
func auditRecords(t *testing.T, s *server, flags ...string) (records []auditRecord) {
	t.Helper()
	out := wantExit(t, 0, cli(t, s.dir, "", append([]string{"audit", "--json", "--limit", "0", "--datastore-uri", database(s.dir)}, flags...)...))
	for line := range strings.Lines(out) {
		var r auditRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		records = append(records, r)
	}
	return records
}

// files returns the number of files that a process has open.
func (p *process) files(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}
