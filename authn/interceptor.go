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
// refused calls; an interceptor given after these runs for admitted calls only.
func (v *Verifier) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(v.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(v.StreamServerInterceptor()),
	}
}

// UnaryServerInterceptor returns the interceptor for unary calls. It leaves streaming calls
// unguarded; [Verifier.ServerOptions] guards both.
//
// The interceptor checks the access rule of the method before it calls the handler. A
// public method admits every caller. Any other method needs a valid access token, for the
// audience of [WithAudience], or for the rule's audience if the rule has an audience. If the
// rule has roles, the token needs at least one of them. [FromContext] gives the handler the
// caller's principal.
//
// A method without a descriptor in this program admits no caller, unless [WithMethodRule] or
// [WithPublicMethods] names the method: it may have an option that the program cannot read.
//
// Errors, the first to apply:
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
//   - ROLE_REQUIRED without any of the roles. The error has a method
//     Principal() *Principal, for interceptors that record refused calls.
//
// The ErrorInfo of a refused call names the called method. A client that finds the method of
// its call there renews its token and calls again. The error of a handler must not have this
// effect, such as an error of Verify about some other token. So the interceptor removes the
// called method from the ErrorInfo of a handler's error.
func (v *Verifier) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	v.takenUnary.Store(true)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := v.guard(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		resp, err := handler(ctx, req)
		return resp, refusal.WithoutMethod(err, info.FullMethod)
	}
}

// guard checks a call against the access rule of the method, and returns the context for
// the handler.
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
		v.faults.report(err)
		return nil, status.Error(codes.Internal, "internal error")
	}
	if r.public {
		return withPrincipal(ctx, nil), nil
	}
	p, err := v.verifyIncoming(ctx, full, cmp.Or(r.audience, &v.audience))
	if err != nil {
		return nil, err
	}
	if r.unknown { // after the token: a caller without one learns nothing, and writes nothing to the log
		v.faults.report(fmt.Errorf("%s: this program has no descriptor of the method", full))
		return nil, status.Error(codes.PermissionDenied, "the service has no access rule for this method")
	}
	if len(r.roles) > 0 && !slices.ContainsFunc(r.roles, p.HasRole) {
		return nil, &roleRefusal{refuse(roleRequired, full), p}
	}
	return withPrincipal(ctx, p), nil
}

// verifyIncoming verifies the token of an incoming call for an audience. The error names
// method.
func (v *Verifier) verifyIncoming(ctx context.Context, method string, want *audience) (*Principal, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	raw, ok := token.Bearer(values)
	if ok {
		p, reason := v.verify(raw, want)
		if reason != accepted {
			return nil, refuse(reason, method)
		}
		return p, nil
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

// faultPause is the time between two entries of [faults] in the log.
const faultPause = time.Minute

// faults logs access rules that cannot be used, when a call meets one. Callers choose how
// often that happens, so the log has at most one entry in a faultPause;
// [Verifier.CheckServices] lists all such methods.
type faults struct {
	log  *slog.Logger
	next atomic.Int64 // time of the next entry, in nanoseconds since 1970
}

func (f *faults) report(err error) {
	now, next := time.Now(), f.next.Load()
	if now.UnixNano() >= next && f.next.CompareAndSwap(next, now.Add(faultPause).UnixNano()) {
		f.log.Error("calls are refused, because the access rule of a method cannot be used; CheckServices lists all such methods", "error", err)
	}
}
