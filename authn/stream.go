package authn

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/internal/detach"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// judgeEvery is how often the token of an open stream is judged again. From the
// cache that takes some hundred nanoseconds.
const judgeEvery = 500 * time.Millisecond

// StreamServerInterceptor guards streaming calls alone; ServerOptions guards
// both. It refuses as UnaryServerInterceptor does when the stream begins, and
// goes on judging its token: within a second of the token's expiry, revocation or
// change of rights the stream ends with the same status that a new call would
// get, whatever the handler is doing.
//
// So a handler runs in a goroutine of its own. When the stream is ended over its
// head, its context is cancelled with the refusal as the cause, its Recv and Send
// return the refusal, and the client has been answered; a handler that looks at
// none of these outlives its stream, and holds what it holds until it returns. A
// handler's panic is raised again in the interceptor's goroutine, so a recovery
// interceptor that stands outside sees it; one that comes after the stream was ended
// can only be logged (WithLogger). Public methods are left alone.
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

// guardedStream is a stream whose context has the principal.
type guardedStream struct {
	grpc.ServerStream
	ctx     context.Context
	refused atomic.Pointer[error] // why the stream was ended before its handler
}

func (s *guardedStream) Context() context.Context { return s.ctx }

// RecvMsg and SendMsg return the refusal where there is one: what gRPC says of a
// stream that is over would tell the handler less.

func (s *guardedStream) RecvMsg(m any) error {
	return s.or(s.ServerStream.RecvMsg, m)
}

func (s *guardedStream) SendMsg(m any) error {
	return s.or(s.ServerStream.SendMsg, m)
}

func (s *guardedStream) or(do func(any) error, m any) error {
	if refused := s.refused.Load(); refused != nil {
		return *refused
	}
	err := do(m)
	if refused := s.refused.Load(); err != nil && refused != nil {
		return *refused
	}
	return err
}
