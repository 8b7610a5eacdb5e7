package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
)

// A payment is a service that does work which must be done only once.
type payment struct {
	*authn.Verifier
	issuer *authntest.Issuer
	auth   *authServer
	conn   *grpc.ClientConn // a connection with a token source

	mu    sync.Mutex
	calls int // the number of calls whose work the handler has done
	fails func(ctx context.Context) error
}

const (
	payOnce      = "/pay.v1.Pay/Once"
	payOpenly    = "/pay.v1.Pay/Openly"
	payAsStream  = "/pay.v1.Pay/AsStream"
	payOpenlyToo = "/pay.v1.Pay/OpenlyAsStream"
)

// startPayment runs a guarded service. Its methods do their work and then fail.
func startPayment(t *testing.T, outside ...grpc.ServerOption) *payment {
	t.Helper()
	issuer := authntest.New()
	p := &payment{issuer: issuer, auth: startAuth(t)}
	p.Verifier = issuer.NewVerifier(t, authn.WithAudience("test"), authn.WithPublicMethods(payOpenly, payOpenlyToo), tokenNeeded("/pay.v1.Pay/*"))
	p.auth.mint = func(int) string { return issuer.Token(alice) }
	source, err := tokensource.Password(p.auth.dial(t, nil), "alice", "secret")
	check(t, err)
	t.Cleanup(func() { source.Close() })
	p.conn = serve(t, p.register, append(outside, p.ServerOptions()...)...).dial(t, nil, source.DialOptions()...)
	return p
}

func (p *payment) register(r *grpc.Server) {
	desc := &grpc.ServiceDesc{ServiceName: "pay.v1.Pay"}
	for _, name := range []string{"Once", "Openly"} {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			if err := decode(new(emptypb.Empty)); err != nil {
				return nil, err
			}
			return intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/pay.v1.Pay/" + name}, func(ctx context.Context, _ any) (any, error) {
				return new(emptypb.Empty), p.work(ctx)
			})
		}})
	}
	for _, name := range []string{"AsStream", "OpenlyAsStream"} {
		desc.Streams = append(desc.Streams, grpc.StreamDesc{StreamName: name, ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			return p.work(s.Context())
		}})
	}
	r.RegisterService(desc, nil)
}

func (p *payment) work(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	return p.fails(ctx)
}

// A handler verifies some other token and returns the error. The call is not repeated, and
// the caller's own token stays in use.
func TestTheRefusalOfAnotherTokenRepeatsNoCall(t *testing.T) {
	for _, kind := range []struct {
		method string
		stream bool
	}{{payOnce, false}, {payOpenly, false}, {payAsStream, true}, {payOpenlyToo, true}} {
		t.Run(strings.TrimPrefix(kind.method, "/pay.v1.Pay/"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startPayment(t)
				bob, carol := authntest.User{Name: "bob"}, authntest.User{Name: "carol"}
				approvals := map[string]string{
					"TOKEN_INVALID": "a.forged.approval",
					"TOKEN_REVOKED": p.issuer.Token(bob),
					"TOKEN_STALE":   p.issuer.Token(carol),
					"TOKEN_EXPIRED": p.issuer.Token(authntest.User{Name: "dave", Lifetime: time.Second}),
				}
				p.issuer.EndSession(approvals["TOKEN_REVOKED"])
				p.issuer.ChangeRights(carol)
				time.Sleep(time.Second)
				for reason, approval := range approvals {
					for _, wrapped := range []bool{false, true} {
						p.calls = 0
						p.fails = func(ctx context.Context) error {
							_, err := p.VerifyFor(ctx, approval, "test")
							if refusedBy(t, err, codes.Unauthenticated, reason, kind.method); wrapped {
								err = fmt.Errorf("the approval: %w", err)
							}
							return err
						}
						_, err := call(t.Context(), p.conn, kind.method, kind.stream)
						refusedBy(t, err, codes.Unauthenticated, reason, "")
						if p.calls != 1 {
							t.Fatalf("%s: the work was done %d times", reason, p.calls)
						}
					}
				}
				saw(t, p.auth, "login")
			})
		})
	}
}

// An interceptor given before the verifier's sees the handler's error, unchanged except for
// the removed method.
func TestAHandlersErrorStaysTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sentinel := errors.New("no approval")
		var seen []error
		p := startPayment(t, grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			resp, err := handler(ctx, req)
			seen = append(seen, err)
			return resp, err
		}))
		refused := refusal(codes.Unauthenticated, "TOKEN_STALE", payOnce)
		for _, err := range []error{
			sentinel,
			fmt.Errorf("%w: %w", sentinel, refused),
			errors.Join(refusal(codes.Unauthenticated, "TOKEN_STALE", payOpenly), sentinel),
		} {
			p.fails, seen = func(context.Context) error { return err }, nil
			_, _ = call(t.Context(), p.conn, payOnce, false)
			if len(seen) != 1 || !errors.Is(seen[0], sentinel) || seen[0].Error() != err.Error() {
				t.Errorf("the interceptor saw %v, want %v", seen, err)
			}
		}
	})
}

// A service forwards a call to a method of the same name. The error of the next service
// comes back without the method, so the caller does not repeat the call.
func TestForwardedToTheSameMethod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, auth, next := authntest.New(), startAuth(t), startService(t)
		raw := issuer.Token(alice)
		auth.mint = func(int) string { return raw }
		next.refuses(func(method, _ string) error { return refusal(codes.Unauthenticated, "TOKEN_STALE", method) })
		source, err := tokensource.Password(auth.dial(t, nil), "alice", "secret")
		check(t, err)
		defer source.Close()
		conn := serveMiddle(t, issuer.NewVerifier(t, authn.WithAudience("test"), tokenNeeded(unaryMethod)), next.dial(t, nil, tokensource.Forward()...), false, source.DialOptions()...)
		_, err = call(t.Context(), conn, unaryMethod, false)
		refusedBy(t, err, codes.Unauthenticated, "TOKEN_STALE", "")
		saw(t, next, raw)
		saw(t, auth, "login")
	})
}
