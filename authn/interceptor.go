package authn

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/token"
)

// ServerOptions guards a server: both interceptors, by grpc.ChainUnaryInterceptor
// and grpc.ChainStreamInterceptor. Interceptors given to grpc.NewServer before
// these stand outside and see refusals; those after see only calls that passed.
func (v *Verifier) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(v.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(v.StreamServerInterceptor()),
	}
}

// UnaryServerInterceptor guards unary calls alone; ServerOptions guards both.
//
// A refusal names the method in its ErrorInfo. Its reasons are those of Verify,
// except that a call without a token is TOKEN_MISSING, and one with anything but
// one value "Bearer TOKEN" is TOKEN_INVALID; ROLE_REQUIRED comes last. A method
// name that is not of the form /service/method is UNIMPLEMENTED.
//
// Only a refusal from here names the method called. It is taken out of the ErrorInfo
// of an error that a handler returns, such as one of Verify about another token: a
// caller would take it for the refusal of its own, and make the call once more.
//
// The error of ROLE_REQUIRED has a method Principal() *Principal, for interceptors
// that stand outside and record refusals.
func (v *Verifier) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := v.guard(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		resp, err := handler(ctx, req)
		if err != nil {
			err = refusal.WithoutMethod(err, info.FullMethod)
		}
		return resp, err
	}
}

// guard lets a call pass, with the context that its handler shall see, or
// refuses it.
func (v *Verifier) guard(ctx context.Context, full string) (context.Context, error) {
	r, err := v.access.of(full)
	if errors.Is(err, errMalformedMethod) {
		// No rule can be about it, and a handler for unknown services might
		// read it as another method.
		return nil, status.Error(codes.Unimplemented, "malformed method name")
	}
	if err != nil {
		v.bundle.log.Error("a method's rule contradicts itself", "error", err)
		return nil, status.Error(codes.Internal, "internal error")
	}
	if r.public {
		return withoutPrincipal(ctx), nil
	}
	p, err := v.verifyIncoming(ctx, full)
	if err != nil {
		return nil, err
	}
	if !r.allows(p) {
		return nil, &roleRefusal{refuse(roleRequired, full), p}
	}
	return withPrincipal(ctx, p), nil
}

// verifyIncoming judges the token that a call carries.
func (v *Verifier) verifyIncoming(ctx context.Context, method string) (*Principal, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	raw, ok := token.Bearer(values)
	if ok {
		p, reason := v.verify(raw, &v.audience)
		if reason != accepted {
			return nil, refuse(reason, method)
		}
		return p, nil
	}
	reason := tokenInvalid
	if len(values) == 0 {
		reason = tokenMissing
	}
	if !v.bundle.fresh.judging() {
		reason = bundleStale
	}
	return nil, refuse(v.counters.refused(reason), method)
}
