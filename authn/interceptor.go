package authn

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/token"
)

// ServerOptions returns the options for grpc.NewServer that guard unary and streaming
// calls: both interceptors, by grpc.ChainUnaryInterceptor and grpc.ChainStreamInterceptor.
// An interceptor given to grpc.NewServer before these runs for every call and sees
// refusals; an interceptor given after these runs for admitted calls only.
func (v *Verifier) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(v.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(v.StreamServerInterceptor()),
	}
}

// UnaryServerInterceptor returns the interceptor for unary calls. It leaves streaming calls
// unguarded; [Verifier.ServerOptions] guards both.
//
// A handler runs after the checks of the method's rule: every caller passes for a public
// method; otherwise a valid access token passes, with at least one of the rule's roles if
// the rule has roles. [FromContext] gives the handler the caller's principal.
//
// Errors, the first to apply: UNIMPLEMENTED for a method name of another form than
// /service/method; INTERNAL for a rule that contradicts itself, in a descriptor registered
// after NewVerifier; BUNDLE_STALE without a bundle or after Close; TOKEN_MISSING without
// authorization metadata; TOKEN_INVALID for anything but a single value "Bearer TOKEN" (RFC
// 6750 section 2.1); the reasons of [Verifier.Verify]; ROLE_REQUIRED without any of the
// roles. The error of ROLE_REQUIRED has a method Principal() *Principal, for interceptors
// that record refusals.
//
// The ErrorInfo of a refusal names the refused method in its metadata, and no error of a
// handler may name the same method: a client would take the error for a refusal of its own
// token and call again. So the interceptor removes the method from the ErrorInfo of a
// handler's error, such as an error of Verify about some other token.
func (v *Verifier) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := v.guard(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		resp, err := handler(ctx, req)
		return resp, refusal.WithoutMethod(err, info.FullMethod)
	}
}

// guard checks a call against the method's rule, and returns the context for the handler.
//
// Errors: see [Verifier.UnaryServerInterceptor].
func (v *Verifier) guard(ctx context.Context, full string) (context.Context, error) {
	r, err := v.access.of(full)
	if errors.Is(err, errMalformedMethod) {
		// No rule applies to such a name, and grpc.UnknownServiceHandler might take the
		// name for a method that has a rule.
		return nil, status.Error(codes.Unimplemented, "malformed method name")
	}
	if err != nil {
		v.bundle.log.Error("a method's rule contradicts itself", "error", err)
		return nil, status.Error(codes.Internal, "internal error")
	}
	if r.public {
		return withPrincipal(ctx, nil), nil
	}
	p, err := v.verifyIncoming(ctx, full)
	if err != nil {
		return nil, err
	}
	if len(r.roles) > 0 && !slices.ContainsFunc(r.roles, p.HasRole) {
		return nil, &roleRefusal{refuse(roleRequired, full), p}
	}
	return withPrincipal(ctx, p), nil
}

// verifyIncoming judges the token of an incoming call. method is named in the refusal.
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
