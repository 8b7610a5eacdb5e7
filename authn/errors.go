package authn

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// A verifier refuses a call for one of these reasons. accepted, the zero reason, means that
// the call is not refused.
const (
	accepted         = watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	invalidRequest   = watchwordv1.ErrorReason_ERROR_REASON_INVALID_REQUEST
	tokenMissing     = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_MISSING
	tokenInvalid     = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID
	tokenExpired     = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED
	tokenRevoked     = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED
	tokenStale       = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE
	audienceMismatch = watchwordv1.ErrorReason_ERROR_REASON_AUDIENCE_MISMATCH
	roleRequired     = watchwordv1.ErrorReason_ERROR_REASON_ROLE_REQUIRED
	delegationDenied = watchwordv1.ErrorReason_ERROR_REASON_DELEGATION_DENIED
	bundleStale      = watchwordv1.ErrorReason_ERROR_REASON_BUNDLE_STALE
)

// refusals maps the reasons for refused calls to status codes and messages; ROLE_REQUIRED and
// DELEGATION_DENIED have messages of their own in [Verifier.guard]. Each message tells no more
// than the reason: a message that names the wrong part of a token would help a forger.
var refusals = map[watchwordv1.ErrorReason]struct {
	code    codes.Code
	message string
}{
	invalidRequest:   {codes.InvalidArgument, "the request is not valid"},
	tokenMissing:     {codes.Unauthenticated, "an access token is needed"},
	tokenInvalid:     {codes.Unauthenticated, "the access token is not valid"},
	tokenExpired:     {codes.Unauthenticated, "the access token has expired"},
	tokenRevoked:     {codes.Unauthenticated, "the access token was revoked"},
	tokenStale:       {codes.Unauthenticated, "the access token is out of date: refresh it"},
	audienceMismatch: {codes.Unauthenticated, "the access token is meant for another service"},
	bundleStale:      {codes.Unavailable, "access tokens cannot be verified at the moment"},
}

// refuse returns the status error for a reason. method is the full name of the refused
// method; empty if unknown.
func refuse(reason watchwordv1.ErrorReason, method string, details ...protoadapt.MessageV1) error {
	r := refusals[reason]
	return refusal.Status(r.code, reason, method, r.message, details...).Err()
}

// A callerRefusal adds the principal of the valid token to the error ROLE_REQUIRED or
// DELEGATION_DENIED.
type callerRefusal struct {
	error
	principal *Principal
}

// GRPCStatus returns the status of the error.
func (e *callerRefusal) GRPCStatus() *status.Status { return status.Convert(e.error) }

// Principal returns the refused caller.
func (e *callerRefusal) Principal() *Principal { return e.principal }

// Reason returns the reason for which a Watchword server or a Verifier has refused a call. err
// can be the error of a client's call, or an error of this package, and Reason looks into
// wrapped errors. For every other error, and for nil, Reason returns ERROR_REASON_UNSPECIFIED.
//
// A program should decide by the reason. The message of an error may change with any version.
func Reason(err error) watchwordv1.ErrorReason { return refusal.Reason(err) }

// misused returns the status INVALID_ARGUMENT for a mistake in the program that calls authn.
func misused(err error) error {
	return &refusal.Setup{Code: codes.InvalidArgument, Message: "authn: " + err.Error()}
}

// gaveUp returns the error of NewVerifier or Ready if ctx has ended before the first trust
// bundle has come. last is the error of the last stream; nil without an error.
func gaveUp(ctx context.Context, last error) error {
	message := fmt.Sprintf("authn: no trust bundle yet: %v", context.Cause(ctx))
	if last != nil {
		message += fmt.Sprintf(" (the last stream: %v)", last)
	}
	return &refusal.Setup{Code: status.FromContextError(ctx.Err()).Code(), Message: message, Cause: ctx.Err()}
}
