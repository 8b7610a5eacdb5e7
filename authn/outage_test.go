package authn_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// line is the network path to a server. A test can cut and mend the path.
type line struct {
	listener *bufconn.Listener

	mu   sync.Mutex
	cut  bool
	open []*wire
}

// wire is one connection over a line. A dead wire drops the bytes written, and a read waits
// until the wire is closed.
type wire struct {
	net.Conn
	dead   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (l *line) dial(ctx context.Context, _ string) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return nil, errors.New("no route to host")
	}
	conn, err := l.listener.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: conn, dead: make(chan struct{}), closed: make(chan struct{})}
	l.open = append(l.open, w)
	return w, nil
}

// set cuts the line and its open connections, or mends the line.
func (l *line) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	for _, w := range l.open {
		if cut {
			w.Conn.Close()
		}
	}
}

// kill makes the open connections dead, without a sign at either end, as a restarted firewall
// does.
func (l *line) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.open {
		close(w.dead)
	}
	l.open = nil
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	select {
	case <-w.dead:
		<-w.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (w *wire) Write(p []byte) (int, error) {
	select {
	case <-w.dead:
		return len(p), nil
	default:
		return w.Conn.Write(p)
	}
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.Conn.Close()
}

// startOn makes a world with a line to its server. newClient is grpc.NewClient or
// tokensource.Dial.
func startOn(t *testing.T, newClient func(string, ...grpc.DialOption) (*grpc.ClientConn, error)) (*world, *line) {
	t.Helper()
	w := &world{key: newKey(t), server: &trustServer{streams: make(chan *watch)}}
	listener, stop := serve(func(r *grpc.Server) { watchwordv1.RegisterTrustServiceServer(r, w.server) })
	t.Cleanup(stop)
	l := &line{listener: listener}
	conn, err := newClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(l.dial))
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	w.Verifier = newVerifier(t, conn, authn.WithAudience("internal"))
	w.accept(t)
	return w, l
}

// accept accepts the next stream of the verifier and sends the opening messages.
func (w *world) accept(t *testing.T) {
	t.Helper()
	w.watch = <-w.server.streams
	w.watch.tell(snapshot(trustState(w.key)), heartbeat(time.Now()))
	if err := w.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A verifier connects soon after a server has returned, however long the server was away: the
// backoff of grpc-go, which grows to minutes, does not come on top of the verifier's own
// backoff.
func TestAServerThatIsBackIsFoundSoon(t *testing.T) {
	for _, away := range []time.Duration{time.Second, time.Minute, 20 * time.Minute} {
		t.Run(away.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, l := startOn(t, grpc.NewClient)
				l.set(true)
				time.Sleep(away)
				l.set(false)
				began := time.Now()
				w.accept(t)
				if took := time.Since(began); took > min(3*away, 12*time.Second) {
					t.Errorf("found after %v", took)
				}
				w.wants(t, mint(t, w.key), "ok")
			})
		})
	}
}

// Pauses have a random part, so that verifiers that lost a server together do not return
// together.
func TestPausesAreSpreadOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, conn := serveTrust(t)
		newVerifier(t, conn, authn.WithAudience("internal"))
		var shortest, longest time.Duration
		w := <-server.streams
		for i := range 30 {
			w.end <- status.Error(codes.Unavailable, "no")
			began := time.Now()
			w = <-server.streams
			if pause := time.Since(began); i < 10 {
				shortest, longest = pause, pause // the pauses between attempts still grow
			} else {
				shortest, longest = min(shortest, pause), max(longest, pause)
			}
		}
		if longest-shortest < time.Second {
			t.Errorf("from %v to %v", shortest, longest)
		}
	})
}

// The keepalive of tokensource.Dial replaces a dead connection, because a Verifier cannot
// close its conn.
func TestADeadConnectionIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := startOn(t, tokensource.Dial)
		l.kill()
		began := time.Now()
		w.accept(t)
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("the connection was replaced after %v", took)
		}
		w.wants(t, mint(t, w.key), "ok")
	})
}

