package rpc

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/store"
)

// Edge stands around the verifier and the handlers. It says from where a call
// comes, gives every error its status, as the table has it, counts refusals for
// the security record, and logs what is not the caller's fault.
type Edge struct {
	audit      *audit.Log
	retryAfter func() time.Duration
	logger     *slog.Logger
	faults     *rate.Limiter // a caller may find a way to cause them without end
}

// NewEdge makes an edge. retryAfter says what a caller is told to wait when too
// many passwords are being hashed.
func NewEdge(a *audit.Log, retryAfter func() time.Duration, logger *slog.Logger) *Edge {
	return &Edge{audit: a, retryAfter: retryAfter, logger: logger, faults: rate.NewLimiter(10, 100)}
}

// Unary is the interceptor for unary calls.
func (e *Edge) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx = caller.WithSource(ctx, addressOf(ctx))
	resp, err := handler(ctx, req)
	if err != nil {
		return nil, e.refused(ctx, info.FullMethod, err)
	}
	return resp, nil
}

// Stream is the interceptor for streams.
func (e *Edge) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := handler(srv, ss); err != nil {
		return e.refused(caller.WithSource(ss.Context(), addressOf(ss.Context())), info.FullMethod, err)
	}
	return nil
}

// addressOf returns the address of a call's peer.
func addressOf(ctx context.Context) caller.Address {
	if p, ok := peer.FromContext(ctx); ok {
		return caller.Address{Addr: p.Addr}
	}
	return caller.Address{}
}

func (e *Edge) refused(ctx context.Context, method string, err error) error {
	st := e.status(ctx, method, err)
	switch st.Code() {
	case codes.Unauthenticated, codes.PermissionDenied, codes.ResourceExhausted:
		e.count(ctx, method, authn.Reason(st.Err()), err)
	case codes.Internal:
		if _, made := err.(statusMaker); made { // of what gRPC could not decode
			break
		}
		e.fault(ctx, slog.LevelError, "internal error", method, err)
	case codes.Unavailable:
		if errors.Is(err, store.ErrUnavailable) {
			e.fault(ctx, slog.LevelWarn, "the database is not available", method, err)
		}
	}
	return st.Err()
}

func (e *Edge) fault(ctx context.Context, level slog.Level, what, method string, err error) {
	if e.faults.Allow() {
		e.logger.Log(ctx, level, what, "method", method, "error", err)
	}
}

// types are the types of refusals that have one of their own.
var types = map[string]audit.Type{
	watchwordv1.AuthService_Login_FullMethodName:          audit.Login,
	watchwordv1.AuthService_Refresh_FullMethodName:        audit.Refresh,
	watchwordv1.AuthService_Logout_FullMethodName:         audit.Logout,
	watchwordv1.AuthService_ChangePassword_FullMethodName: audit.PasswordChanged,
}

// count brings a refusal to the security record. Verify is a question, and what
// it answers of a token is nobody's failure; reuse has a record of its own.
func (e *Edge) count(ctx context.Context, method string, reason watchwordv1.ErrorReason, err error) {
	if method == watchwordv1.AuthService_Verify_FullMethodName ||
		reason == watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED ||
		reason == watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_REUSED {
		return
	}
	event := audit.Event{Type: types[method], Reason: refusal.Name(reason)}
	if event.Type == "" {
		event.Type, event.Detail = audit.Call, method
	}
	var about audit.Refusal
	var known interface{ Principal() *authn.Principal } // of ROLE_REQUIRED
	switch {
	case errors.As(err, &about):
		event.UserID, event.SessionID = about.UserID, about.SessionID
	case errors.As(err, &known):
		event.ActorID, event.SessionID = known.Principal().Subject(), known.Principal().SessionID()
	}
	e.audit.Refused(ctx, event)
}

// statusMaker is an error that is a status already: the verifier's, or gRPC's.
type statusMaker interface{ GRPCStatus() *status.Status }

// status is what a caller is told of an error.
func (e *Edge) status(ctx context.Context, method string, err error) *status.Status {
	if s, made := err.(statusMaker); made {
		return s.GRPCStatus()
	}
	if ctx.Err() != nil { // the caller has gone, whatever came of it
		return status.FromContextError(ctx.Err())
	}
	return statusOf(err, method, e.retryAfter)
}
