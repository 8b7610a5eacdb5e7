package authn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/spans"
	"github.com/watchword-auth/watchword/internal/token"
)

// ServerOptions returns the options for grpc.NewServer that guard unary and streaming calls:
// both interceptors, by grpc.ChainUnaryInterceptor and grpc.ChainStreamInterceptor. An
// interceptor given to grpc.NewServer before these options runs for every call and sees refused
// calls; an interceptor given after these options runs for admitted calls only.
func (v *Verifier) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(v.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(v.StreamServerInterceptor()),
	}
}

// UnaryServerInterceptor returns the interceptor for unary calls. UnaryServerInterceptor leaves
// streaming calls unguarded; [Verifier.ServerOptions] guards unary and streaming calls.
//
// The interceptor checks the access rule of the method before it calls the handler. A public
// method admits every caller. Any other method needs a valid access token, for the audience of
// [WithAudience], or for the rule's audience if the rule has an audience. If the rule has
// roles, the token needs at least one of the roles. If the rule refuses delegated tokens, the
// token must be the caller's own. [FromContext] gives the handler the caller's principal.
//
// A method without a descriptor in this program may have an option that the program cannot
// read. So a method without a descriptor admits no caller, unless [WithMethodRule] or
// [WithPublicMethods] names the method.
//
// Errors; if several apply, the first in this list:
//
//   - UNIMPLEMENTED for a method name of another form than /service/method.
//   - INTERNAL for an access rule that cannot be used, in a descriptor registered after
//     NewVerifier.
//   - BUNDLE_STALE without a trust bundle or after Close.
//   - TOKEN_MISSING without authorization metadata.
//   - TOKEN_INVALID for anything but a single value "Bearer TOKEN" (RFC 6750 section 2.1),
//     with blanks as RFC 9110 allows them.
//   - The reasons of [Verifier.Verify].
//   - PERMISSION_DENIED without a reason for a method without a descriptor.
//   - DELEGATION_DENIED for a delegated token, if the rule refuses delegated tokens.
//   - ROLE_REQUIRED without any of the roles.
//
// The errors DELEGATION_DENIED and ROLE_REQUIRED have a method Principal() *Principal, for
// interceptors that record refused calls.
//
// If the context of the call has a recorded span of OpenTelemetry, such as the span of
// otelgrpc's server handler, the span gets one attribute: watchword.token with the value check
// if the signature of the access token was checked, or watchword.refused with the reason. A
// token that was accepted from the cache leaves the span as it is. The span gets nothing about
// the caller.
//
// The ErrorInfo of a refused call names the called method. A client that finds the method of
// its call in the ErrorInfo renews its token and calls again. The error of a handler, such as
// an error of Verify about some other token, must not make the client renew its token. So the
// interceptor removes the called method from the ErrorInfo of a handler's error. Only an error of
// tokensource.OnBehalfOf about the caller's own token, in a handler that has sent nothing to
// another service, keeps the method.
func (v *Verifier) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	v.takenUnary.Store(true)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		admitted, err := v.guard(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		resp, err := handler(admitted, req)
		return resp, refusal.WithoutMethod(admitted, err, info.FullMethod)
	}
}

// guard checks a call against the access rule of the method, and returns the context for
// the handler. ctx has the metadata of the call.
//
// Errors: see [Verifier.UnaryServerInterceptor].
func (v *Verifier) guard(ctx context.Context, full string) (*handlerContext, error) {
	r, err := v.access.of(full)
	if err != nil {
		return nil, noted(ctx, v.withoutRule(err))
	}
	return v.guardBy(ctx, full, r)
}

// guardBy checks a call against the rule r, as [Verifier.guard] does.
func (v *Verifier) guardBy(ctx context.Context, full string, r *rule) (*handlerContext, error) {
	if r.public {
		return &handlerContext{Context: ctx, call: refusal.Call{Method: full}}, nil
	}
	t, err := v.admit(ctx, full, r)
	if err != nil {
		return nil, noted(ctx, err)
	}
	return &handlerContext{ctx, t, refusal.Call{Method: full}}, nil
}

// noted returns err, after noting on the span of the call why the call was refused.
func noted(ctx context.Context, err error) error {
	if spans.Recorded(ctx) {
		spans.Refused(ctx, refusal.Outcome(err))
	}
	return err
}

