package refusal

import (
	"context"
	"errors"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// A Call is a call that a Verifier has admitted, from the moment of the check to the end of the
// handler.
type Call struct {
	Method string // the full name of the called method; never changes
	sentOn atomic.Bool
}

// CallKey is the key of the *Call in the context of a handler.
type CallKey struct{}

// CallOf returns the admitted call to a handler with the context ctx; CallOf returns nil
// outside of a handler.
func CallOf(ctx context.Context) *Call {
	c, _ := ctx.Value(CallKey{}).(*Call)
	return c
}

// SentOn notes that the handler with the context ctx has called another service, which has
// possibly done some work. After SentOn, no error of the handler makes the handler's client
// call again.
func SentOn(ctx context.Context) {
	if c := CallOf(ctx); c != nil {
		c.sentOn.Store(true)
	}
}

// CallersToken returns the error of a call that a handler could not send on, because the access
// token of the handler's own caller was refused. As long as the handler has sent nothing on, the
// error names the method of the handler: [WithoutMethod] keeps the method in such an error.
func CallersToken(ctx context.Context, reason watchwordv1.ErrorReason, message string) error {
	method := ""
	if c := CallOf(ctx); c != nil && !c.sentOn.Load() {
		method = c.Method
	}
	return &callersToken{Status(codes.Unauthenticated, reason, method, message)}
}

// callersToken is an error about the access token of a handler's caller.
type callersToken struct{ status *status.Status }

func (e *callersToken) Error() string              { return e.status.Err().Error() }
func (e *callersToken) GRPCStatus() *status.Status { return e.status }

// keepsMethod reports whether the error of a handler is allowed to name the handler's method:
// the error is about the token of the handler's caller, and the handler has called no other
// service.
func keepsMethod(ctx context.Context, err error) bool {
	c := CallOf(ctx)
	var own *callersToken
	return c != nil && !c.sentOn.Load() && errors.As(err, &own)
}
