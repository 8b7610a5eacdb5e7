package authn

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/internal/detach"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// judgeEvery is the time between two checks of the tokens of all open streams. The check of one
// token takes some dozen nanoseconds; some hundred after a message of the trust bundle.
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
		admitted, err := v.guard(stream.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		if admitted.token == nil { // a public method
			return refusal.WithoutMethod(admitted, handler(srv, &guardedStream{ServerStream: stream, ctx: admitted}), info.FullMethod)
		}
		ctx, cancel := context.WithCancelCause(admitted)
		defer cancel(nil)
		s := &guardedStream{ServerStream: stream, ctx: ctx, doubted: make(chan struct{}, 1)}
		s.token.Store(admitted.token)
		call := detach.Go(func() error { return handler(srv, s) })
		v.open.add(s)
		defer v.open.remove(s)
		for {
			select {
			case <-call.Done():
				return refusal.WithoutMethod(ctx, call.Result(), info.FullMethod)
			case <-s.doubted:
			}
			again, err := v.guard(ctx, info.FullMethod)
			if err == nil { // a new trust state has replaced the key object of the earlier check
				if again.token != nil { // a public method has no token
					s.token.Store(again.token)
				}
				continue
			}
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

// openStreams holds the open streams of a verifier, and judges the tokens of the streams twice
// a second. One timer serves all streams, and runs while a stream is open:
// docs/decisions/2026-11-29-one-timer-for-open-streams.md tells the reason.
type openStreams struct {
	bundle *bundle

	mu      sync.Mutex // guards the fields below, and guardedStream.index
	streams []*guardedStream
	running bool // a timer runs that will call judge
}

// add adds a stream, until remove.
func (o *openStreams) add(s *guardedStream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s.index = len(o.streams)
	o.streams = append(o.streams, s)
	if !o.running {
		o.running = true
		time.AfterFunc(judgeEvery, o.judge)
	}
}

// remove removes a stream that add has added.
func (o *openStreams) remove(s *guardedStream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	last := o.streams[len(o.streams)-1]
	last.index, o.streams[s.index] = s.index, last
	o.streams[len(o.streams)-1] = nil
	o.streams = o.streams[:len(o.streams)-1]
}

// judge sends to the channel doubted of each stream with a token that is no longer accepted.
// The goroutine of the stream then verifies the token, as for a new call.
func (o *openStreams) judge() {
	o.mu.Lock()
	streams := slices.Clone(o.streams) // streams begin and end while judge judges
	o.mu.Unlock()
	for _, s := range streams {
		// The argument is true, since guard has checked the audience at the beginning of the stream:
		// neither the audience of the token nor the access rule of the method can change.
		if t := s.token.Load(); o.bundle.stillAccepted(t) || o.bundle.judge(t, true) == accepted {
			continue
		}
		select {
		case s.doubted <- struct{}{}:
		default:
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running = len(o.streams) > 0; o.running {
		time.AfterFunc(judgeEvery, o.judge)
	} else {
		o.streams = nil // after very many streams, the slice takes much memory
	}
}

// guardedStream is the stream of a handler. After the interceptor has ended the stream,
// RecvMsg and SendMsg return the interceptor's status error, because gRPC's own error would
// not tell the handler the reason.
type guardedStream struct {
	grpc.ServerStream
	ctx     context.Context
	refused atomic.Pointer[error] // nil until the interceptor ends the stream

	// The fields below have a value only if the method is not public.
	token   atomic.Pointer[authentic] // the token that [openStreams.judge] judges
	doubted chan struct{}             // gets an element when token is no longer accepted
	index   int                       // in openStreams.streams; openStreams.mu guards index
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
