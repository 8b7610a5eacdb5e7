package rpc

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/federation"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
)

// Edge is the interceptor around the verifier and the handlers. Edge gives every error a
// status, counts refused calls for the security record, and logs the server's own faults.
type Edge struct {
	audit      *audit.Log
	retryAfter func() time.Duration
	logger     *slog.Logger
	faults     *rate.Limiter // bounds the log lines about faults, since a client can cause any number of faults
}

// NewEdge returns an edge. retryAfter returns how long a client should wait while too many
// passwords are being hashed. The log gets at most ten lines about faults a second, or a
// hundred at once after a time without faults.
func NewEdge(a *audit.Log, retryAfter func() time.Duration, logger *slog.Logger) *Edge {
	return &Edge{audit: a, retryAfter: retryAfter, logger: logger, faults: rate.NewLimiter(10, 100)}
}

// Unary intercepts unary calls, and gives the error of a call a status. If a handler returns a
// response and an error, Unary drops the response.
func (e *Edge) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err != nil {
		return nil, e.refused(ctx, info.FullMethod, err)
	}
	return resp, nil
}

// Stream intercepts streams, and gives the error of a stream a status.
func (e *Edge) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := handler(srv, ss); err != nil {
		return e.refused(ss.Context(), info.FullMethod, err)
	}
	return nil
}

// refused returns the status error for err. refused also counts the refused call for
// the security record, or logs the fault of the server.
func (e *Edge) refused(ctx context.Context, method string, err error) error {
	made, isStatus := err.(interface{ GRPCStatus() *status.Status })
	var st *status.Status
	switch {
	case isStatus: // the verifier or gRPC has made the status
		st = made.GRPCStatus()
	case ctx.Err() != nil: // the client has left, or the deadline has passed, and has caused err
		st = status.FromContextError(ctx.Err())
	default:
		st = statusOf(err, method, e.retryAfter)
	}
	switch code := st.Code(); {
	case errors.Is(err, session.ErrNotAllowed): // statusOf gives the client NOT_FOUND, and the record gets ROLE_REQUIRED
		e.count(ctx, method, watchwordv1.ErrorReason_ERROR_REASON_ROLE_REQUIRED, err)
	case code == codes.Unauthenticated || code == codes.PermissionDenied || code == codes.ResourceExhausted || isAway(err):
		e.count(ctx, method, refusal.Reason(st.Err()), err)
	case code == codes.Internal && !isStatus: // gRPC itself answers INTERNAL to a request with a broken encoding, which is no fault of the server
		e.logFault(ctx, slog.LevelError, "internal error", method, err)
	case code == codes.Unavailable && errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrAway): // the store itself logs an outage (ErrAway)
		e.logFault(ctx, slog.LevelWarn, "the database is not available", method, err)
	}
	return st.Err()
}

// isAway reports whether an assertion was refused because the server could not fetch the
// issuer's key. The error can be about a forged assertion too, since the server could not check
// the signature.
func isAway(err error) bool {
	var away *federation.Unavailable
	return errors.As(err, &away)
}

// logFault logs a fault of the server, with the cause that the client does not get.
func (e *Edge) logFault(ctx context.Context, level slog.Level, what, method string, err error) {
	if e.faults.Allow() {
		e.logger.Log(ctx, level, what, "method", method, "error", err)
	}
}

// recordTypes maps methods to the type of event for their refused calls. A refused call
// of any other method has the type [audit.Call].
var recordTypes = map[string]audit.Type{
	watchwordv1.AuthService_Login_FullMethodName:          audit.Login,
	watchwordv1.AuthService_Refresh_FullMethodName:        audit.Refresh,
	watchwordv1.AuthService_Logout_FullMethodName:         audit.Logout,
	watchwordv1.AuthService_ChangePassword_FullMethodName: audit.PasswordChanged,
	watchwordv1.AuthService_DelegateToken_FullMethodName:  audit.TokenDelegated,
	watchwordv1.AuthService_ExchangeToken_FullMethodName:  audit.TokenExchanged,
}

// Refused counts, for the security record, a call that a bound of package gate has refused.
func (e *Edge) Refused(ctx context.Context, method string, err error) {
	e.count(ctx, method, refusal.Reason(err), err)
}

// count counts a refused call for the security record, with three exceptions. count leaves out
// the errors of Verify, which are answers about a token of another client and refuse no action.
// count leaves out the reuse of a refresh token, which is recorded with the end of the session,
// in one transaction. count leaves out errors without a reason, which come from gRPC itself.
func (e *Edge) count(ctx context.Context, method string, reason watchwordv1.ErrorReason, err error) {
	if method == watchwordv1.AuthService_Verify_FullMethodName ||
		reason == watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED ||
		reason == watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_REUSED {
		return
	}
	event := audit.Event{Type: recordTypes[method], Reason: refusal.Name(reason)}
	if event.Type == "" {
		event.Type, event.Detail = audit.Call, method
	}
	// A handler puts the user concerned into an [audit.Refusal]; the verifier knows the caller
	// of ROLE_REQUIRED and of DELEGATION_DENIED. Of a refused call by an unknown caller, the
	// record holds only the source.
	var about audit.Refusal
	var ofToken interface{ Principal() *authn.Principal }
	switch {
	case errors.As(err, &about):
		event.ActorID, event.ActorName = about.ActorID, about.ActorName
		event.UserID, event.UserName, event.SessionID = about.UserID, about.UserName, about.SessionID
		event.Detail = cmp.Or(event.Detail, about.Detail)
	case errors.As(err, &ofToken):
		p := ofToken.Principal()
		event.ActorID, event.ActorName, event.SessionID = p.Subject(), p.Username(), p.SessionID()
		if last, delegated := p.Actor(); delegated { // the service has made the call, and the user (the subject) perhaps does not know of the call
			event.UserID, event.UserName = event.ActorID, event.ActorName
			event.ActorID, event.ActorName = last.Subject(), last.Username()
		}
	}
	e.audit.Refused(ctx, event)
}
