package authn

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/internal/transport"
)

// ForwardToken lets a handler call the next service in its caller's name: give
// these options to grpc.NewClient, and the handler's context to the calls. A call
// within a guarded call, where FromContext finds a Principal, carries the token
// that was judged there. Any other goes without a token.
//
// The next service sees the very same token: it must be for that service's
// audience too, and that service can do elsewhere whatever its caller may. Where
// this is too much trust, give the service Credentials of its own. The token is
// not renewed: its refusal is the sender's matter. A refusal that a handler
// passes back names the method further down, or none if it is called the same, so
// that nobody replays the chain.
//
// Over plaintext to another machine a call is UNAUTHENTICATED without a reason;
// ForwardTokenOverPlaintext lets it pass. A call with authorization metadata of
// its own is INTERNAL.
func ForwardToken() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithPerRPCCredentials(forwarded{})}
}

// ForwardTokenOverPlaintext is ForwardToken for networks that protect the path
// to other machines by other means than TLS.
func ForwardTokenOverPlaintext() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithPerRPCCredentials(forwarded{plaintext: true})}
}

type forwarded struct{ plaintext bool }

func (forwarded) RequireTransportSecurity() bool { return false }

func (f forwarded) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, ok := bearer(metadata.ValueFromIncomingContext(ctx, "authorization"))
	if _, guarded := FromContext(ctx); !guarded || !ok {
		return nil, nil
	}
	if err := mayCarry(ctx, f.plaintext); err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// A gate is the call option that puts the secret into a request to Watchword.
// grpc-go asks per-RPC credentials when a call has its connection, and encodes
// the request after that. So no secret goes over a connection that nobody has
// looked at, also if a conn of somebody's own drops the option.
type gate struct {
	plaintext bool
	open      func()
}

func (gate) RequireTransportSecurity() bool { return false }

func (g gate) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	if err := mayCarry(ctx, g.plaintext); err != nil {
		return nil, err
	}
	g.open()
	return nil, nil
}

// mayCarry says whether a call may carry a secret over the connection that it
// was given: one that nobody can read along, or one within this machine. A name
// proves nothing, so it is the peer's address that counts. grpc-go puts the
// connection's peer into the context before it asks per-RPC credentials, in place
// of any that was there, such as a handler's caller. A proxy or tunnel on this
// machine passes as this machine: where it leads is not to be seen from here.
//
// The code is the one that grpc-go has for this: FAILED_PRECONDITION it would
// turn into INTERNAL (gRFC A54).
func mayCarry(ctx context.Context, plaintext bool) error {
	if md, ok := metadata.FromOutgoingContext(ctx); ok && len(md["authorization"]) > 0 {
		return status.Error(codes.Internal, "authn: the call carries authorization metadata of its own")
	}
	p, _ := peer.FromContext(ctx)
	if plaintext || transport.Protects(p, credentials.PrivacyAndIntegrity) {
		return nil
	}
	return status.Errorf(codes.Unauthenticated, "authn: refusing to send a secret over plaintext to %s, "+
		"since anyone on the path could use it: dial with TLS credentials, or allow plaintext by option", transport.Name(p))
}