// withoutRule returns the status of a call for which [accessRules.of] has found no rule.
func (v *Verifier) withoutRule(err error) error {
	if errors.Is(err, errMalformedMethod) {
		// No access rule applies to a malformed name, and grpc.UnknownServiceHandler might take
		// the name for the name of a method with a rule.
		return status.Error(codes.Unimplemented, "malformed method name")
	}
	v.reportFault(err)
	return status.Error(codes.Internal, "internal error")
}

// admit checks a call against the rule r, which is not public, and returns the call's token. full
// is the name of the method, for errors.
func (v *Verifier) admit(ctx context.Context, full string, r *rule) (*authentic, error) {
	t, err := v.verifyIncoming(ctx, full, cmp.Or(r.audience, &v.audience))
	if err != nil {
		return nil, err
	}
	p := &t.principal
	if r.unknown { // after the token is verified, so that a caller without a token learns nothing, and writes nothing to the log
		v.reportFault(fmt.Errorf("%s: this program has no descriptor of the method", full))
		return nil, status.Error(codes.PermissionDenied, "the service has no access rule for this method")
	}
	if r.undelegated && len(p.claims.Actors) > 0 {
		last := p.claims.Actors[0]
		v.compared.write(slog.LevelInfo, "refused a call: the method refuses delegated tokens",
			"method", full, "subject", p.Subject(), "actor", last.Subject)
		err := refusal.Status(codes.PermissionDenied, delegationDenied, full,
			fmt.Sprintf("the method refuses delegated tokens, and %q acts for the caller", last.Username)).Err()
		return nil, &callerRefusal{err, p}
	}
	if len(r.roles) > 0 && !slices.ContainsFunc(r.roles, p.HasRole) {
		v.compared.write(slog.LevelInfo, "refused a call: the caller lacks the roles of the method",
			"method", full, "subject", p.Subject(), "token_roles", p.claims.Roles, "any_of", r.roles)
		err := refusal.Status(codes.PermissionDenied, roleRequired, full,
			fmt.Sprintf("the method needs one of the roles %q, and the caller has %q", r.roles, p.claims.Roles)).Err()
		return nil, &callerRefusal{err, p}
	}
	return t, nil
}

// verifyIncoming verifies the token of an incoming call for an audience. The error of a refused call
// names `method`.
func (v *Verifier) verifyIncoming(ctx context.Context, method string, want *audience) (*authentic, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	raw, ok := token.Bearer(values)
	if ok {
		t, reason, cached := v.verify(raw, want)
		switch reason {
		case accepted:
			if !cached { // a call with a cached token, the common case, does not look up the span
				trace.SpanFromContext(ctx).SetAttributes(byCheck)
			}
			return t, nil
		case audienceMismatch:
			p := &t.principal
			v.compared.write(slog.LevelInfo, "refused a call: the access token is for another audience",
				"method", method, "subject", p.Subject(), "token_audience", p.claims.Audience, "any_of", want.names)
			return nil, refusal.Status(codes.Unauthenticated, reason, method,
				fmt.Sprintf("the access token is for the audience %q, and the method asks for one of %q", p.claims.Audience, want.names)).Err()
		}
		return nil, refuse(reason, method)
	}
	switch {
	case !v.bundle.fresh.judging():
		return nil, refuse(v.counters.refused(bundleStale), method)
	case len(values) == 0:
		return nil, refuse(v.counters.refused(tokenMissing), method)
	}
	return nil, refusal.Status(codes.Unauthenticated, v.counters.refused(tokenInvalid), method,
		`the metadata "authorization" must be a single value of the form "Bearer TOKEN"`).Err()
}

// byCheck is the span attribute of a call with an access token that was not in the cache.
var byCheck = attribute.String("watchword.token", "check")

// reportFault logs that the access rule of a called method cannot be used.
func (v *Verifier) reportFault(err error) {
	v.faults.write(slog.LevelError, "calls are refused, because the access rule of a method cannot be used; CheckServices lists all such methods", "error", err)
}

// A rareLog writes lines about calls. Since callers choose how often they call, a rareLog
// writes at most one line in a pause.
type rareLog struct {
	log   *slog.Logger
	pause time.Duration
	next  atomic.Int64 // the earliest time of the next line, in nanoseconds since 1970
}

func (l *rareLog) write(level slog.Level, message string, attributes ...any) {
	now, next := time.Now(), l.next.Load()
	if now.UnixNano() >= next && l.next.CompareAndSwap(next, now.Add(l.pause).UnixNano()) {
		l.log.Log(context.Background(), level, message, attributes...)
	}
}
