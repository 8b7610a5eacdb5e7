package tokensource_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
)

// asGateway returns the context of a call with the metadata that a gateway copies from the headers
// of its caller, in the spellings that a client can choose.
func asGateway(ctx context.Context) context.Context {
	ctx = metadata.NewOutgoingContext(ctx, metadata.MD{
		"authorization": {"Bearer callers-token", "Basic callers-password"}, "x-request-id": {"7"},
	})
	return metadata.AppendToOutgoingContext(ctx, "AUTHORIZATION", "Bearer callers-token",
		"grpcgateway-Authorization", "Bearer callers-token", "grpcgateway-proxy-authorization", "Bearer callers-token",
		"x-authorization-time", "noon")
}

// startMetadata runs a service that answers with the call's token, and sends the metadata of each
// call to the channel.
func startMetadata(t *testing.T) (reachable, <-chan metadata.MD) {
	t.Helper()
	seen := make(chan metadata.MD, 10)
	return serve(t, func(*grpc.Server) {}, grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		if err := s.RecvMsg(new(emptypb.Empty)); err != nil {
			return err
		}
		md, _ := metadata.FromIncomingContext(s.Context())
		seen <- md
		return s.SendMsg(wrapperspb.String(tokenIn(s.Context())))
	})), seen
}

// With WithCallersHeaderDropped, the service sees only the token of the source: nothing of the
// caller's token goes on, under any key. Other metadata goes on.
func TestCallersHeaderDropped(t *testing.T) {
	for method, stream := range map[string]bool{unaryMethod: false, streamMethod: true} {
		synctest.Test(t, func(t *testing.T) {
			c := withPassword(t, tokensource.WithCallersHeaderDropped())
			service, seen := startMetadata(t)
			conn := service.dial(t, nil, c.DialOptions()...)
			token, err := call(asGateway(t.Context()), conn, method, stream)
			if err != nil || token != "access-1" {
				t.Fatalf("%q, %v", token, err)
			}
			wantsOthersAlone(t, <-seen)

			// Credentials without the interceptors, and an interceptor that adds a token later.
			own := grpc.PerRPCCredentials(c.Source)
			err = service.dial(t, nil).Invoke(asGateway(t.Context()), unaryMethod, new(emptypb.Empty), new(emptypb.Empty), own)
			wantMisuse(t, err, "metadata of its own")
			late := append(c.DialOptions(), grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				return invoke(bearing(ctx, "Bearer late"), method, req, reply, conn, opts...)
			}))
			_, err = call(t.Context(), service.dial(t, nil, late...), unaryMethod, false)
			wantMisuse(t, err, "metadata of its own")
			if len(seen) > 0 {
				t.Error("the service was called")
			}
		})
	}
}

// wantsOthersAlone checks that the service has seen the other metadata of asGateway, and no
// trace of the caller's token.
func wantsOthersAlone(t *testing.T, md metadata.MD) {
	t.Helper()
	for key, values := range md {
		if text := strings.Join(values, " "); strings.Contains(text, "callers") {
			t.Errorf("the service sees %s: %q", key, text)
		}
	}
	if len(md["x-request-id"]) != 1 || len(md["x-authorization-time"]) != 1 || len(md["authorization"]) != 1 {
		t.Errorf("the service sees %v", md)
	}
}

// A gateway that verifies its caller by Authorize can call on the caller's behalf. With
// WithCallersHeaderDropped the called service sees only the delegated token; without the option
// no call reaches the service. Forward sends the caller's token, and refuses the option.
func TestAGatewayThatAuthorizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRelay(t, false)
		raw := r.issuer.Token(authntest.User{Name: "alice"})
		verifier := r.issuer.NewVerifier(t, authn.WithAudience("test"), tokenNeeded("/any.v1.Any/*"))
		ctx, err := verifier.Authorize(t.Context(), relayMethod, []string{"Bearer " + raw})
		check(t, err)
		service, seen := startMetadata(t)
		watchword := r.auth.dial(t, nil)

		behalf := service.dial(t, nil, tokensource.OnBehalfOf(r.source, watchword, "search", tokensource.WithCallersHeaderDropped())...)
		token, err := call(asGateway(ctx), behalf, unaryMethod, false)
		check(t, err)
		saw(t, r.auth, "exchange:a.b.c:watchword delegate:own-1:search")
		if wantsOthersAlone(t, <-seen); token != "delegated-1" {
			t.Errorf("the service sees the token %q", token)
		}
		_, err = call(asGateway(ctx), service.dial(t, nil, tokensource.OnBehalfOf(r.source, watchword, "search")...), unaryMethod, false)
		wantMisuse(t, err, "metadata of its own")

		token, err = call(ctx, service.dial(t, nil, tokensource.Forward()...), unaryMethod, false)
		if <-seen; err != nil || token != raw {
			t.Errorf("Forward: %q, %v", token, err)
		}
		_, err = call(ctx, service.dial(t, nil, tokensource.Forward(tokensource.WithCallersHeaderDropped())...), unaryMethod, false)
		if status.Code(err) != codes.Internal {
			t.Errorf("Forward took the option: %v", err)
		}
		if len(seen) > 0 {
			t.Error("the service was called")
		}
	})
}
