package tokensource

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/transport"
)

// tokenUseless holds the reasons for which a token is replaced; a new token would meet
// every other refusal too. The value says whether the refused call is made again.
var tokenUseless = map[watchwordv1.ErrorReason]bool{
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE:   true,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED: true,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID: true,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED: false,
}

// An attempt carries from [Source.GetRequestMetadata] to the interceptors what a call
// went out with. The error of GetRequestMetadata comes this way too: grpc-go replaces
// some errors (gRFC A54), and their details would be lost.
type attempt struct {
	source *Source
	method string
	sent   atomic.Pointer[sent] // grpc-go may ask again, from another goroutine
}

// sent is the token that a call carries, or the error in place of it.
type sent struct {
	token string
	err   error
}

// attemptKey finds the attempt of a source in the context of a call.
type attemptKey struct{ *Source }

// ended returns the error of a call whose result was err, and reports whether to make
// the call again. If err is the refusal of the token by the method that was called,
// the token goes out of use.
func (a *attempt) ended(err error) (again bool, _ error) {
	sent := a.sent.Load()
	if err == nil || sent == nil {
		return false, err
	}
	if sent.err != nil {
		return false, sent.err
	}
	replay, useless := tokenUseless[refusal.Reason(err)]
	if useless && refusal.Method(err) == a.method {
		again = a.source.replace(sent.token) && replay
	}
	return again, err
}

// replace takes a refused token out of use. It reports whether there is another token,
// or may be: not if a service refuses too many. A second call that was refused with
// the same token finds the token replaced.
func (s *Source) replace(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.access == token && s.replacements.Allow() {
		s.access = ""
	}
	return s.access != token
}

// interceptUnary makes a call, and once more if the service refused its token.
func (s *Source) interceptUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) (err error) {
	for tries, again := 0, true; again && tries < 2; tries++ {
		a := &attempt{source: s, method: method}
		again, err = a.ended(invoke(context.WithValue(ctx, attemptKey{s}, a), method, req, reply, conn, opts...))
	}
	return err
}

// interceptStream opens a stream that replaces its token if the service refuses it.
func (s *Source) interceptStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	a := &attempt{source: s, method: method}
	opened, err := open(context.WithValue(ctx, attemptKey{s}, a), desc, conn, method, opts...)
	if err != nil {
		_, err = a.ended(err)
		return nil, err
	}
	return &stream{opened, a}, nil
}

// A stream takes note of how it ends.
type stream struct {
	grpc.ClientStream
	attempt *attempt
}

func (s *stream) RecvMsg(m any) error {
	_, err := s.attempt.ended(s.ClientStream.RecvMsg(m))
	return err
}

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
// The token is not renewed: after a refusal, the caller has to send a new one. A
// refusal that the handler returns names the method of the next service, or no method
// if both have the same name, so no caller makes the whole chain of calls again.
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
