package authn_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// elsewhere is a connection with another remote address.
type elsewhere struct {
	net.Conn
	addr net.Addr
}

func (e elsewhere) RemoteAddr() net.Addr { return e.addr }

// Keys over plaintext from another machine are refused. The tests of internal/transport
// show which addresses count as this machine.
func TestPlaintextToAnotherMachine(t *testing.T) {
	near := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9), Port: 1}
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 50051}
	for name, test := range map[string]struct {
		addr   net.Addr
		target string
		opts   []authn.Option
		want   codes.Code
	}{
		"another machine": {remote, "192.0.2.7:50051", nil, codes.FailedPrecondition},
		"allowed":         {remote, "192.0.2.7:50051", []authn.Option{authn.WithPlaintextFromOtherHosts()}, codes.OK},
		"loopback":        {near, "127.0.0.9:1", nil, codes.OK},
		"a name of ours":  {near, "localhost:1", nil, codes.OK},
		"a proxy":         {near, "auth:50051", nil, codes.FailedPrecondition},
		"a proxy allowed": {near, "auth:50051", []authn.Option{authn.WithPlaintextFromOtherHosts()}, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &trustServer{streams: make(chan *watch)}
				listener, stop := serve(func(r *grpc.Server) { watchwordv1.RegisterTrustServiceServer(r, server) })
				defer stop()
				conn := dialAs(test.target, listener, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
					c, err := listener.DialContext(ctx)
					return elsewhere{c, test.addr}, err
				}))
				defer conn.Close()
				key := newKey(t)
				v := newVerifier(t, conn, append(test.opts, authn.WithAudience("internal"))...)
				(<-server.streams).tell(snapshot(trustState(key)), heartbeat(time.Now()))
				err := v.Ready(t.Context())
				if status.Code(err) != test.want {
					t.Fatal(err)
				}
				_, verr := v.Verify(t.Context(), mint(t, key))
				if test.want == codes.OK {
					if verr != nil {
						t.Error(verr)
					}
					return
				}
				if !strings.Contains(err.Error(), "WithPlaintextFromOtherHosts") || authn.Reason(verr) != watchwordv1.ErrorReason_ERROR_REASON_BUNDLE_STALE {
					t.Errorf("%v; Verify: %v", err, verr)
				}
			})
		})
	}
}

// A verifier without TLS at a server with TLS says what to do, in the log and in the error.
func TestPlaintextToAServerWithTLS(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer listener.Close()
	serving.Go(func() { // a TLS server closes a connection that does not begin with a handshake
		for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
			_ = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{{}}}).Handshake()
			_ = conn.Close()
		}
	})
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var lines logBuffer
	logger := slog.New(slog.NewTextHandler(writeThen{&lines, atSecond(cancel)}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	_, err = authn.NewVerifier(ctx, conn, authn.WithAudience("internal"), authn.WithLogger(logger))
	const hint = "if the server has TLS, dial with TLS credentials"
	if text := lines.String(); err == nil || !strings.Contains(err.Error(), hint) || !strings.Contains(text, hint) {
		t.Errorf("the error is %v, the log %q", err, text)
	}
}

// atSecond returns a function that calls do at its second call.
func atSecond(do func()) func() {
	calls := 0
	return func() {
		if calls++; calls == 2 {
			do()
		}
	}
}

// writeThen calls then after each write.
type writeThen struct {
	io.Writer
	then func()
}

func (w writeThen) Write(p []byte) (int, error) {
	defer w.then()
	return w.Writer.Write(p)
}

func TestConnectionsOtherThanClientConn(t *testing.T) {
	for name, test := range map[string]struct {
		peer *peer.Peer
		want codes.Code
	}{
		"no peer":   {nil, codes.FailedPrecondition},
		"in memory": {&peer.Peer{Addr: &net.UnixAddr{Net: "unix"}}, codes.OK},
		"protected": {&peer.Peer{AuthInfo: secure{}}, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := newHandFed()
				conn.peer = test.peer
				v := newVerifier(t, conn, authn.WithAudience("internal"))
				<-conn.asked
				conn.messages <- snapshot(trustState(newKey(t)))
				<-conn.asked
				conn.messages <- heartbeat(time.Now())
				synctest.Wait()
				if err := v.Ready(t.Context()); status.Code(err) != test.want {
					t.Error(err)
				}
			})
		})
	}
}

// An attacker on the path of a later stream cannot replace the keys.
func TestKeysOfALaterPlaintextStreamAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := newHandFed()
		w := &world{Verifier: newVerifier(t, conn, authn.WithAudience("internal")), key: newKey(t)}
		forger := newKey(t)
		feed := func(m *message) {
			conn.messages <- m
			<-conn.asked
		}
		<-conn.asked
		feed(snapshot(trustState(w.key)))
		feed(heartbeat(time.Now()))
		conn.peer = &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 50051}}
		feed(nil)
		for range 3 { // each time, the verifier ends the stream
			feed(snapshot(trustState(forger)))
			w.wants(t, mint(t, forger), "TOKEN_INVALID")
			w.wants(t, mint(t, w.key), "ok")
		}
	})
}
