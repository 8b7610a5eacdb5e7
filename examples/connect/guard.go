// Package board serves the notes of example.com/notes by Connect, guarded by Watchword.
//
// This file is the guard, for any service: copy the file into your program, which keeps its version
// of Connect. A package of Watchword would force one version of Connect on every program.
package board

import (
	"context"
	"errors"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
)

// judgeEvery is the time between two checks of the token of an open stream.
const judgeEvery = 500 * time.Millisecond

// Guard returns the option for the handlers of Connect that checks each call by verifier: for the
// protocols Connect, gRPC and gRPC-Web. The rules, the reasons and the principal are as with
// verifier's interceptors for grpc-go.
//
// Connect reads the message of a unary call before the interceptor runs. So give the handlers
// connect.WithReadMaxBytes too: otherwise a caller without a token can fill the memory.
//
// Within a second of a logout, Send and Receive of a stream return the refusal, and the context of
// the handler ends. A handler that waits in Receive continues to wait until the client sends or
// leaves, but gets no message.
func Guard(verifier *authn.Verifier) connect.Option {
	return connect.WithInterceptors(guard{verifier})
}

type guard struct{ verifier *authn.Verifier }

// WrapUnary guards unary calls.
func (g guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, err := g.verifier.Authorize(ctx, req.Spec().Procedure, req.Header().Values("Authorization"))
		if err != nil {
			refused := refusal(err)
			// Only Connect's own protocol has the HTTP status 401, beside which RFC 6750 section 3
			// demands the name of the scheme.
			if refused.Code() == connect.CodeUnauthenticated && req.Peer().Protocol == connect.ProtocolConnect {
				refused.Meta().Set("WWW-Authenticate", "Bearer")
			}
			return nil, refused
		}
		return next(ctx, req)
	}
}

// WrapStreamingClient does nothing: the guard is for handlers.
func (g guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler guards streams, from the first message to the last.
func (g guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		procedure, header := conn.Spec().Procedure, slices.Clone(conn.RequestHeader().Values("Authorization"))
		ctx, err := g.verifier.Authorize(ctx, procedure, header)
		if err != nil {
			return refusal(err)
		}
		if _, guarded := authn.FromContext(ctx); !guarded { // a public method
			return next(ctx, conn)
		}
		ctx, end := context.WithCancelCause(ctx)
		defer end(nil)
		go func() {
			judge := time.NewTicker(judgeEvery)
			defer judge.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-judge.C:
				}
				if _, err := g.verifier.Authorize(ctx, procedure, header); err != nil {
					end(refusal(err))
					return
				}
			}
		}()
		err = next(ctx, &guardedStream{conn, ctx})
		if refused := refusedBy(ctx); refused != nil {
			return refused
		}
		return err
	}
}

// guardedStream is the stream of a handler. After the guard has refused the token, Send and
// Receive return the refusal.
type guardedStream struct {
	connect.StreamingHandlerConn
	ctx context.Context
}

func (s *guardedStream) Send(message any) error {
	if err := refusedBy(s.ctx); err != nil {
		return err
	}
	return s.StreamingHandlerConn.Send(message)
}

func (s *guardedStream) Receive(message any) error {
	err := s.StreamingHandlerConn.Receive(message)
	if refused := refusedBy(s.ctx); refused != nil {
		return refused
	}
	return err
}

// refusedBy returns the refusal by which the guard has ended the context of a stream; nil for the
// context of a stream that goes on.
func refusedBy(ctx context.Context) error {
	var refused *connect.Error
	if errors.As(context.Cause(ctx), &refused) {
		return refused
	}
	return nil
}

// refusal returns the error of the verifier as an error of Connect, with the ErrorInfo. Connect has
// the same codes as gRPC.
func refusal(err error) *connect.Error {
	st := status.Convert(err)
	refused := connect.NewError(connect.Code(st.Code()), errors.New(st.Message()))
	for _, message := range st.Proto().GetDetails() {
		if detail, err := connect.NewErrorDetail(message); err == nil {
			refused.AddDetail(detail)
		}
	}
	return refused
}
