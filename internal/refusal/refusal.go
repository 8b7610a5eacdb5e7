// Package refusal makes and reads the gRPC statuses of refused calls: a code, a
// message for people, and a google.rpc.ErrorInfo with the domain "watchword" and a
// reason from the enum ErrorReason.
//
// Only package refusal builds an ErrorInfo or reads one. The packages that call package refusal
// choose the reason for each error.
package refusal

import (
	"context"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const (
	domain = "watchword"
	// methodKey is the metadata key for the called method, if an access token was refused.
	methodKey = "method"
	// subjectKey is the metadata key for the reason why DelegateToken refused the subject's token.
	subjectKey = "subject_reason"
	// reasonPrefix begins every name of the enum ErrorReason. A status that goes to a client
	// has the name without the prefix.
	reasonPrefix = "ERROR_REASON_"
)

// Status returns the status of a refused call. method is the full name of the called
// method if the call was refused for its access token. If the call was refused for another
// reason, method must be empty: a client that finds its method in the status renews its token
// and calls again. The parameter details follows the ErrorInfo in the status.
func Status(code codes.Code, reason watchwordv1.ErrorReason, method, message string, details ...protoadapt.MessageV1) *status.Status {
	info := &errdetails.ErrorInfo{Domain: domain, Reason: Name(reason)}
	if method != "" {
		info.Metadata = map[string]string{methodKey: method}
	}
	return detailed(code, message, info, details)
}

// SubjectRefused returns the status SUBJECT_TOKEN_REFUSED of DelegateToken, with the reason why
// the subject's token was refused in the metadata `subject_reason`. The status names no method:
// the token of the caller itself is good.
func SubjectRefused(reason watchwordv1.ErrorReason) *status.Status {
	return detailed(codes.PermissionDenied, "the subject's token was refused: "+Name(reason), &errdetails.ErrorInfo{
		Domain: domain, Reason: Name(watchwordv1.ErrorReason_ERROR_REASON_SUBJECT_TOKEN_REFUSED),
		Metadata: map[string]string{subjectKey: Name(reason)},
	}, nil)
}

// SubjectReason returns the reason why DelegateToken refused the subject's token;
// ERROR_REASON_UNSPECIFIED for any other error.
func SubjectReason(err error) watchwordv1.ErrorReason {
	return watchwordv1.ErrorReason(watchwordv1.ErrorReason_value[reasonPrefix+infoOf(err).GetMetadata()[subjectKey]])
}

func detailed(code codes.Code, message string, info *errdetails.ErrorInfo, details []protoadapt.MessageV1) *status.Status {
	plain := status.New(code, message)
	st, err := plain.WithDetails(append([]protoadapt.MessageV1{info}, details...)...)
	if err != nil {
		// WithDetails fails if the code is OK, or if a text is not UTF-8. After the error, the
		// status has no details.
		return plain
	}
	return st
}

// BadField returns the detail for a field of a request and the broken rule.
func BadField(field, rule string) *errdetails.BadRequest {
	return &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: rule}}}
}

// Name returns the spelling of a reason in the ErrorInfo and in the security record, such
// as TOKEN_EXPIRED.
func Name(reason watchwordv1.ErrorReason) string {
	return strings.TrimPrefix(reason.String(), reasonPrefix)
}

// Reason returns the reason in a gRPC status, wrapped or not. For an error without a reason,
// and for nil, Reason returns ERROR_REASON_UNSPECIFIED.
func Reason(err error) watchwordv1.ErrorReason {
	return watchwordv1.ErrorReason(watchwordv1.ErrorReason_value[reasonPrefix+infoOf(err).GetReason()])
}

// Outcome returns how a call ended, for metrics: OK, the reason of the refusal, or the code of
// a status without a reason, such as UNAVAILABLE. The number of outcomes is bounded.
func Outcome(err error) string {
	if reason := Reason(err); reason != watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		return Name(reason)
	}
	if code := code.Code(status.Code(err)); code.Descriptor().Values().ByNumber(code.Number()) != nil {
		return code.String()
	}
	return code.Code_UNKNOWN.String() // a peer can send any number as the code
}

// Method returns the called method from the status of a call refused for its access
// token; empty if the error names no method.
func Method(err error) string { return infoOf(err).GetMetadata()[methodKey] }

// infoOf returns the ErrorInfo of Watchword (with the domain "watchword") in an error; infoOf
// returns nil if the error has no such ErrorInfo.
func infoOf(err error) *errdetails.ErrorInfo {
	st, ok := status.FromError(err)
	if !ok {
		return nil
	}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return info
		}
	}
	return nil
}

// WithoutMethod removes method from the ErrorInfo of a handler's error. ctx is the context of
// the handler. A handler can return an error about another token, from a call of the handler's
// own. If such an error named the handler's method, the client would believe that the client's
// own token was refused, and call again. An error of [CallersToken] is about the client's own
// token, and keeps the method as long as the handler has sent nothing on.
func WithoutMethod(ctx context.Context, err error, method string) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok || keepsMethod(ctx, err) {
		return err
	}
	p, named := st.Proto(), false
	for _, detail := range p.GetDetails() {
		info := new(errdetails.ErrorInfo)
		if detail.UnmarshalTo(info) != nil || info.GetDomain() != domain || info.GetMetadata()[methodKey] != method {
			continue
		}
		named = true
		delete(info.Metadata, methodKey)
		detail.Value = nil // if MarshalFrom fails, the detail is empty, and names no method
		_ = detail.MarshalFrom(info)
	}
	if !named {
		return err
	}
	return &unnamed{err, status.FromProto(p)}
}

// unnamed is a handler's error with the method removed from the status.
type unnamed struct {
	error
	status *status.Status
}

func (e *unnamed) Unwrap() error              { return e.error }
func (e *unnamed) GRPCStatus() *status.Status { return e.status }

// Setup reports a wrongly assembled program or a failed start: plain text for the
// program's author or operator, with a status code and no reason.
type Setup struct {
	Code    codes.Code
	Message string
	Cause   error // matched by errors.Is; can be nil
}

func (e *Setup) Error() string { return e.Message }
func (e *Setup) Unwrap() error { return e.Cause }

// GRPCStatus returns the code and the message.
func (e *Setup) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }
