package tokensource

import (
	"context"
	"net/url"
	"strings"
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

// tokenUseless holds the reasons for which a service may refuse a token that the Source
// then replaces. After any other reason the service would refuse a new token too. The value
// says whether the refused call is sent again.
var tokenUseless = map[watchwordv1.ErrorReason]bool{
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE:   true,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED: true,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID: true,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED: false,
}

// An attempt is one try of a call. The attempt tells the interceptors which token the call
// carried, or the error of [Source.GetRequestMetadata]: grpc-go replaces some of those
// errors (gRFC A54) and drops their details.
type attempt struct {
	source *Source
	method string
	sent   atomic.Pointer[sent] // stored again if grpc-go tries again by itself, from another goroutine
}

// sent holds the token of a call, or the error in place of a token.
type sent struct {
	token string
	err   error
}

// attemptKey finds the attempt of a source in the context of a call.
type attemptKey struct{ *Source }

// ended returns the error of a call that ended with err, and whether to send the call
// again. If err says that the called method refused the token, ended takes the token out of
// use.
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
		again = a.source.replace(sent.token, refusal.Reason(err)) && replay
	}
	return again, err
}

// replace takes a refused token out of use, and returns whether another token is available
// or a renewal may bring one. It returns false if services refuse tokens too often. If
// another refused call has replaced the same token already, replace returns true.
func (s *Source) replace(token string, why watchwordv1.ErrorReason) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[refusal.Name(why)]++
	if s.access == token && s.replacements.Allow() {
		s.access = ""
	}
	return s.access != token
}

// interceptUnary sends a call, and sends it once more if the service refused the token for
// a reason that [tokenUseless] allows.
func (s *Source) interceptUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) (err error) {
	for tries, again := 0, true; again && tries < 2; tries++ {
		a := &attempt{source: s, method: method}
		again, err = a.ended(invoke(context.WithValue(withTarget(ctx, conn), attemptKey{s}, a), method, req, reply, conn, opts...))
	}
	return err
}

// interceptStream opens a stream. If the service refuses the token, at any time,
// interceptStream takes the token out of use.
func (s *Source) interceptStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	a := &attempt{source: s, method: method}
	opened, err := open(context.WithValue(withTarget(ctx, conn), attemptKey{s}, a), desc, conn, method, opts...)
	if err != nil {
		_, err = a.ended(err)
		return nil, err
	}
	return &stream{opened, a}, nil
}

// A stream gives the error of its end to its attempt.
type stream struct {
	grpc.ClientStream
	attempt *attempt
}

// RecvMsg calls grpc.ClientStream.RecvMsg; an error may take the token out of use.
func (s *stream) RecvMsg(m any) error {
	_, err := s.attempt.ended(s.ClientStream.RecvMsg(m))
	return err
}

// Forward returns the options for grpc.NewClient by which a handler calls the next service
// in the name of the handler's caller: pass the handler's context to the calls. A call with
// the context of a guarded call (authn.FromContext finds a Principal) carries the token
// verified there. Every other call goes out without a token.
//
// The next service receives the very same token. So the token must be for that service's
// audience too, and that service can use the token elsewhere, for everything that the
// caller may do. Where this is too much trust, give the handler's service a [Source] of its
// own.
//
// Forward does not renew a token: if the next service refuses the token, the caller has to
// send a new one. If the handler returns the error of the next service, the error names the
// next service's method, or no method if both methods have the same name. So no caller
// repeats the whole chain of calls.
//
// Forward takes only the option [WithPlaintextToOtherHosts]. With any other option every
// call is INTERNAL, because the option cannot have its effect: a forwarded token keeps its
// audience.
//
// Errors of calls: UNAUTHENTICATED without a reason if the connection is plaintext to
// another machine; INTERNAL if the call has authorization metadata of its own, and after an
// option that Forward does not take.
func Forward(opts ...Option) []grpc.DialOption {
	var c config
	for _, opt := range opts {
		opt(&c)
	}
	misplaced := len(c.audience) > 0 || c.store != nil || c.log != nil || c.meters != nil
	credentials := perRPC(func(ctx context.Context, uri []string) (map[string]string, error) {
		if misplaced { // the code INVALID_ARGUMENT would become INTERNAL too, with another text (gRFC A54)
			return nil, status.Error(codes.Internal, "tokensource: Forward takes no option but WithPlaintextToOtherHosts")
		}
		forwarded, ok := token.Bearer(metadata.ValueFromIncomingContext(ctx, "authorization"))
		if _, guarded := authn.FromContext(ctx); !guarded || !ok {
			return nil, nil
		}
		if err := checkCall(ctx, uri, c.plaintext); err != nil {
			return nil, err
		}
		return map[string]string{"authorization": "Bearer " + forwarded}, nil
	})
	return []grpc.DialOption{
		grpc.WithPerRPCCredentials(credentials),
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(withTarget(ctx, conn), method, req, reply, conn, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(withTarget(ctx, conn), desc, conn, method, opts...)
		}),
	}
}

// perRPC makes credentials.PerRPCCredentials of a function.
type perRPC func(ctx context.Context, uri []string) (map[string]string, error)

// RequireTransportSecurity returns false: [checkCall] checks the connection instead.
func (perRPC) RequireTransportSecurity() bool { return false }

// GetRequestMetadata calls f.
func (f perRPC) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	return f(ctx, uri)
}

// targetKey finds the target of a call's connection in the context of the call.
type targetKey struct{}

// withTarget returns the context of a call over conn, from which [checkCall] learns the
// target of conn. A conn of another type than *grpc.ClientConn may not say its target.
func withTarget(ctx context.Context, conn any) context.Context {
	if target := transport.Target(conn); target != "" {
		return context.WithValue(ctx, targetKey{}, target)
	}
	return ctx
}

// checkCall returns an error if a call must not carry a secret over its connection. The
// connection must be private or within this machine, or plaintext must be allowed. ctx must
// be the context that grpc-go gives to per-RPC credentials: the peer in that context is the
// peer of the call's own connection, and no longer a handler's caller. uri is from grpc-go
// too. Its host is the authority of the connection, which stands for the target of the
// connection if ctx is not from [withTarget].
//
// Errors: INTERNAL if the call has authorization metadata of its own; UNAUTHENTICATED for
// the connection, as in grpc-go itself. grpc-go would turn FAILED_PRECONDITION into
// INTERNAL (gRFC A54).
func checkCall(ctx context.Context, uri []string, plaintext bool) error {
	if md, _ := metadata.FromOutgoingContext(ctx); len(md["authorization"]) > 0 {
		return status.Error(codes.Internal, "tokensource: the call carries authorization metadata of its own")
	}
	target, ok := ctx.Value(targetKey{}).(string)
	if at, err := url.Parse(strings.Join(uri, "")); !ok && err == nil {
		target = "passthrough:///" + at.Host
	}
	p, _ := peer.FromContext(ctx)
	if plaintext || transport.Protects(p, target, credentials.PrivacyAndIntegrity) {
		return nil
	}
	return status.Errorf(codes.Unauthenticated, "tokensource: refusing to send a secret over plaintext to %s, "+
		"because anyone on the path could use it: dial with TLS credentials, or allow plaintext by WithPlaintextToOtherHosts", transport.Name(p, target))
}
