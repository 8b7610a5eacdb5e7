package tokensource

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/transport"
)

// Forward returns the options for grpc.NewClient by which a handler calls the next
// service in the name of its own caller: pass the handler's context to the calls. A
// call with the context of a guarded call, in which authn.FromContext finds a
// Principal, carries the token that was verified there. Every other call goes out
// without a token.
//
// The next service sees the very same token. So the token must be for that service's
// audience too, and that service can do elsewhere whatever the caller may. Where this
// is too much trust, give the handler's service a [Source] of its own.
//
// The token is not renewed: after a refusal, the caller has to send a new one. The
// interceptors of authn let the refusal pass only without the name of the handler's own
// method, so no caller makes the whole chain of calls again.
//
// [WithPlaintextToOtherHosts] is the one option that Forward takes. With any other
// option every call is INTERNAL, since the option asks for what Forward cannot do: a
// forwarded token has the audience that it has.
//
// Errors of calls: UNAUTHENTICATED without a reason if the connection is plaintext to
// another machine; INTERNAL if the call has authorization metadata of its own, and for
// an option that Forward does not take.
func Forward(opts ...Option) []grpc.DialOption {
	var c config
	for _, opt := range opts {
		opt(&c)
	}
	misplaced := len(c.audience) > 0 || c.store != nil || c.log != nil
	return []grpc.DialOption{grpc.WithPerRPCCredentials(perRPC(func(ctx context.Context) (map[string]string, error) {
		if misplaced { // the code INVALID_ARGUMENT would become INTERNAL too, with another text (gRFC A54)
			return nil, status.Error(codes.Internal, "tokensource: Forward takes no option but WithPlaintextToOtherHosts")
		}
		forwarded, ok := token.Bearer(metadata.ValueFromIncomingContext(ctx, "authorization"))
		if _, guarded := authn.FromContext(ctx); !guarded || !ok {
			return nil, nil
		}
		if err := checkCall(ctx, c.plaintext); err != nil {
			return nil, err
		}
		return map[string]string{"authorization": "Bearer " + forwarded}, nil
	}))}
}

// perRPC makes credentials.PerRPCCredentials of a function. It requires no transport
// security, since connections within this machine need none: see [checkCall].
type perRPC func(ctx context.Context) (map[string]string, error)

func (perRPC) RequireTransportSecurity() bool { return false }

func (f perRPC) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	return f(ctx)
}

// checkCall returns an error if a call must not carry a secret over its connection:
// the connection must be private, or within this machine, or plaintext must be
// allowed. grpc-go puts the connection's peer into ctx before it asks per-RPC
// credentials, in place of a peer that was there, such as a handler's caller.
//
// Errors: INTERNAL if the call has authorization metadata of its own; UNAUTHENTICATED
// for the connection, as grpc-go has it. grpc-go would turn FAILED_PRECONDITION into
// INTERNAL (gRFC A54).
func checkCall(ctx context.Context, plaintext bool) error {
	if md, _ := metadata.FromOutgoingContext(ctx); len(md["authorization"]) > 0 {
		return status.Error(codes.Internal, "tokensource: the call carries authorization metadata of its own")
	}
	p, _ := peer.FromContext(ctx)
	if plaintext || transport.Protects(p, credentials.PrivacyAndIntegrity) {
		return nil
	}
	return status.Errorf(codes.Unauthenticated, "tokensource: refusing to send a secret over plaintext to %s, "+
		"since anyone on the path could use it: dial with TLS credentials, or allow plaintext by option", transport.Name(p))
}
