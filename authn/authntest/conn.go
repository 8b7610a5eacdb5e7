package authntest

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/trusttest"
)

// beatEvery is the pause between two heartbeats to a verifier. A verifier that gets no message
// for a minute opens a new stream.
const beatEvery = 20 * time.Second

type message = trusttest.Message

// Conn returns a connection to the issuer, for authn.NewVerifier. The connection serves only
// TrustService/WatchBundle and TrustService/GetTime; every other method is UNIMPLEMENTED.
func (i *Issuer) Conn() grpc.ClientConnInterface { return conn{trusttest.Conn(i.open), i} }

type conn struct {
	trusttest.Conn
	issuer *Issuer
}

// Invoke serves GetTime, and refuses every other unary call.
func (c conn) Invoke(ctx context.Context, method string, in, out any, opts ...grpc.CallOption) error {
	if method != watchwordv1.TrustService_GetTime_FullMethodName {
		return c.Conn.Invoke(ctx, method, in, out, opts...)
	}
	c.issuer.mu.Lock()
	defer c.issuer.mu.Unlock()
	proto.Merge(out.(proto.Message), &watchwordv1.GetTimeResponse{
		Nonce: in.(*watchwordv1.GetTimeRequest).GetNonce(), Times: c.issuer.timesLocked(),
	})
	return nil
}

// open begins a stream with the present state as its snapshot.
func (i *Issuer) open(ctx context.Context) (trusttest.Next, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.silent {
		return nil, status.Error(codes.Unavailable, "authntest: disconnected")
	}
	ctx, cut := context.WithCancel(ctx)
	s := &stream{issuer: i, ctx: ctx, cut: cut, next: make(chan *message), asked: make(chan struct{})}
	s.left = []*message{
		trusttest.Chunk(&watchwordv1.SnapshotChunk{
			TrustState: i.trustState(), EndedSessions: i.ended, RaisedVersions: i.raised, Last: true,
		}), i.heartbeat(),
	}
	i.streams[s] = true
	context.AfterFunc(ctx, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.streams, s)
	})
	return s.receive, nil
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

// stream serves the stream of one verifier. A verifier applies a message before it receives the
// next message. So the next call of receive shows that the verifier has applied the message.
type stream struct {
	issuer *Issuer
	ctx    context.Context
	cut    context.CancelFunc
	left   []*message // messages of the snapshot that receive still has to return
	next   chan *message
	asked  chan struct{}
	owing  bool // true while send waits for the next call of receive
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

// receive returns the messages of the snapshot, and then the messages that send sends. After
// each message, send waits for the next call of receive.
func (s *stream) receive() (*message, error) {
	if len(s.left) > 0 {
		m := s.left[0]
		s.left = s.left[1:]
		return m, nil
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
		return m, nil
	case <-time.After(beatEvery):
		s.issuer.mu.Lock()
		defer s.issuer.mu.Unlock()
		return s.issuer.heartbeat(), nil
	case <-s.ctx.Done():
		return nil, status.Error(codes.Unavailable, "authntest: disconnected")
	}
}
