package tokensource_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

var alice = authntest.User{Name: "alice"}

// passOn returns a handler that calls the next service with the handler's context, by a unary
// call or a stream.
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
		return s.SendMsg(wrapperspb.String(seen))
	}
}

// tokenNeeded is the rule of a test's methods, which have no descriptors.
func tokenNeeded(pattern string) authn.Option {
	return authn.WithMethodRule(pattern, &watchwordv1.Access{})
}

// serveMiddle runs a guarded service that passes calls on to next, and dials the service.
func serveMiddle(t *testing.T, v *authn.Verifier, next *grpc.ClientConn, stream bool, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	return serve(t, func(*grpc.Server) {}, append(v.ServerOptions(), grpc.UnknownServiceHandler(passOn(next, stream)))...).dial(t, nil, opts...)
}

func TestForward(t *testing.T) {
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 443}
	for name, test := range map[string]struct {
		addr    net.Addr
		forward []grpc.DialOption
		ok      bool
	}{
		"within the machine":     {nil, tokensource.Forward(), true},
		"to another":             {remote, tokensource.Forward(), false},
		"to another, allowed":    {remote, tokensource.Forward(tokensource.WithPlaintextToOtherHosts()), true},
		"to another, by its TLS": {remote, append(tokensource.Forward(), grpc.WithTransportCredentials(says{info: private})), true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				issuer := authntest.New()
				verifier := issuer.NewVerifier(t, authn.WithAudience("test"), authn.WithPublicMethods("/open.v1.Open/*"), tokenNeeded("/any.v1.Any/*"))
				raw := issuer.Token(alice)
				for _, stream := range []bool{false, true} {
					service := startService(t)
					middle := serveMiddle(t, verifier, service.dial(t, test.addr, test.forward...), stream)
					ctx := bearing(t.Context(), "bearer "+raw) // the scheme's case does not matter

					seen, err := call(ctx, middle, "/any.v1.Any/Method", false)
					if wantsPlaintext(t, err, test.ok); test.ok && seen != raw {
						t.Errorf("the next service sees %q", seen)
					} else if !test.ok {
						saw(t, service, "")
					}

					// A handler of a public method forwards no token.
					if seen, err := call(ctx, middle, "/open.v1.Open/Method", false); err != nil || seen != "none" {
						t.Errorf("from a public method: %q, %v", seen, err)
					}
				}
			})
		})
	}
}

func TestForwardOutsideOfAGuardedCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := startService(t).dial(t, nil, tokensource.Forward()...)
		if seen, err := call(t.Context(), conn, unaryMethod, false); err != nil || seen != "none" {
			t.Errorf("%q, %v", seen, err)
		}
	})
}

// With an option that has no effect on Forward, each call fails before anything is sent.
func TestForwardRefusesOtherOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, opt := range map[string]tokensource.Option{
			"WithAudience": tokensource.WithAudience("billing"),
			"WithStore":    tokensource.WithStore(new(keep).store),
			"WithLogger":   tokensource.WithLogger(slog.Default()),
		} {
			service := startService(t)
			conn := service.dial(t, nil, tokensource.Forward(tokensource.WithPlaintextToOtherHosts(), opt)...)
			for method, stream := range map[string]bool{unaryMethod: false, streamMethod: true} {
				_, err := call(t.Context(), conn, method, stream)
				if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "no option but WithPlaintextToOtherHosts") {
					t.Errorf("%s: %v", name, err)
				}
			}
			saw(t, service, "")
		}
	})
}

// If the second service refuses the token, the caller does not repeat the call of the first
// service.
func TestRefusalFromFurtherDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := authntest.New()
		service := startService(t)
		service.refuses(func(method, _ string) error { return refusal(codes.Unauthenticated, "TOKEN_STALE", method) })
		middle := serveMiddle(t, issuer.NewVerifier(t, authn.WithAudience("test"), tokenNeeded("/any.v1.Any/*")), service.dial(t, nil, tokensource.Forward()...), false)
		raw := issuer.Token(alice)
		_, err := call(bearing(t.Context(), "Bearer "+raw), middle, "/any.v1.Any/Method", false)
		refusedBy(t, err, codes.Unauthenticated, "TOKEN_STALE", unaryMethod)
		saw(t, service, raw)
	})
}

// A source calls a guarded service that passes the token on to another service. The source
// renews the token after a change of rights, and neither handler notices.
func TestSourceThroughAChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, auth, second := authntest.New(), startAuth(t), startService(t)
		auth.mint = func(int) string { return issuer.Token(alice) }
		source, err := tokensource.Password(auth.dial(t, nil), "alice", "secret")
		check(t, err)
		defer source.Close()
		conn := serveMiddle(t, issuer.NewVerifier(t, authn.WithAudience("test"), tokenNeeded("/any.v1.Any/*")), second.dial(t, nil, tokensource.Forward()...), false, source.DialOptions()...)
		do := func(ctx context.Context) string {
			t.Helper()
			seen, err := call(ctx, conn, "/any.v1.Any/Method", false)
			check(t, err)
			return seen
		}
		before := do(t.Context())
		saw(t, auth, "login")
		issuer.ChangeRights(alice)
		after := do(t.Context())
		saw(t, auth, "refresh-1")
		if before == after || before == "none" {
			t.Errorf("%q, then %q", before, after)
		}
		saw(t, second, before+" "+after)
	})
}
