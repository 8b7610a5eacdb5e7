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

// beatEvery keeps verifiers from taking silence for a lost connection.
const beatEvery = 20 * time.Second

type message = watchwordv1.WatchBundleResponse

// Conn is a connection to the issuer, for authn.NewVerifier. It serves
// TrustService/WatchBundle and nothing else.
func (i *Issuer) Conn() grpc.ClientConnInterface { return conn{i} }

type conn struct{ issuer *Issuer }

func (conn) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	return status.Errorf(codes.Unimplemented, "authntest serves no %s", method)
}

func (c conn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != watchwordv1.TrustService_WatchBundle_FullMethodName {
		return nil, status.Errorf(codes.Unimplemented, "authntest serves no %s", method)
	}
	for _, opt := range opts {
		if p, ok := opt.(grpc.PeerCallOption); ok {
			p.PeerAddr.Addr = &net.UnixAddr{Net: "unix"} // on this machine
		}
	}
	return c.issuer.open(ctx)
}

// open begins a stream with the state as it is.
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

// send sends a message to every verifier, and returns when each has applied it.
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

// stream is one verifier's. A verifier applies a message before it receives the
// next one, so its call of RecvMsg says that it has.
type stream struct {
	grpc.ClientStream
	issuer *Issuer
	ctx    context.Context
	cut    context.CancelFunc
	left   []*message // what it begins with
	next   chan *message
	asked  chan struct{}
	owing  bool // send waits for the next call of RecvMsg
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

func (s *stream) Header() (metadata.MD, error) { return nil, nil }
func (s *stream) Trailer() metadata.MD         { return nil }
func (s *stream) CloseSend() error             { return nil }
func (s *stream) Context() context.Context     { return s.ctx }
func (s *stream) SendMsg(any) error            { return nil }

// RecvMsg hands out what the stream begins with, then what is sent. After a
// message that was sent, send waits for the next call.
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
