package authntest

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// beatEvery is the pause between two heartbeats. A verifier takes a minute of silence for a
// lost connection.
const beatEvery = 20 * time.Second

type message = watchwordv1.WatchBundleResponse

// Conn returns a connection to the issuer, for authn.NewVerifier. It serves only
// TrustService/WatchBundle; every other method is UNIMPLEMENTED.
func (i *Issuer) Conn() grpc.ClientConnInterface { return conn{i} }

type conn struct{ issuer *Issuer }

// Invoke refuses every unary method.
func (conn) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	return status.Errorf(codes.Unimplemented, "authntest does not serve %s", method)
}

// NewStream opens a stream of WatchBundle.
func (c conn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != watchwordv1.TrustService_WatchBundle_FullMethodName {
		return nil, status.Errorf(codes.Unimplemented, "authntest does not serve %s", method)
	}
	for _, opt := range opts {
		if p, ok := opt.(grpc.PeerCallOption); ok {
			p.PeerAddr.Addr = &net.UnixAddr{Net: "unix"} // on this machine
		}
	}
	return c.issuer.open(ctx)
}

// open begins a stream with the present state as its snapshot.
func (i *Issuer) open(ctx context.Context) (*stream, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.silent {
		return nil, status.Error(codes.Unavailable, "authntest: disconnected")
	}
	ctx, cut := context.WithCancel(ctx)
	s := &stream{issuer: i, ctx: ctx, cut: cut, next: make(chan *message), asked: make(chan struct{})}
	s.left = []*message{
		{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: &watchwordv1.SnapshotChunk{
			TrustState: i.trustState(), EndedSessions: i.ended, RaisedVersions: i.raised, Last: true,
		}}}, i.heartbeat(),
	}
	i.streams[s] = true
	context.AfterFunc(ctx, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.streams, s)
	})
	return s, nil
}

// send sends a message to every verifier, and returns when every verifier has applied the
// message.
func (i *Issuer) send(m *message) {
	i.mu.Lock()
	var all []*stream
	for s := range i.streams {
		all = append(all, s)
	}
	i.mu.Unlock()
	for _, s := range all {
		s.send(m)
	}
}

// stream is the stream of one verifier. A verifier applies a message before it calls RecvMsg
// for the next message, so a call of RecvMsg shows that the message before is applied.
type stream struct {
	grpc.ClientStream
	issuer *Issuer
	ctx    context.Context
	cut    context.CancelFunc
	left   []*message // of the snapshot, not received yet
	next   chan *message
	asked  chan struct{} // receives an element when a sent message is applied
	owing  bool          // send waits for asked
}

func (s *stream) send(m *message) {
	select {
	case s.next <- m:
	case <-s.ctx.Done():
		return
	}
	select {
	case <-s.asked:
	case <-s.ctx.Done():
	}
}

// SendMsg ignores the request. A new stream begins with the snapshot for every request.
func (s *stream) SendMsg(any) error { return nil }

// CloseSend does nothing.
func (s *stream) CloseSend() error { return nil }

// Context returns the context of the call, cancelled by Disconnect.
func (s *stream) Context() context.Context { return s.ctx }

// Header returns no metadata.
func (s *stream) Header() (metadata.MD, error) { return nil, nil }

// Trailer returns no metadata.
func (s *stream) Trailer() metadata.MD { return nil }

// RecvMsg returns the messages of the snapshot, then the messages sent, and a heartbeat when
// none is sent for beatEvery.
func (s *stream) RecvMsg(into any) error {
	if len(s.left) > 0 {
		proto.Merge(into.(*message), s.left[0])
		s.left = s.left[1:]
		return nil
	}
	if s.owing {
		s.owing = false
		select {
		case s.asked <- struct{}{}:
		case <-s.ctx.Done():
		}
	}
	select {
	case m := <-s.next:
		s.owing = true
		proto.Merge(into.(*message), m)
		return nil
	case <-time.After(beatEvery):
		s.issuer.mu.Lock()
		defer s.issuer.mu.Unlock()
		proto.Merge(into.(*message), s.issuer.heartbeat())
		return nil
	case <-s.ctx.Done():
		return status.Error(codes.Unavailable, "authntest: disconnected")
	}
}
