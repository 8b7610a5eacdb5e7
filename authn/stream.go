package authn

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/internal/detach"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// judgeEvery is the time between two checks of the token of an open stream. A check takes some
// hundred nanoseconds.
const judgeEvery = 500 * time.Millisecond

// StreamServerInterceptor returns the interceptor for streaming calls. StreamServerInterceptor
// leaves unary calls unguarded; [Verifier.ServerOptions] guards unary and streaming calls.
//
// The checks and errors at the beginning of a stream are those of
// [Verifier.UnaryServerInterceptor]. After the beginning, the interceptor verifies the token
// again twice a second. Within a second of the token's expiry or revocation, or of a change of
// the user's rights, the stream ends with the status that a new call would get, whatever the
// handler is doing. The interceptor does not end streams of public methods.
//
// To end a stream, the interceptor cancels the handler's context, with the status error as
// context.Cause. RecvMsg and SendMsg then return the status error, and the interceptor returns
// the status error to gRPC. The handler runs in a goroutine of its own: a handler that ignores
// the context and the errors of RecvMsg and SendMsg continues after its stream has ended, and
// keeps its resources until it returns.
//
// The interceptor raises a panic of the handler again in the goroutine of gRPC, for a recovery
// interceptor that is given before StreamServerInterceptor. A panic after the stream has ended
// is logged; see [WithLogger].
func (v *Verifier) StreamServerInterceptor() grpc.StreamServerInterceptor {
	v.takenStream.Store(true)
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := v.guard(stream.Context(), info.FullMethod, incoming)
		if err != nil {
			return err
		}
		if _, guarded := FromContext(ctx); !guarded {
			return refusal.WithoutMethod(ctx, handler(srv, &guardedStream{ServerStream: stream, ctx: ctx}), info.FullMethod)
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		s := &guardedStream{ServerStream: stream, ctx: ctx}
		call := detach.Go(func() error { return handler(srv, s) })
		judge := time.NewTicker(judgeEvery)
		defer judge.Stop()
		for {
			select {
			case <-call.Done():
				return refusal.WithoutMethod(ctx, call.Result(), info.FullMethod)
			case <-judge.C:
			}
			if _, err := v.guard(ctx, info.FullMethod, incoming); err != nil {
				s.refused.Store(&err)
				cancel(err)
				call.Leave(func(panicked any, stack []byte) {
					v.bundle.log.Error("a handler panicked after its stream was ended",
						"method", info.FullMethod, "panic", panicked, "stack", string(stack))
				})
				return err
			}
		}
	}
}

// guardedStream is the stream of a handler. After the interceptor has ended the stream,
// RecvMsg and SendMsg return the interceptor's status error, because gRPC's own error would
// not tell the handler the reason.
type guardedStream struct {
	grpc.ServerStream
	ctx     context.Context
	refused atomic.Pointer[error] // nil until the interceptor ends the stream
}

// Context returns the handler's context, with the principal.
func (s *guardedStream) Context() context.Context { return s.ctx }

// RecvMsg calls grpc.ServerStream.RecvMsg, or returns the error by which the interceptor
// ended the stream.
func (s *guardedStream) RecvMsg(m any) error { return s.orRefusal(s.ServerStream.RecvMsg, m) }

// SendMsg calls grpc.ServerStream.SendMsg, or returns the error by which the interceptor
// ended the stream.
func (s *guardedStream) SendMsg(m any) error { return s.orRefusal(s.ServerStream.SendMsg, m) }

func (s *guardedStream) orRefusal(do func(any) error, m any) error {
	if refused := s.refused.Load(); refused != nil {
		return *refused
	}
	err := do(m)
	if refused := s.refused.Load(); err != nil && refused != nil {
		return *refused
	}
	return err
}
