package e2e

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const (
	streamsPerConn = 90   // below the bound of 100 calls on one connection
	watchersInAll  = 1536 // by default, three quarters of the connections; a half for one peer
)

// flood is a client that opens as many streams of the trust bundle as the server allows, and
// opens further streams until the end of the test.
type flood struct {
	conns   []*grpc.ClientConn
	held    atomic.Int64 // streams that are open now
	refused atomic.Int64 // streams that the server has refused
	evicted atomic.Int64 // streams that the server has ended
	reason  atomic.Value // the error of such a stream
	next    atomic.Int64
	full    chan struct{} // closed at the first refusal
	once    sync.Once
	tasks   sync.WaitGroup
}

// startFlood starts a flood from an address. The flood ends at the end of the test.
func startFlood(t *testing.T, from, addr string, creds credentials.TransportCredentials) *flood {
	t.Helper()
	f := &flood{full: make(chan struct{})}
	for range 12 { // 1,080 streams: more than one peer can hold
		f.conns = append(f.conns, dialAs(t, from, addr, creds))
	}
	ctx, cancel := context.WithCancel(context.Background())
	for range 4 {
		f.tasks.Go(func() {
			for ctx.Err() == nil {
				f.open(ctx)
			}
		})
	}
	t.Cleanup(func() { cancel(); f.tasks.Wait() })
	return f
}

// open opens a stream, and reads it in a goroutine until its end. After a refusal, open
// waits as a flood on a machine with other work must: the server is not the only one to
// need the cores.
func (f *flood) open(ctx context.Context) {
	n := f.next.Add(1)
	if f.held.Load() >= int64(len(f.conns)*streamsPerConn) {
		sleepUntil(ctx, 10*time.Millisecond)
		return
	}
	stream, err := watchwordv1.NewTrustServiceClient(f.conns[n%int64(len(f.conns))]).WatchBundle(ctx, &watchwordv1.WatchBundleRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		f.refused.Add(1)
		f.once.Do(func() { close(f.full) })
		sleepUntil(ctx, 10*time.Millisecond)
		return
	}
	f.held.Add(1)
	f.tasks.Go(func() {
		defer f.held.Add(-1)
		for err == nil {
			_, err = stream.Recv()
		}
		if ctx.Err() == nil {
			f.evicted.Add(1)
			f.reason.Store(err)
		}
	})
}

func sleepUntil(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// await waits until the server has refused or ended a stream of the flood.
func (f *flood) await(t *testing.T) {
	t.Helper()
	select {
	case <-f.full:
	case <-time.After(2 * time.Minute):
		t.Fatalf("the server holds %d streams of one peer and has refused none", f.held.Load())
	}
}

// openStream is a stream of the trust bundle that is read until its end.
type openStream struct {
	first  chan error    // the outcome of the opening
	resume []byte        // set before first gets its value
	ended  chan struct{} // closed at the end
	err    error         // the reason for the end
}

// keepOpen opens a stream and reads it until the end of the test.
func keepOpen(t *testing.T, conn *grpc.ClientConn, resume []byte) *openStream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &openStream{first: make(chan error, 1), ended: make(chan struct{})}
	stream, err := watchwordv1.NewTrustServiceClient(conn).WatchBundle(ctx, &watchwordv1.WatchBundleRequest{Resume: resume})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.ended)
		opened := false
		for {
			var m *watchwordv1.WatchBundleResponse
			if m, w.err = stream.Recv(); w.err != nil {
				if !opened {
					w.first <- w.err
				}
				return
			}
			if opened {
				continue
			}
			if r := m.GetResume(); len(r) > 0 {
				w.resume = r
			}
			if m.GetHeartbeat() != nil {
				opened = true
				w.first <- nil
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-w.ended })
	return w
}

// opened waits for the end of the opening, and returns its error.
func (w *openStream) opened(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.first:
		return err
	case <-time.After(runTimeout):
		t.Fatal("a stream was neither served nor refused")
		return nil
	}
}

// wantServed checks that a stream has not ended.
func (w *openStream) wantServed(t *testing.T, what string) {
	t.Helper()
	select {
	case <-w.ended:
		t.Errorf("%s: the stream ended with %v", what, w.err)
	default:
	}
}

