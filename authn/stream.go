package authn

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/internal/detach"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// judgeEvery is the time between two judgements of an open stream's token. A judgement takes
// some hundred nanoseconds.
const judgeEvery = 500 * time.Millisecond

// StreamServerInterceptor returns the interceptor for streaming calls. It leaves unary calls
// unguarded; [Verifier.ServerOptions] guards both.
//
// The checks and errors at the beginning of a stream are those of
// [Verifier.UnaryServerInterceptor]. Afterwards the interceptor judges the token again and
// again: within a second of the token's expiry or revocation, or of a change of the user's
// rights, the stream ends with the status of a new call, whatever the handler is doing.
// Streams of public methods are not ended.
//
// To end a stream, the interceptor cancels the handler's context, with the refusal as
// context.Cause, lets RecvMsg and SendMsg return the refusal, and returns the refusal to
// gRPC. The handler runs in a goroutine of its own: a handler that ignores all of these
// goes on after its stream has ended, and keeps its resources until it returns.
//
// A panic in the handler is raised again in the interceptor's goroutine, for a recovery
// interceptor given before this interceptor. A panic after the stream has ended is logged;
// see [WithLogger].
func (v *Verifier) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := v.guard(stream.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		if _, guarded := FromContext(ctx); !guarded {
			return refusal.WithoutMethod(handler(srv, &guardedStream{ServerStream: stream, ctx: ctx}), info.FullMethod)
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
				return refusal.WithoutMethod(call.Result(), info.FullMethod)
			case <-judge.C:
			}
			if _, err := v.verifyIncoming(ctx, info.FullMethod); err != nil {
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

// guardedStream is the stream of a handler. After the interceptor has ended the stream, its
// methods return the refusal: gRPC's own error would not tell the handler the reason.
type guardedStream struct {
	grpc.ServerStream
	ctx     context.Context
	refused atomic.Pointer[error] // nil until the interceptor ends the stream
}

// Context returns the handler's context, with the principal.
func (s *guardedStream) Context() context.Context { return s.ctx }

// RecvMsg is grpc.ServerStream.RecvMsg, or returns the refusal.
func (s *guardedStream) RecvMsg(m any) error { return s.orRefusal(s.ServerStream.RecvMsg, m) }

// SendMsg is grpc.ServerStream.SendMsg, or returns the refusal.
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
