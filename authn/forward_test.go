package authn_test

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/token"
)

// passOn is a handler that calls the next service with its own context, by a
// unary call or a stream.
func passOn(next *grpc.ClientConn, stream bool) grpc.StreamHandler {
	return func(_ any, s grpc.ServerStream) error {
		if err := s.RecvMsg(new(emptypb.Empty)); err != nil {
			return err
		}
		method := unaryMethod
		if stream {
			method = streamMethod
		}
		seen, err := call(s.Context(), next, method, stream)
		if err != nil {
			return err
		}
		answer := newText()
		answer.Value = seen
		return s.SendMsg(answer)
	}
}

// serveMiddle runs a guarded service that passes calls on, and dials it.
func serveMiddle(t *testing.T, v *authn.Verifier, next *grpc.ClientConn, stream bool) *grpc.ClientConn {
	t.Helper()
	listener, stop := serve(func(*grpc.Server) {}, append(v.ServerOptions(), grpc.UnknownServiceHandler(passOn(next, stream)))...)
	t.Cleanup(stop)
	return reachable{listener}.dial(t, nil)
}

func TestForwardToken(t *testing.T) {
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 443}
	for name, test := range map[string]struct {
		addr    net.Addr
		forward []grpc.DialOption
		ok      bool
	}{
		"within the machine":     {nil, authn.ForwardToken(), true},
		"to another":             {remote, authn.ForwardToken(), false},
		"to another, told":       {remote, authn.ForwardTokenOverPlaintext(), true},
		"to another, by its TLS": {remote, append(authn.ForwardToken(), grpc.WithTransportCredentials(says{info: secure{}})), true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, authn.WithPublicMethods("/open.v1.Open/*"))
				raw := mint(t, w.key)
				for _, stream := range []bool{false, true} {
					service := startService(t)
					middle := serveMiddle(t, w.Verifier, service.dial(t, test.addr, test.forward...), stream)
					ctx := bearing(t.Context(), "bearer "+raw) // as anybody may spell it

					seen, err := call(ctx, middle, "/any.v1.Any/Method", false)
					if wantsPlaintext(t, err, test.ok); test.ok && seen != raw {
						t.Errorf("the next service sees %q", seen)
					} else if !test.ok {
						saw(t, service, "")
					}

					// Where nobody was judged, nobody's token goes on.
					if seen, err := call(ctx, middle, "/open.v1.Open/Method", false); err != nil || seen != "none" {
						t.Errorf("from a public method: %q, %v", seen, err)
					}
				}
			})
		})
	}
}

func TestForwardTokenOutsideOfACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := startService(t).dial(t, nil, authn.ForwardToken()...)
		if seen, err := call(t.Context(), conn, unaryMethod, false); err != nil || seen != "none" {
			t.Errorf("%q, %v", seen, err)
		}
	})
}

// A caller whose token the second service refuses doesn't replay the first one's
// work.
func TestRefusalFromFurtherDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		service := startService(t)
		service.refuses(func(method, _ string) error { return refusal(codes.Unauthenticated, "TOKEN_STALE", method) })
		middle := serveMiddle(t, w.Verifier, service.dial(t, nil, authn.ForwardToken()...), false)
		raw := mint(t, w.key)
		_, err := call(bearing(t.Context(), "Bearer "+raw), middle, "/any.v1.Any/Method", false)
		refusedBy(t, err, codes.Unauthenticated, "TOKEN_STALE", unaryMethod)
		saw(t, service, raw)
	})
}

// The whole way: credentials, a guarded service that passes the token on, and
// another; and a change of rights in between, which neither handler notices.
func TestCredentialsThroughAChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		second := startService(t)
		auth := startAuth(t)
		version := int64(7)
		auth.mint = func(int) string {
			return mint(t, w.key, func(c *token.Claims) { c.Version = version })
		}
		creds, err := authn.NewPasswordCredentials(auth.dial(t, nil), "alice", "secret")
		check(t, err)
		defer creds.Close()
		listener, stop := serve(func(*grpc.Server) {}, append(w.ServerOptions(),
			grpc.UnknownServiceHandler(passOn(second.dial(t, nil, authn.ForwardToken()...), false)))...)
		defer stop()
		conn := reachable{listener}.dial(t, nil, creds.DialOptions()...)
		do := func(ctx context.Context) string {
			t.Helper()
			seen, err := call(ctx, conn, "/any.v1.Any/Method", false)
			check(t, err)
			return seen
		}
		before := do(t.Context())
		saw(t, auth, "login")
		version = 8
		w.watch.tell(raisedVersion("user-1", version, false), heartbeat(time.Now()))
		after := do(t.Context())
		saw(t, auth, "refresh-1")
		if before == after || before == "none" {
			t.Errorf("%q, then %q", before, after)
		}
		saw(t, second, before+" "+after)
	})
}
