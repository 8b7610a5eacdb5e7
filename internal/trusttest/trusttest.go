// Package trusttest stands in for a server's trust service, in process: trusttest gives
// authn.NewVerifier a connection on which a function of the test sends the messages of each
// stream. The package serves test kits, tests and benchmarks alone.
package trusttest

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// Message is a message that the server sends on a stream of WatchBundle.
type Message = watchwordv1.WatchBundleResponse

// Conn is a connection that serves TrustService/WatchBundle and no other method. Each
// stream begins with a call of Conn; ctx ends with the stream. The verifier accepts
// the keys in the messages, because the peer is on this machine.
//
// Several goroutines can call a Conn at once.
type Conn func(ctx context.Context) (Next, error)

// Next returns the next message of one stream, or the error that ends the stream. A
// verifier applies a message before the verifier asks for the next message. The verifier gets a
// copy of a message, so streams can share a message.
type Next func() (*Message, error)

// Play returns a connection on which each stream receives the messages, and then waits
// until the verifier ends the stream.
func Play(messages ...*Message) Conn {
	return func(ctx context.Context) (Next, error) {
		left := messages
		return func() (*Message, error) {
			if len(left) == 0 {
				<-ctx.Done()
				return nil, status.FromContextError(ctx.Err()).Err()
			}
			m := left[0]
			left = left[1:]
			return m, nil
		}, nil
	}
}

// Chunk returns a part of a snapshot as a message of WatchBundle.
func Chunk(c *watchwordv1.SnapshotChunk) *Message {
	return &Message{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: c}}
}

// Heartbeat returns a heartbeat with the token time at, which says that every change until
// now was sent.
func Heartbeat(at time.Time) *Message {
	times := Times(at)
	return &Message{Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{Times: times, AsOf: times.Now}}}
}

// Times returns the times of a server process with the token time at. The process clock is
// this machine's clock, as the time since 1970.
func Times(at time.Time) *watchwordv1.ServerTimes {
	now := durationpb.New(time.Duration(time.Now().UnixNano()))
	return &watchwordv1.ServerTimes{Process: []byte("trusttest"), Now: now, Asked: now, Answered: now, Earliest: timestamppb.New(at), Latest: timestamppb.New(at)}
}

// Invoke refuses every unary call. A verifier can do without GetTime for ten minutes, and
// then opens another stream.
func (Conn) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	return unserved(method)
}

// NewStream begins a stream of WatchBundle, and refuses every other method.
func (c Conn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != watchwordv1.TrustService_WatchBundle_FullMethodName {
		return nil, unserved(method)
	}
	for _, opt := range opts {
		if p, ok := opt.(grpc.PeerCallOption); ok {
			p.PeerAddr.Addr = &net.UnixAddr{Net: "unix"}
		}
	}
	next, err := c(ctx)
	if err != nil {
		return nil, err
	}
	return stream{ctx, next}, nil
}

func unserved(method string) error {
	return status.Errorf(codes.Unimplemented, "only WatchBundle is served in process, and not %s", method)
}

type stream struct {
	ctx  context.Context
	next Next
}

func (stream) Header() (metadata.MD, error) { return nil, nil }
func (stream) Trailer() metadata.MD         { return nil }
func (stream) CloseSend() error             { return nil }
func (stream) SendMsg(any) error            { return nil }
func (s stream) Context() context.Context   { return s.ctx }

func (s stream) RecvMsg(into any) error {
	m, err := s.next()
	if err == nil {
		proto.Merge(into.(*Message), m)
	}
	return err
}