// Tokens signed by unknown keys, however many, delay no call, also over a dead connection. A new
// key is accepted as soon as the server has sent the key.
func TestUnknownKeysMakeNoCallWait(t *testing.T) {
	for _, dead := range []bool{false, true} {
		t.Run(fmt.Sprintf("dead %t", dead), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, l := startOn(t, grpc.NewClient)
				next := newKey(t)
				if dead {
					l.kill()
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				good, unknown := mint(t, w.key), mint(t, next)
				began := time.Now()
				for range 100 {
					for _, raw := range []string{unknown, mint(t, newKey(t))} {
						if _, err := w.Verify(ctx, raw); name(err) != "TOKEN_INVALID" {
							t.Error(err)
						}
					}
					w.wants(t, good, "ok")
				}
				if took := time.Since(began); took != 0 {
					t.Errorf("the calls took %v, want no time", took)
				}
				if dead {
					return
				}
				w.watch.tell(change(&watchwordv1.Change{TrustState: trustState(w.key, next)}))
				w.wants(t, unknown, "ok")
				select {
				case <-w.server.streams:
					t.Error("another stream was opened")
				default:
				}
			})
		})
	}
}

// asked returns the error of a full server, with the time to wait.
func asked(again time.Duration) error {
	return refusal.Status(codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "", "refused",
		&errdetails.RetryInfo{RetryDelay: durationpb.New(again)}).Err()
}

// NewVerifier waits for an overloaded server in the same way as for a server that is away: at
// least for the time that the server asks for, and never longer than the longest pause between
// attempts.
func TestNewVerifierWaitsForAFullServer(t *testing.T) {
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
		w := <-server.streams
		for _, c := range []struct{ asked, from, to time.Duration }{
			{0, 25 * time.Millisecond, 50 * time.Millisecond},
			{7 * time.Second, 7 * time.Second, 8 * time.Second},
			{time.Hour, 9 * time.Second, 10 * time.Second},
			{-time.Hour, 200 * time.Millisecond, 400 * time.Millisecond},
		} {
			w.end <- asked(c.asked)
			began := time.Now()
			select {
			case w = <-server.streams:
			case err := <-made:
				t.Fatal(err)
			}
			if pause := time.Since(began); pause < c.from || pause > c.to {
				t.Errorf("asked for %v, the verifier waited %v", c.asked, pause)
			}
		}
		w.send(snapshot(trustState(newKey(t))), heartbeat(time.Now()))
		if err := <-made; err != nil {
			t.Error(err)
		}
	})
}

// With a good snapshot file, NewVerifier fails only for an error with a cause that an operator
// has to correct.
func TestErrorsThatASnapshotDoesNotHide(t *testing.T) {
	for code, fails := range map[codes.Code]bool{
		codes.PermissionDenied:   true, // such as no client certificate
		codes.FailedPrecondition: true, // such as plaintext from another machine
		codes.Unavailable:        false,
		codes.ResourceExhausted:  false,
		codes.Internal:           false,
		codes.Unimplemented:      false, // perhaps a misrouted proxy
		codes.Unauthenticated:    false,
		codes.Unknown:            false,
	} {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, path := startKept(t)
				first.Close()
				server, conn := serveTrust(t)
				stop := make(chan struct{})
				defer close(stop)
				go func() {
					for {
						select {
						case w := <-server.streams:
							w.end <- status.Error(code, "no")
						case <-stop:
							return
						}
					}
				}()
				began := time.Now()
				v, err := authn.NewVerifier(t.Context(), conn, authn.WithAudience("internal"), authn.WithSnapshotFile(path))
				took := time.Since(began)
				if err == nil {
					v.Close()
				}
				switch {
				case fails && (status.Code(err) != code || took != 0):
					t.Errorf("%v after %v", err, took)
				case !fails && (err != nil || took != 2*time.Second):
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}
