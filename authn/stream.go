package authn

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
			return fromHandler(handler(srv, &guardedStream{ServerStream: stream, ctx: ctx}), info.FullMethod)
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		s := &guardedStream{ServerStream: stream, ctx: ctx, done: make(chan outcome, 1)}
		go v.run(s, info.FullMethod, func() error { return handler(srv, s) })
		judge := time.NewTicker(judgeEvery)
		defer judge.Stop()
		for {
			select {
			case o := <-s.done:
				if o.panicked != nil {
					panic(o.panicked)
				}
				return fromHandler(o.err, info.FullMethod)
			case <-judge.C:
			}
			if _, err := v.verifyIncoming(ctx, info.FullMethod); err != nil {
				s.refused.Store(&err)
				cancel(err)
				v.logLate(s, info.FullMethod)
				return err
			}
		}
	}
}

// outcome is how a handler ended.
type outcome struct {
	err      error
	panicked any
	stack    []byte // of the panic
}

// run runs a handler.
func (v *Verifier) run(s *guardedStream, method string, handler func() error) {
	o, returned := outcome{}, false
	defer func() {
		if !returned {
			if o.panicked = recover(); o.panicked == nil { // by runtime.Goexit
				o.err = status.Error(codes.Internal, "the handler ended without an answer")
			} else {
				o.stack = debug.Stack()
			}
		}
		s.done <- o
		if s.refused.Load() != nil {
			v.logLate(s, method)
		}
	}()
	o.err = handler()
	returned = true
}

// logLate logs the panic of a handler whose stream was ended over its head, if it has
// ended itself. It is asked when either has ended, and finds the outcome once.
func (v *Verifier) logLate(s *guardedStream, method string) {
	select {
	case o := <-s.done:
		if o.panicked != nil {
			v.bundle.log.Error("a handler panicked after its stream was ended",
				"method", method, "panic", o.panicked, "stack", string(o.stack))
		}
	default:
	}
}

// guardedStream is a stream whose context has the principal.
type guardedStream struct {
	grpc.ServerStream
	ctx     context.Context
	done    chan outcome          // of its handler; has room for it
	refused atomic.Pointer[error] // why it was ended over its handler's head
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
