package feed

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// Conn feeds this server's own verifier in process, by the same messages as any
// other. A verifier applies a message before it receives the next one, so that
// a call of RecvMsg says how far our own verifier has come; Write waits for that.
// One verifier at a time may use it.
func (f *Feed) Conn() grpc.ClientConnInterface { return localConn{f} }

type localConn struct{ feed *Feed }

// Invoke refuses every unary call: a verifier needs none.
func (localConn) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	return status.Errorf(codes.Unimplemented, "%s is not served in process", method)
}

// NewStream opens WatchBundle.
func (c localConn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != watchwordv1.TrustService_WatchBundle_FullMethodName {
		return nil, status.Errorf(codes.Unimplemented, "%s is not served in process", method)
	}
	for _, opt := range opts {
		if p, ok := opt.(grpc.PeerCallOption); ok {
			*p.PeerAddr = peer.Peer{Addr: inProcess{}, AuthInfo: inProcess{}}
		}
	}
	return &localStream{ctx: ctx, feed: c.feed}, nil
}

// inProcess is the peer: ourselves, whom nobody overhears.
type inProcess struct{}

func (inProcess) Network() string  { return "in-process" }
func (inProcess) String() string   { return "in-process" }
func (inProcess) AuthType() string { return "in-process" }

func (inProcess) GetCommonAuthInfo() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
}

type localStream struct {
	ctx     context.Context
	feed    *Feed
	watcher *Watcher // nil before the request has come
	seq     int64    // behind the message delivered last
}

func (s *localStream) Header() (metadata.MD, error) { return nil, nil }
func (s *localStream) Trailer() metadata.MD         { return nil }
func (s *localStream) CloseSend() error             { return nil }
func (s *localStream) Context() context.Context     { return s.ctx }

func (s *localStream) SendMsg(m any) error {
	s.watcher = s.feed.own(m.(*watchwordv1.WatchBundleRequest).GetResume())
	return nil
}

// own is Watch for our own verifier. It needs no place, so that strangers who have
// taken all of them lock nobody out; and it cannot know more than this feed, by
// which it has learnt everything.
func (f *Feed) own(resume []byte) *Watcher {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &Watcher{feed: f}
	if next, ok := f.since(resume); ok {
		w.goOn(next)
	} else {
		w.beginAnew()
	}
	return w
}

func (s *localStream) RecvMsg(m any) error {
	s.feed.setApplied(s.watcher.fork, s.seq)
	e, err := s.watcher.nextEntry(s.ctx)
	if err == ErrBehind {
		return status.Error(codes.Unavailable, err.Error())
	}
	if err != nil {
		return status.FromContextError(err).Err()
	}
	s.seq = e.seq
	return proto.Unmarshal(e.message, m.(proto.Message))
}

func (f *Feed) setApplied(fork int, seq int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fork == f.fork && seq > f.applied {
		f.applied = seq
		f.proceed()
	}
}
