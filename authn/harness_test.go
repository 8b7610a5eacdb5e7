package authn_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/trusttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	issuer      = "https://auth.example.internal"
	maxLifetime = 5 * time.Minute
	margin      = 5 * time.Minute
)

// trustServer is a TrustService with streams played by a test.
type trustServer struct {
	watchwordv1.UnimplementedTrustServiceServer
	streams chan *watch
	lead    atomic.Int64 // by how many ns the token time of the newest heartbeat is ahead of the process clock
	deaf    atomic.Bool  // GetTime is UNIMPLEMENTED
}

func (s *trustServer) GetTime(_ context.Context, req *watchwordv1.GetTimeRequest) (*watchwordv1.GetTimeResponse, error) {
	if s.deaf.Load() {
		return nil, status.Error(codes.Unimplemented, "deaf")
	}
	return &watchwordv1.GetTimeResponse{Nonce: req.GetNonce(), Times: trusttest.Times(time.Now().Add(time.Duration(s.lead.Load())))}, nil
}

// watch is the server's side of one stream.
type watch struct {
	messages chan *watchwordv1.WatchBundleResponse // sent to the verifier
	end      chan error                            // ends the stream
	gone     <-chan struct{}                       // closed when the verifier has left
	resume   string                                // the field resume of the verifier's request
}

func (s *trustServer) WatchBundle(req *watchwordv1.WatchBundleRequest, stream grpc.ServerStreamingServer[watchwordv1.WatchBundleResponse]) error {
	ctx := stream.Context()
	w := &watch{make(chan *watchwordv1.WatchBundleResponse), make(chan error), ctx.Done(), string(req.GetResume())}
	select {
	case s.streams <- w:
	case <-ctx.Done():
		return nil
	}
	for {
		select {
		case m := <-w.messages:
			if t := m.GetHeartbeat().GetTimes(); t != nil {
				s.lead.Store(t.GetLatest().AsTime().UnixNano() - int64(t.GetNow().AsDuration()))
			}
			if err := stream.Send(m); err != nil {
				return err
			}
		case err := <-w.end:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *watch) send(messages ...*watchwordv1.WatchBundleResponse) {
	for _, m := range messages {
		select {
		case w.messages <- m:
		case <-w.gone:
		}
	}
}

// tell sends messages, and returns when the verifier has applied the messages. tell works
// only in a synctest bubble.
func (w *watch) tell(messages ...*watchwordv1.WatchBundleResponse) {
	w.send(messages...)
	synctest.Wait()
}

// serve runs a server in memory, and returns the server's listener and a function that stops
// the server.
func serve(register func(*grpc.Server), opts ...grpc.ServerOption) (listener *bufconn.Listener, stop func()) {
	server := grpc.NewServer(opts...)
	register(server)
	return serveOn(server)
}

func serveOn(server *grpc.Server) (listener *bufconn.Listener, stop func()) {
	listener = bufconn.Listen(1 << 20)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	return listener, func() {
		server.Stop()
		<-done
	}
}

func dial(listener *bufconn.Listener, opts ...grpc.DialOption) *grpc.ClientConn {
	return dialAs("memory", listener, opts...)
}

// dialAs dials a server in memory as if target led there.
func dialAs(target string, listener *bufconn.Listener, opts ...grpc.DialOption) *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///"+target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
	}, opts...)...)
	if err != nil {
		panic(err)
	}
	return conn
}

// serveTrust runs a trust server for one test.
func serveTrust(t *testing.T) (*trustServer, *grpc.ClientConn) {
	t.Helper()
	s := &trustServer{streams: make(chan *watch)}
	listener, stop := serve(func(r *grpc.Server) { watchwordv1.RegisterTrustServiceServer(r, s) })
	conn := dial(listener)
	t.Cleanup(stop)
	t.Cleanup(func() { conn.Close() })
	return s, conn
}

// logBuffer is a log for concurrent reading and writing.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// world is a verifier with a complete bundle, and the server behind it.
type world struct {
	*authn.Verifier
	key    *token.SigningKey
	server *trustServer
	watch  *watch
}

