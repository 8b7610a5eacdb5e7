package tokensource

import (
	"context"
	"maps"
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

// tokenUseless holds the reasons of a refusal after which another token can help. After any other
// reason, the service would refuse a new token too.
var tokenUseless = map[watchwordv1.ErrorReason]bool{
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE:   true,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED: true,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID: true,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED: true,
}

// An attempt stands for one try of a call. The attempt tells the interceptors which token the call
// carried, or the error of GetRequestMetadata: grpc-go replaces some errors of GetRequestMetadata
// (gRFC A54), and drops the details of these errors.
type attempt struct {
	method string
	sent   atomic.Pointer[sent] // the token of the call; stored again if grpc-go sends the call again, from another goroutine
}

// sent holds the token of a call, or the error in place of a token.
type sent struct {
	holder holder
	token  string
	err    error
}

// A holder holds a token that calls carry: a [Source], or a [delegation].
type holder interface {
	// replace takes a refused token out of use, unless services refuse tokens too often, and
	// reports whether to send the refused call again.
	replace(token string, why watchwordv1.ErrorReason) (again bool)
}

// attemptKey finds the attempt in the context of a call. The field of points at the credentials of
// the call: a [Source], an [onBehalf], or the config of [Forward], which notes no token.
type attemptKey struct{ of any }

// note tells the attempt in ctx which token the call carries, or the error in place of a token.
func note(ctx context.Context, of any, s *sent) {
	if a, ok := ctx.Value(attemptKey{of}).(*attempt); ok {
		a.sent.Store(s)
	}
}

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
	return a.refused(err) && sent.holder.replace(sent.token, refusal.Reason(err)), err
}

// refused reports whether err says that the called method refused the token, before any work
// was done.
func (a *attempt) refused(err error) bool {
	return tokenUseless[refusal.Reason(err)] && refusal.Method(err) == a.method
}

// leftNothing reports whether the attempt, which ended with err, has had no effect: the attempt had
// no token, or the called method refused the token.
func (a *attempt) leftNothing(err error) bool {
	sent := a.sent.Load()
	return err != nil && (sent != nil && sent.err != nil || a.refused(err))
}

// sendTwice sends a call, and sends the call once more if the called method refused the token for a
// reason that the holder of the token allows. of points at the credentials of the call, as in
// [attemptKey].
func sendTwice(ctx context.Context, of any, method string, send func(context.Context) error) (err error) {
	for tries, again := 0, true; again && tries < 2; tries++ {
		a := &attempt{method: method}
		err = send(context.WithValue(ctx, attemptKey{of}, a))
		if !a.leftNothing(err) {
			refusal.SentOn(ctx)
		}
		again, err = a.ended(err)
	}
	return err
}

// interceptors returns the options for grpc.NewClient with the interceptors of the credentials
// in of. dropCallers is the option [WithCallersHeaderDropped].
func interceptors(of any, dropCallers bool) []grpc.DialOption {
	prepare := func(ctx context.Context, conn *grpc.ClientConn) context.Context {
		if dropCallers {
			ctx = withoutAuthorization(ctx)
		}
		return withTarget(ctx, conn)
	}
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return sendTwice(prepare(ctx, conn), of, method, func(ctx context.Context) error {
				return invoke(ctx, method, req, reply, conn, opts...)
			})
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			a := &attempt{method: method}
			opened, err := open(context.WithValue(prepare(ctx, conn), attemptKey{of}, a), desc, conn, method, opts...)
			if err != nil {
				_, err = a.ended(err)
				return nil, err
			}
			refusal.SentOn(ctx)
			return &stream{opened, a}, nil
		}),
	}
}

// withoutAuthorization returns the context of a call without the metadata that
// [WithCallersHeaderDropped] drops.
func withoutAuthorization(ctx context.Context) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx) // a copy, with keys in lower case
	maps.DeleteFunc(md, func(key string, _ []string) bool {
		return key == "authorization" || strings.HasSuffix(key, "-authorization")
	})
	return metadata.NewOutgoingContext(ctx, md)
}

// stream wraps the stream of a call, and hands the error at the stream's end to the attempt.
type stream struct {
	grpc.ClientStream
	attempt *attempt
}

// RecvMsg calls grpc.ClientStream.RecvMsg. If the error says that the called method refused the
// token, RecvMsg takes the token out of use.
func (s *stream) RecvMsg(m any) error {
	_, err := s.attempt.ended(s.ClientStream.RecvMsg(m))
	return err
}

// Forward returns the options for grpc.NewClient by which a handler calls the next service
// in the name of the handler's caller: pass the handler's context to the calls. A call with
// the context of a guarded call (authn.FromContext finds a Principal) carries the token of the
// guarded call. Every other call goes out without a token.
//
// The next service receives the very same token. So the token must be for that service's
// audience too, and that service can use the token elsewhere, for everything that the
// caller is allowed to do. If the next service does not deserve so much trust, give the handler's
// service a [Source] of its own.
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
	c := new(config)
	for _, opt := range opts {
		opt(c)
	}
	credentials := perRPC(func(ctx context.Context, uri []string) (map[string]string, error) {
		if c.misplaced() || c.dropCallers { // the code INVALID_ARGUMENT would become INTERNAL too, with another text (gRFC A54)
			return nil, status.Error(codes.Internal, "tokensource: Forward takes no option but WithPlaintextToOtherHosts")
		}
		forwarded, ok := callersToken(ctx)
		if !ok {
			return nil, nil
		}
		if err := checkCall(ctx, uri, c.plaintext); err != nil {
			return nil, err
		}
		return map[string]string{"authorization": "Bearer " + forwarded}, nil
	})
	return append(interceptors(c, false), grpc.WithPerRPCCredentials(credentials))
}

// callersToken returns the access token of the handler's caller. ok is false outside of a
// guarded call: callersToken returns only a token that a Verifier has accepted.
func callersToken(ctx context.Context) (raw string, ok bool) {
	if _, guarded := authn.FromContext(ctx); !guarded {
		return "", false
	}
	return token.Bearer(metadata.ValueFromIncomingContext(ctx, "authorization"))
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
// target of conn. withTarget returns ctx itself if conn does not say its target, as a conn of
// another type than *grpc.ClientConn.
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
// too: the host in uri is the authority of the connection, which checkCall takes for the target
// of the connection if ctx is not from [withTarget].
//
// Errors: INTERNAL if the call has authorization metadata of its own; UNAUTHENTICATED for
// the connection, as in grpc-go itself. grpc-go would turn FAILED_PRECONDITION into
// INTERNAL (gRFC A54).
func checkCall(ctx context.Context, uri []string, plaintext bool) error {
	if md, _ := metadata.FromOutgoingContext(ctx); len(md["authorization"]) > 0 {
		return status.Error(codes.Internal, "tokensource: the call carries authorization metadata of its own; a gateway that calls in its own name drops the metadata by WithCallersHeaderDropped")
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
