package authn

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// domain is the ErrorInfo domain of every reason.
const domain = "watchword"

// reasonPrefix is what the enum's names carry and the wire does not.
const reasonPrefix = "ERROR_REASON_"

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

// refuse makes the status for a reason. method is the full name of the method
// that refuses, empty where nobody knows it.
func refuse(reason watchwordv1.ErrorReason, method string, details ...protoadapt.MessageV1) error {
	r := refusals[reason]
	info := &errdetails.ErrorInfo{
		Reason: strings.TrimPrefix(reason.String(), reasonPrefix),
		Domain: domain,
	}
	if method != "" {
		info.Metadata = map[string]string{"method": method}
	}
	st, err := status.New(r.code, r.message).WithDetails(append([]protoadapt.MessageV1{info}, details...)...)
	if err != nil {
		// Details fail only on text that is not UTF-8, which the interceptors
		// refuse before. The refusal stands without them.
		return status.Error(r.code, r.message)
	}
	return st.Err()
}

// refuseField is INVALID_REQUEST for one field.
func refuseField(method, field, description string) error {
	return refuse(invalidRequest, method, &errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: description}},
	})
}

// A handlersError is the error of a handler that held the refusal of some other
// token. On the wire it no longer names the method called; all else is as it was.
type handlersError struct {
	error
	status *status.Status
}

func (e *handlersError) Unwrap() error              { return e.error }
func (e *handlersError) GRPCStatus() *status.Status { return e.status }

// fromHandler is what becomes of a handler's error. A refusal that names the method
// called says that the caller's own token was refused, before any work: the caller
// spends it, and calls again. That is for interceptors to say. A handler may have one
// of a token that it was asked about, or of the same method of another server.
func fromHandler(err error, method string) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	p, named := st.Proto(), false
	for _, detail := range p.GetDetails() {
		info := new(errdetails.ErrorInfo)
		if detail.UnmarshalTo(info) != nil || info.GetDomain() != domain || info.GetMetadata()["method"] != method {
			continue
		}
		named = true
		delete(info.Metadata, "method")
		detail.Value = nil // rather nothing than the old, if this could fail
		_ = detail.MarshalFrom(info)
	}
	if !named {
		return err
	}
	return &handlersError{err, status.FromProto(p)}
}

// Reason says why a call was refused: the reason that Watchword put into a
// gRPC status, also one that was wrapped on its way. Anything else, nil
// included, is ERROR_REASON_UNSPECIFIED. To act on a refusal, ask this and
// never the message.
func Reason(err error) watchwordv1.ErrorReason {
	st, ok := status.FromError(err)
	if !ok {
		return watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return watchwordv1.ErrorReason(watchwordv1.ErrorReason_value[reasonPrefix+info.GetReason()])
		}
	}
	return watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED
}

// setupError is what a program's author or operator reads at start: plain text
// for people, a gRPC status for programs, and a cause to match.
type setupError struct {
	code    codes.Code
	message string
	cause   error // may be nil
}

func (e *setupError) Error() string              { return "authn: " + e.message }
func (e *setupError) Unwrap() error              { return e.cause }
func (e *setupError) GRPCStatus() *status.Status { return status.New(e.code, e.Error()) }

// misused is a program's own mistake.
func misused(err error) error {
	return &setupError{code: codes.InvalidArgument, message: err.Error()}
}

// gaveUp is the end of a wait for the first bundle. last is why there was none.
func gaveUp(ctx context.Context, last error) error {
	message := "no trust bundle yet"
	if last != nil {
		message = fmt.Sprintf("%s (%v)", message, last)
	}
	cause := context.Cause(ctx)
	return &setupError{
		code:    status.FromContextError(ctx.Err()).Code(),
		message: fmt.Sprintf("%s: %v", message, cause),
		cause:   ctx.Err(),
	}
}