// start makes a world in a synctest bubble, with WithAudience("internal") added.
func start(t *testing.T, opts ...authn.Option) *world {
	t.Helper()
	w := &world{key: newKey(t)}
	var conn *grpc.ClientConn
	w.server, conn = serveTrust(t)
	w.Verifier = newVerifier(t, conn, append(opts, authn.WithAudience("internal"))...)
	w.watch = <-w.server.streams
	w.watch.tell(snapshot(trustState(w.key)), heartbeat(time.Now()))
	if err := w.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// newVerifier makes a verifier without waiting, and closes it after the test.
func newVerifier(t *testing.T, conn grpc.ClientConnInterface, opts ...authn.Option) *authn.Verifier {
	t.Helper()
	v, err := authn.NewVerifier(t.Context(), conn, append(opts, authn.WithoutWaiting())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func newKey(t *testing.T) *token.SigningKey {
	t.Helper()
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func trustState(keys ...*token.SigningKey) *watchwordv1.TrustState {
	s := &watchwordv1.TrustState{
		Issuer:           issuer,
		MaxTokenLifetime: durationpb.New(maxLifetime),
		Margin:           durationpb.New(margin),
	}
	for _, k := range keys {
		s.Keys = append(s.Keys, &watchwordv1.VerificationKey{Key: k.Public().JWK()})
	}
	return s
}

type message = watchwordv1.WatchBundleResponse

func chunk(c *watchwordv1.SnapshotChunk) *message {
	return &message{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: c}}
}

// snapshot returns a whole snapshot in one chunk, without revocations.
func snapshot(s *watchwordv1.TrustState) *message {
	return chunk(&watchwordv1.SnapshotChunk{TrustState: s, Last: true})
}

func change(c *watchwordv1.Change) *message {
	return &message{Message: &watchwordv1.WatchBundleResponse_Change{Change: c}}
}

func heartbeat(at time.Time) *message { return trusttest.Heartbeat(at) }

func endedSession(id string, until time.Time) *message {
	return change(&watchwordv1.Change{EndedSessions: []*watchwordv1.EndedSession{
		{SessionId: id, Until: timestamppb.New(until)},
	}})
}

func raisedVersion(user string, version int64, revoked bool) *message {
	return change(&watchwordv1.Change{RaisedVersions: []*watchwordv1.RaisedVersion{
		{UserId: user, Version: version, Revoked: revoked, Until: timestamppb.New(time.Now().Add(maxLifetime))},
	}})
}

// claims returns the claims of a good token, minted now.
func claims() *token.Claims {
	now := time.Now()
	return &token.Claims{
		Issuer: issuer, Subject: "user-1", ID: "token-1", SessionID: "session-1", Username: "alice",
		Audience: []string{"internal"}, Roles: []string{"reader"},
		IssuedAt: now, ExpiresAt: now.Add(maxLifetime), Version: 7,
	}
}

// mint returns a token with the claims of claims, changed by edits.
func mint(t *testing.T, key *token.SigningKey, edits ...func(*token.Claims)) string {
	t.Helper()
	c := claims()
	for _, edit := range edits {
		edit(c)
	}
	raw, err := token.Sign(key, c)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// name returns the reason of an error as the ErrorInfo spells it; the code of an error
// without a reason; "ok" for nil.
func name(err error) string {
	if err == nil {
		return "ok"
	}
	reason := authn.Reason(err)
	if reason == watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		return status.Code(err).String()
	}
	return strings.TrimPrefix(reason.String(), "ERROR_REASON_")
}

// wants checks the answer of Verify for a token.
func (w *world) wants(t *testing.T, raw, want string) {
	t.Helper()
	_, err := w.Verify(t.Context(), raw)
	if got := name(err); got != want {
		t.Errorf("Verify: %s, want %s (%v)", got, want, err)
	}
}

// refusedBy checks a refusal's code, reason, domain and method.
func refusedBy(t *testing.T, err error, code codes.Code, reason, method string) {
	t.Helper()
	st, ok := status.FromError(err)
	if !ok || err == nil || st.Code() != code {
		t.Fatalf("%v, want %v %s", err, code, reason)
	}
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok {
			continue
		}
		if info.GetReason() != reason || info.GetDomain() != "watchword" || info.GetMetadata()["method"] != method {
			t.Errorf("%v, want the reason %s and the method %q", info, reason, method)
		}
		return
	}
	t.Errorf("%v has no ErrorInfo", err)
}

func bearing(ctx context.Context, values ...string) context.Context {
	for _, v := range values {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
	}
	return ctx
}

// errorIs checks errors.Is.
func errorIs(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%v, want %v", err, target)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