// Four addresses open every stream of the bundle that the server allows, and go on opening
// streams. A service with an earlier stream keeps its stream, a service that comes back with a
// good resume token gets a stream, and so does a service that starts now. For each new stream,
// the server ends a stream of the address with most streams, and says why.
func TestWatchersHaveTheirShare(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	plain := insecure.NewCredentials()
	early := keepOpen(t, dialAs(t, "127.0.0.1", s.grpcAddr, plain), nil)
	wantOK(t, "a stream on an idle server", early.opened(t))

	var floods []*flood
	for i := range 4 {
		floods = append(floods, startFlood(t, fmt.Sprintf("127.0.0.%d", i+2), s.grpcAddr, plain))
	}
	for _, f := range floods {
		f.await(t)
	}

	back := keepOpen(t, dialAs(t, "127.0.0.6", s.grpcAddr, plain), early.resume)
	wantOK(t, "a watcher with a good resume", back.opened(t))
	stranger := keepOpen(t, dialAs(t, "127.0.0.2", s.grpcAddr, plain), nil)
	wantRefusal(t, "one more watcher from an address of the flood", stranger.opened(t), "OVERLOADED")
	home := keepOpen(t, dialAs(t, "127.0.0.2", s.grpcAddr, plain), early.resume)
	wantOK(t, "a watcher with a good resume, from an address of the flood", home.opened(t))
	verifier, err := authn.NewVerifier(callCtx(t), dialAs(t, "127.0.0.1", s.grpcAddr, plain), authn.WithAudience("internal"))
	if err != nil {
		t.Fatalf("a service that starts during the flood: %v", err)
	}
	t.Cleanup(func() { verifier.Close() })

	pair := c.login(t, "admin", s.admin)
	if _, err := verifier.Verify(t.Context(), pair.GetAccessToken()); err != nil {
		t.Errorf("a token during the flood: %v", err)
	}
	wantOK(t, "logout", c.logout(callCtx(t), pair))
	eventually(t, propagation, "a revocation during the flood", func() error {
		_, err := verifier.Verify(t.Context(), pair.GetAccessToken())
		return checkRefusal(err, "TOKEN_REVOKED")
	})
	early.wantServed(t, "the watcher from before the flood")
	back.wantServed(t, "the watcher with a good resume")
	home.wantServed(t, "the watcher with a good resume, from an address of the flood")
	eventually(t, propagation, "the watchers that gave way", func() error {
		var n int64
		for _, f := range floods {
			n += f.evicted.Load()
		}
		if n < 3 {
			return fmt.Errorf("%d watchers gave way to three newcomers", n)
		}
		return nil
	})
	var held, refused, evicted int64
	for _, f := range floods {
		held, refused, evicted = held+f.held.Load(), refused+f.refused.Load(), evicted+f.evicted.Load()
		if reason, ok := f.reason.Load().(error); ok {
			wantRefusal(t, "a watcher that gave way", reason, "OVERLOADED")
			if !strings.Contains(status.Convert(reason).Message(), "another watcher got this place") || len(status.Convert(reason).Details()) != 2 {
				t.Errorf("a watcher that gave way is told: %v, %v", reason, status.Convert(reason).Details())
			}
		}
	}
	t.Logf("the floods hold %d places; the server has refused %d of their streams and ended %d", held, refused, evicted)
	if held < watchersInAll-100 {
		t.Errorf("the floods hold %d places: the test proves little", held)
	}
}

// Watchers with a client certificate are counted by the name in the certificate: a client that
// floods from four addresses gets the share of one client.
func TestWatchersAreCountedByTheirCertificate(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	_, certFile, keyFile := ca.issue(t, "server", x509.ExtKeyUsageServerAuth)
	s := serve(t, t.TempDir(), "--tls-cert", certFile, "--tls-key", keyFile, "--client-ca", ca.file)
	greedy, _, _ := ca.issue(t, "greedy", x509.ExtKeyUsageClientAuth)
	modest, _, _ := ca.issue(t, "modest", x509.ExtKeyUsageClientAuth)

	var floods []*flood
	for i := range 4 {
		floods = append(floods, startFlood(t, fmt.Sprintf("127.0.0.%d", i+2), s.grpcAddr, credentials.NewTLS(ca.trusting(greedy))))
	}
	strangers := startFlood(t, "127.0.0.6", s.grpcAddr, credentials.NewTLS(ca.trusting()))
	for _, f := range append(floods, strangers) {
		f.await(t)
	}
	var held int64
	for _, f := range floods {
		held += f.held.Load()
	}
	if held > watchersInAll/2 {
		t.Errorf("one certificate holds %d places from four addresses, want at most a half of %d", held, watchersInAll)
	}
	if n := strangers.held.Load(); n > 0 {
		t.Errorf("%d streams without a certificate were served", n)
	}
	// A client at the address of the flood, with another name in its certificate, is served.
	w := keepOpen(t, dialAs(t, "127.0.0.2", s.grpcAddr, credentials.NewTLS(ca.trusting(modest))), nil)
	wantOK(t, "a watcher with another certificate", w.opened(t))
	late := keepOpen(t, dialAs(t, "127.0.0.7", s.grpcAddr, credentials.NewTLS(ca.trusting(greedy))), nil)
	if err := late.opened(t); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more stream of the flood's certificate: %v", err)
	}
	w.wantServed(t, "the watcher with another certificate")
}
