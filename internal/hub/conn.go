package hub

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// Conn returns a connection in process for the local verifier (the server's own), with the same
// messages as any stream of WatchBundle. Only one verifier is allowed to use the connection at
// a time.
//
// The verifier must apply a message before the verifier calls RecvMsg again: the next call of
// RecvMsg records the message as applied, for [Hub.WaitApplied].
func (h *Hub) Conn() grpc.ClientConnInterface { return localConn{h} }

type localConn struct{ hub *Hub }

// Invoke answers the RPC GetTime, and refuses every other unary RPC.
func (c localConn) Invoke(_ context.Context, method string, in, out any, _ ...grpc.CallOption) error {
	if method != watchwordv1.TrustService_GetTime_FullMethodName {
		return status.Errorf(codes.Unimplemented, "%s is not served in process", method)
	}
	proto.Merge(out.(proto.Message), &watchwordv1.GetTimeResponse{
		Nonce: in.(*watchwordv1.GetTimeRequest).GetNonce(), Times: c.hub.Times(),
	})
	return nil
}

// NewStream opens a stream of WatchBundle, and refuses every other streaming RPC.
func (c localConn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != watchwordv1.TrustService_WatchBundle_FullMethodName {
		return nil, status.Errorf(codes.Unimplemented, "%s is not served in process", method)
	}
	for _, opt := range opts {
		if p, ok := opt.(grpc.PeerCallOption); ok {
			*p.PeerAddr = peer.Peer{Addr: &net.UnixAddr{Name: "in-process", Net: "unix"}} // shows that the verifier runs on this machine
		}
	}
	return &localStream{ctx: ctx, watcher: &Watcher{hub: c.hub}}, nil
}

// localStream serves one WatchBundle call in process, for the local verifier. A localStream
// does not count among the streams that [Hub].places bounds, so that clients with as many
// streams as the bound allows cannot keep the local verifier out.
type localStream struct {
	ctx     context.Context
	watcher *Watcher
}

func (s *localStream) Header() (metadata.MD, error) { return nil, nil }
func (s *localStream) Trailer() metadata.MD         { return nil }
func (s *localStream) CloseSend() error             { return nil }
func (s *localStream) Context() context.Context     { return s.ctx }

// SendMsg reads the WatchBundleRequest of the local verifier, before the first RecvMsg. SendMsg
// does not refresh the hub from the database: everything that the local verifier knows came
// from this hub.
func (s *localStream) SendMsg(m any) error {
	at, _ := s.watcher.hub.parseResume(m.(*watchwordv1.WatchBundleRequest).GetResume())
	s.watcher.begin(at, true)
	return nil
}

// RecvMsg records that the local verifier has applied the earlier message, and waits for the
// next message.
func (s *localStream) RecvMsg(m any) error {
	s.watcher.verifierApplied()
	message, err := s.watcher.Next(s.ctx)
	if err == ErrBehind {
		return status.Error(codes.Unavailable, err.Error())
	}
	if err != nil {
		return status.FromContextError(err).Err()
	}
	return proto.Unmarshal(message, m.(proto.Message))
}
