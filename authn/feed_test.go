package authn_test

import (
	"context"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

func TestWaitsForWholeBundleThroughUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, conn := serveTrust(t)
		made := make(chan error, 1)
		go func() {
			v, err := authn.NewVerifier(t.Context(), conn, authn.WithAudience("internal"))
			if err == nil {
				v.Close()
			}
			made <- err
		}()
		waiting := func(after string) {
			t.Helper()
			synctest.Wait()
			select {
			case err := <-made:
				t.Fatalf("NewVerifier returned after %s: %v", after, err)
			default:
			}
		}
		for range 5 {
			(<-server.streams).end <- status.Error(codes.Unavailable, "starting")
			waiting("UNAVAILABLE")
		}
		(<-server.streams).end <- nil
		waiting("the end of a stream")

		w := <-server.streams
		w.send(chunk(&watchwordv1.SnapshotChunk{TrustState: trustState(newKey(t))}))
		waiting("the first chunk")
		w.send(heartbeat(time.Now()))
		waiting("a heartbeat within the snapshot")
		w.send(chunk(&watchwordv1.SnapshotChunk{Last: true}))
		waiting("the last chunk")
		w.send(heartbeat(time.Now()))
		if err := <-made; err != nil {
			t.Error(err)
		}
	})
}

func TestOtherErrorsEndTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, conn := serveTrust(t)
		denied, err := status.New(codes.PermissionDenied, "show a certificate").WithDetails(
			&errdetails.ErrorInfo{Domain: "watchword", Reason: "CLIENT_CERTIFICATE_REQUIRED"})
		if err != nil {
			t.Fatal(err)
		}
		go func() { (<-server.streams).end <- denied.Err() }()
		_, err = authn.NewVerifier(t.Context(), conn, authn.WithAudience("internal"))
		if status.Code(err) != codes.PermissionDenied || name(err) != "CLIENT_CERTIFICATE_REQUIRED" {
			t.Error(err)
		}
	})
}

func TestMalformedBundleIsRefused(t *testing.T) {
	key := newKey(t)
	for name, messages := range map[string][]*message{
		"change first":   {change(&watchwordv1.Change{TrustState: trustState(key)})},
		"no trust state": {chunk(&watchwordv1.SnapshotChunk{Last: true})},
		"empty state":    {snapshot(&watchwordv1.TrustState{})},
		"no lifetime":    {snapshot(&watchwordv1.TrustState{Issuer: issuer})},
		"timeless":       {snapshot(trustState(key)), {Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{}}}},
		"impossible clock": {snapshot(trustState(key)), {Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{
			Times: &watchwordv1.ServerTimes{Process: []byte("p"), Now: &durationpb.Duration{Nanos: -1, Seconds: 1}}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, conn := serveTrust(t)
				go func() { (<-server.streams).send(messages...) }()
				_, err := authn.NewVerifier(t.Context(), conn, authn.WithAudience("internal"))
				if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "malformed") {
					t.Error(err)
				}
			})
		})
	}
}

func TestContextBoundsTheWaitAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, conn := serveTrust(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() { (<-server.streams).end <- status.Error(codes.Unavailable, "no database") }()
		_, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"))
		errorIs(t, err, context.DeadlineExceeded)
		if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "no trust bundle") {
			t.Error(err)
		}

		// The stream of a complete bundle continues after the wait's context has ended.
		synctest.Wait() // waits until the earlier stream has ended
		key := newKey(t)
		ctx, cancel = context.WithCancel(t.Context())
		ready := make(chan *watch)
		go func() {
			w := <-server.streams
			w.send(snapshot(trustState(key)), heartbeat(time.Now()))
			ready <- w
		}()
		v, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"))
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		cancel()
		w := <-ready
		w.tell(endedSession("session-1", time.Now().Add(maxLifetime)))
		_, err = v.Verify(t.Context(), mint(t, key))
		if name(err) != "TOKEN_REVOKED" {
			t.Error(err)
		}
	})
}

func TestWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, conn := serveTrust(t)
		key := newKey(t)
		w := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal")), key: key}
		w.wants(t, mint(t, key), "BUNDLE_STALE")
		(<-server.streams).end <- status.Error(codes.Unimplemented, "an old server")
		synctest.Wait()
		if err := w.Ready(t.Context()); status.Code(err) != codes.Unimplemented {
			t.Errorf("Ready: %v", err)
		}
		// The verifier keeps trying, because the server may be replaced.
		watch := <-server.streams
		watch.tell(chunk(&watchwordv1.SnapshotChunk{TrustState: trustState(key)}), heartbeat(time.Now()))
		w.wants(t, mint(t, key), "BUNDLE_STALE")
		watch.tell(chunk(&watchwordv1.SnapshotChunk{Last: true}))
		w.wants(t, mint(t, key), "BUNDLE_STALE")
		watch.tell(heartbeat(time.Now()))
		if err := w.Ready(t.Context()); err != nil {
			t.Errorf("Ready: %v", err)
		}
		w.wants(t, mint(t, key), "ok")
	})
}

func TestRevocationsOutliveAServerThatForgot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		session := mint(t, w.key)
		user := mint(t, w.key, func(c *token.Claims) { c.Subject, c.SessionID = "user-2", "session-2" })
		stale := mint(t, w.key, func(c *token.Claims) { c.Subject, c.SessionID = "user-3", "session-3" })
		good := mint(t, w.key, func(c *token.Claims) { c.Subject, c.SessionID = "user-4", "session-4" })
		check := func() {
			t.Helper()
			w.wants(t, session, "TOKEN_REVOKED")
			w.wants(t, user, "TOKEN_REVOKED")
			w.wants(t, stale, "TOKEN_STALE")
			w.wants(t, good, "ok")
		}
		w.watch.tell(endedSession("session-1", time.Now().Add(maxLifetime)),
			raisedVersion("user-2", 8, true), raisedVersion("user-3", 8, false), raisedVersion("user-4", 7, true))
		check()

		w.watch.end <- status.Error(codes.Unavailable, "restored from a backup")
		synctest.Wait()
		check() // while the verifier has no stream
		again := <-w.server.streams
		check() // checks once before the snapshot of the new stream
		again.tell(snapshot(trustState(w.key)), heartbeat(time.Now()))
		check() // checks once after a snapshot without the earlier revocations

		// A lower version does not replace a higher version.
		again.tell(raisedVersion("user-2", 3, true), raisedVersion("user-3", 3, false))
		check()
	})
}

func TestTrustStateReplaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		next := newKey(t)
		old, signed := mint(t, w.key), mint(t, next)
		w.wants(t, old, "ok")
		w.wants(t, signed, "TOKEN_INVALID")
		w.watch.tell(change(&watchwordv1.Change{TrustState: trustState(w.key, next)}))
		w.wants(t, old, "ok")
		w.wants(t, signed, "ok")
		w.watch.tell(change(&watchwordv1.Change{TrustState: trustState(next)}))
		w.wants(t, old, "TOKEN_INVALID")
		w.wants(t, signed, "ok")

		// The first chunk of a new stream withdraws a key.
		w.watch.end <- status.Error(codes.Unavailable, "bye")
		again := <-w.server.streams
		w.wants(t, signed, "ok")
		again.tell(chunk(&watchwordv1.SnapshotChunk{TrustState: trustState(w.key)}))
		w.wants(t, old, "ok")
		w.wants(t, signed, "TOKEN_INVALID")

		other := trustState(w.key)
		other.Issuer = "https://elsewhere"
		again.tell(change(&watchwordv1.Change{TrustState: other}))
		w.wants(t, old, "TOKEN_INVALID")
	})
}

func TestUnreadableKeyIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		state := trustState(w.key)
		state.Keys = append(state.Keys, &watchwordv1.VerificationKey{Key: &watchwordv1.JsonWebKey{Kty: "AKP", Kid: "x", Alg: "ML-DSA-44"}}, nil)
		w.watch.tell(change(&watchwordv1.Change{TrustState: state}))
		w.wants(t, mint(t, w.key), "ok")
	})
}

func TestSilentStreamIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		for range 10 {
			select {
			case <-w.server.streams:
				t.Fatal("a stream with heartbeats was replaced")
			case <-time.After(30 * time.Second):
				w.watch.tell(heartbeat(time.Now()))
			}
		}
		began := time.Now()
		again := <-w.server.streams // the first stream stays silent
		if waited := time.Since(began); waited < time.Minute || waited > 2*time.Minute {
			t.Errorf("the stream was replaced after %v", waited)
		}
		again.tell(snapshot(trustState(w.key)), heartbeat(time.Now()))
		w.wants(t, mint(t, w.key), "ok")
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, conn := serveTrust(t)
		newVerifier(t, conn, authn.WithAudience("internal"))
		w := <-server.streams
		longest := time.Duration(0)
		for range 20 {
			w.end <- status.Error(codes.Unavailable, "no")
			began := time.Now()
			w = <-server.streams
			longest = max(longest, time.Since(began))
		}
		if longest < 5*time.Second || longest > 10*time.Second {
			t.Errorf("the longest pause was %v", longest)
		}
		// After a stream that lasted, the next pause is short.
		time.Sleep(20 * time.Second)
		w.end <- status.Error(codes.Unavailable, "no")
		began := time.Now()
		<-server.streams
		if pause := time.Since(began); pause > 50*time.Millisecond {
			t.Errorf("the pause after a long stream was %v", pause)
		}
	})
}

// Streams that a timeout ends within seconds show a healthy server: the pauses stay short,
// and one line of the log names the cause.
func TestStreamsThatATimeoutEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(logBuffer)
		w := start(t, authn.WithLogger(slog.New(slog.NewTextHandler(log, nil))))
		for range 10 {
			time.Sleep(5 * time.Second)
			w.watch.end <- status.Error(codes.DeadlineExceeded, "a route of the proxy")
			began := time.Now()
			w.accept(t)
			if pause := time.Since(began); pause > 50*time.Millisecond {
				t.Errorf("the pause was %v", pause)
			}
		}
		if n := strings.Count(log.String(), "give the method WatchBundle no timeout"); n != 1 {
			t.Errorf("the cause is named %d times:\n%s", n, log)
		}
		if n := strings.Count(log.String(), "opening another"); n != 2 {
			t.Errorf("%d ends are in the log, want 2:\n%s", n, log)
		}
	})
}

// NewVerifier waits while an ingress has no route to the server yet.
func TestNewVerifierWaitsForAnIngress(t *testing.T) {
	server := &trustServer{streams: make(chan *watch)}
	behind := grpc.NewServer()
	defer behind.Stop()
	watchwordv1.RegisterTrustServiceServer(behind, server)
	var asked atomic.Int32
	ingress := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			http.Error(w, "no such route", http.StatusNotFound)
		case 2:
			http.Error(w, "no upstream", http.StatusInternalServerError)
		default:
			behind.ServeHTTP(w, r)
		}
	})}
	ingress.Protocols.SetUnencryptedHTTP2(true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	go func() { _ = ingress.Serve(listener) }()
	defer ingress.Close()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	defer conn.Close()
	key := newKey(t)
	go func() { (<-server.streams).send(snapshot(trustState(key)), heartbeat(time.Now())) }()
	v, err := authn.NewVerifier(t.Context(), conn, authn.WithAudience("internal"))
	if err != nil {
		t.Fatal(err)
	}
	if v.Close(); asked.Load() < 3 {
		t.Errorf("%d requests", asked.Load())
	}
}

// handFed is a connection in process. A test sees each call of RecvMsg, and answers the call.
type handFed struct {
	grpc.ClientConnInterface
	asked    chan struct{} // has an element for each call of RecvMsg
	messages chan *message // answers a call; nil ends the stream
	peer     *peer.Peer    // the peer that the call option peer gets; can be nil
}

func (h *handFed) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	return status.Error(codes.Unimplemented, method)
}

type handFedStream struct {
	grpc.ClientStream
	ctx context.Context
	*handFed
}

func (h *handFed) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	for _, o := range opts {
		if p, ok := o.(grpc.PeerCallOption); ok && h.peer != nil {
			*p.PeerAddr = *h.peer
		}
	}
	return &handFedStream{ctx: ctx, handFed: h}, nil
}

