// Package refusal makes and reads the gRPC statuses by which Watchword refuses a
// call: a code, a message for people, and a google.rpc.ErrorInfo of the domain
// "watchword" whose reason is a name of the enum ErrorReason.
//
// Only this package builds an ErrorInfo or looks into one. The tables that map
// errors and judgements to reasons belong to the packages above.
package refusal

import (
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const (
	domain = "watchword"
	// methodKey names, in the ErrorInfo's metadata, the method that refused the
	// access token of its own caller.
	methodKey = "method"
	// reasonPrefix begins every name of the enum, and is left out on the wire.
	reasonPrefix = "ERROR_REASON_"
)

// Status returns the status of a refusal. method is the full name of the method
// that refuses the access token of its own caller; leave it empty for every other
// refusal, since a client replays a call that names its own method. details follow
// the ErrorInfo.
func Status(code codes.Code, reason watchwordv1.ErrorReason, method, message string, details ...protoadapt.MessageV1) *status.Status {
	info := &errdetails.ErrorInfo{Domain: domain, Reason: Name(reason)}
	if method != "" {
		info.Metadata = map[string]string{methodKey: method}
	}
	plain := status.New(code, message)
	detailed, err := plain.WithDetails(append([]protoadapt.MessageV1{info}, details...)...)
	if err != nil {
		// The code is OK, or a text is not UTF-8. The refusal holds without details.
		return plain
	}
	return detailed
}

// BadField returns the detail that names the field of a request and the rule that
// the field breaks.
func BadField(field, rule string) *errdetails.BadRequest {
	return &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: rule}}}
}

// Name returns a reason as the ErrorInfo and the security record spell it, such as
// TOKEN_EXPIRED.
func Name(reason watchwordv1.ErrorReason) string {
	return strings.TrimPrefix(reason.String(), reasonPrefix)
}

// Reason returns the reason in a gRPC status, also in one that was wrapped. Every
// other error, nil included, gives ERROR_REASON_UNSPECIFIED.
func Reason(err error) watchwordv1.ErrorReason {
	return watchwordv1.ErrorReason(watchwordv1.ErrorReason_value[reasonPrefix+infoOf(err).GetReason()])
}

// Method returns the method that refused its caller's access token; empty if the
// error names none.
func Method(err error) string { return infoOf(err).GetMetadata()[methodKey] }

// infoOf returns the ErrorInfo of this domain; nil if the error has none.
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

// WithoutMethod returns err, which a handler returned, without the method in its
// refusal if the refusal names this method. A handler may hold the refusal of some
// other token, and the client would take it for the refusal of its own.
func WithoutMethod(err error, method string) error {
	st, ok := status.FromError(err)
	if !ok {
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
		detail.Value = nil // if MarshalFrom could fail, better an empty detail than the old one
		_ = detail.MarshalFrom(info)
	}
	if !named {
		return err
	}
	return &unnamed{err, status.FromProto(p)}
}

// unnamed is an error whose status on the wire names no method.
type unnamed struct {
	error
	status *status.Status
}

func (e *unnamed) Unwrap() error              { return e.error }
func (e *unnamed) GRPCStatus() *status.Status { return e.status }

// Setup is the error of a program that is put together wrongly, or of a start that
// failed: plain text for its author or operator, with a status code to match and no
// reason.
type Setup struct {
	Code    codes.Code
	Message string
	Cause   error // matched by errors.Is; may be nil
}

func (e *Setup) Error() string { return e.Message }
func (e *Setup) Unwrap() error { return e.Cause }

// GRPCStatus returns the code and the message.
func (e *Setup) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }
