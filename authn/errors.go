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

// The reasons that a verifier gives.
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
	bundleStale      = watchwordv1.ErrorReason_ERROR_REASON_BUNDLE_STALE
)

// refusals is the one table from reasons to statuses. The messages say no more
// than the reason does: which key or which part of a token was wrong would help
// only who made it up.
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
	roleRequired:     {codes.PermissionDenied, "a role is missing"},
	bundleStale:      {codes.Unavailable, "access tokens cannot be judged at the moment"},
}

// refuse returns the status error for a reason. method is the full name of the
// method that refuses, empty if the caller of refuse does not know it.
func refuse(reason watchwordv1.ErrorReason, method string, details ...protoadapt.MessageV1) error {
	r := refusals[reason]
	return refusal.Status(r.code, reason, method, r.message, details...).Err()
}

// refuseField returns INVALID_REQUEST for one field.
func refuseField(method, field, rule string) error {
	return refuse(invalidRequest, method, refusal.BadField(field, rule))
}

// A roleRefusal is ROLE_REQUIRED, and holds the principal of the token that was
// good.
type roleRefusal struct {
	error
	principal *Principal
}

func (e *roleRefusal) GRPCStatus() *status.Status { return status.Convert(e.error) }

// Principal returns whom the token speaks for.
func (e *roleRefusal) Principal() *Principal { return e.principal }

// Reason returns why Watchword refused a call: the reason in a gRPC status, also in
// one that was wrapped. Every other error, nil included, gives
// ERROR_REASON_UNSPECIFIED. Act on the reason, never on the message.
func Reason(err error) watchwordv1.ErrorReason { return refusal.Reason(err) }

// misused returns the error for a program's own mistake.
func misused(err error) error {
	return &refusal.Setup{Code: codes.InvalidArgument, Message: "authn: " + err.Error()}
}

// gaveUp returns the error of a wait for the first bundle that ctx has ended. last
// is the reason why no bundle came; it may be nil.
func gaveUp(ctx context.Context, last error) error {
	message := "authn: no trust bundle yet"
	if last != nil {
		message = fmt.Sprintf("%s (%v)", message, last)
	}
	return &refusal.Setup{
		Code:    status.FromContextError(ctx.Err()).Code(),
		Message: fmt.Sprintf("%s: %v", message, context.Cause(ctx)),
		Cause:   ctx.Err(),
	}
}