func (s *handFedStream) SendMsg(any) error            { return nil }
func (s *handFedStream) CloseSend() error             { return nil }
func (s *handFedStream) Context() context.Context     { return s.ctx }
func (s *handFedStream) Header() (metadata.MD, error) { return nil, nil }
func (s *handFedStream) Trailer() metadata.MD         { return nil }

func (s *handFedStream) RecvMsg(into any) error {
	select {
	case s.asked <- struct{}{}:
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	select {
	case m := <-s.messages:
		if m == nil {
			return io.EOF
		}
		proto.Merge(into.(proto.Message), m)
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func newHandFed() *handFed {
	return &handFed{asked: make(chan struct{}), messages: make(chan *message), peer: &peer.Peer{AuthInfo: secure{}}}
}

// secure is the AuthInfo of a private connection.
type secure struct{}

func (secure) AuthType() string { return "test" }
func (secure) GetCommonAuthInfo() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
}

// The verifier applies a message before it calls RecvMsg again. A Watchword server relies
// on this order: see feed.watch.
func TestMessageIsAppliedBeforeTheNextRecvMsg(t *testing.T) {
	conn := newHandFed()
	w := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal")), key: newKey(t)}
	feed := func(m *message) {
		conn.messages <- m
		<-conn.asked
	}
	<-conn.asked
	feed(snapshot(trustState(w.key)))
	raw := mint(t, w.key)
	w.wants(t, raw, "BUNDLE_STALE")
	feed(heartbeat(time.Now()))
	w.wants(t, raw, "ok")
	for i := range 100 {
		if i%2 == 0 {
			feed(change(&watchwordv1.Change{TrustState: trustState()}))
			w.wants(t, raw, "TOKEN_INVALID")
		} else {
			feed(change(&watchwordv1.Change{TrustState: trustState(w.key)}))
			w.wants(t, raw, "ok")
		}
	}
	feed(endedSession("session-1", time.Now().Add(maxLifetime)))
	w.wants(t, raw, "TOKEN_REVOKED")
}

func TestConcurrentVerify(t *testing.T) {
	conn := newHandFed()
	w := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal")), key: newKey(t)}
	other := newKey(t)
	feed := func(m *message) {
		conn.messages <- m
		<-conn.asked
	}
	<-conn.asked
	feed(snapshot(trustState(w.key)))
	feed(heartbeat(time.Now()))
	raw := mint(t, w.key)
	stop := make(chan struct{})
	var judges sync.WaitGroup
	for range 4 {
		judges.Go(func() {
			revoked := false
			for {
				_, err := w.Verify(t.Context(), raw)
				switch got := name(err); {
				case got == "TOKEN_REVOKED":
					revoked = true
				case got == "ok" && !revoked:
				default:
					t.Errorf("%v (revoked before: %v)", err, revoked)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 200 {
		feed(change(&watchwordv1.Change{TrustState: trustState(w.key, other)}))
		feed(change(&watchwordv1.Change{TrustState: trustState(w.key)}))
		feed(endedSession("session-"+string(rune('a'+i%26)), time.Now().Add(maxLifetime)))
		if i == 100 {
			feed(raisedVersion("user-1", 8, true))
		}
		feed(heartbeat(time.Now()))
	}
	close(stop)
	judges.Wait()
	w.wants(t, raw, "TOKEN_REVOKED")
}

// If a program sets no logger, the verifier writes into the default log that the connection to
// Watchword is lost.
func TestTheDefaultLogger(t *testing.T) {
	var lines logBuffer
	before, output, flags := slog.Default(), log.Writer(), log.Flags()
	defer func() { slog.SetDefault(before); log.SetOutput(output); log.SetFlags(flags) }()
	slog.SetDefault(slog.New(slog.NewTextHandler(&lines, nil)))
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.watch.end <- status.Error(codes.Unavailable, "stopping")
		synctest.Wait()
		if text := lines.String(); !strings.Contains(text, `level=WARN msg="the stream of the trust bundle ended`) {
			t.Errorf("the log says %q", text)
		}
	})
}
