package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
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
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authServer stands in for Watchword. It has one session with numbered tokens: access-3
// comes with refresh-3. Like the real server, it accepts the newest refresh token and, in
// the refresh grace, the one before.
type authServer struct {
	watchwordv1.UnimplementedAuthServiceServer
	reachable
	life time.Duration
	mint func(n int) string // makes the access token

	mu       sync.Mutex
	newest   int
	asked    []string // "login", "login-after-" and an earlier refresh token, or the presented refresh token
	audience []string
	before   func(context.Context) error // may refuse a request
	after    func(context.Context) error // may drop the answer

	delegations int
	delegate    func(ctx context.Context, own, subject string) (string, error) // nil: numbered tokens
}

func (s *authServer) Login(ctx context.Context, req *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	good := req.GetUsername() == "alice" && req.GetPassword() == "secret"
	asked := "login"
	if previous := req.GetPreviousRefreshToken(); previous != "" {
		asked += "-after-" + previous
	}
	tokens, err := s.answer(ctx, asked, req.GetAudience(), func() error {
		if !good {
			return refusal(codes.Unauthenticated, "INVALID_CREDENTIALS", "")
		}
		return nil
	})
	return &watchwordv1.LoginResponse{Tokens: tokens}, err
}

func (s *authServer) Refresh(ctx context.Context, req *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	tokens, err := s.answer(ctx, req.GetRefreshToken(), req.GetAudience(), func() error {
		if t := req.GetRefreshToken(); t != refresh(s.newest) && t != refresh(s.newest-1) {
			return refusal(codes.Unauthenticated, "REFRESH_TOKEN_REUSED", "")
		}
		return nil
	})
	return &watchwordv1.RefreshResponse{Tokens: tokens}, err
}

func (s *authServer) answer(ctx context.Context, asked string, audience []string, judge func() error) (*watchwordv1.TokenPair, error) {
	s.mu.Lock()
	s.asked, s.audience = append(s.asked, asked), audience
	before, after := s.before, s.after
	s.mu.Unlock()
	if before != nil {
		if err := before(ctx); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	if err := judge(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	if asked != refresh(s.newest-1) { // the refresh token before, in the refresh grace, gets the same answer again
		s.newest++
	}
	n := s.newest
	s.mu.Unlock()
	if after != nil {
		if err := after(ctx); err != nil {
			return nil, err
		}
	}
	return &watchwordv1.TokenPair{AccessToken: s.mint(n), RefreshToken: refresh(n), ExpiresIn: durationpb.New(s.life)}, nil
}

func access(n int) string  { return fmt.Sprintf("access-%d", n) }
func refresh(n int) string { return fmt.Sprintf("refresh-%d", n) }

// when sets the functions to call before and after the server's work.
func (s *authServer) when(before, after func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.after = before, after
}

// sinceLast returns the requests since the last call of sinceLast.
func (s *authServer) sinceLast() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := strings.Join(s.asked, " ")
	s.asked = nil
	return taken
}

func always(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

// hang waits until the caller has given up.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// refusal returns the status of a refused call, as Watchword and verifiers make it.
func refusal(code codes.Code, reason, method string, more ...protoadapt.MessageV1) error {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: "watchword"}
	if method != "" {
		info.Metadata = map[string]string{"method": method}
	}
	st, err := status.New(code, "refused").WithDetails(append(more, info)...)
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// guardedService answers every call with the call's token, unless refuse returns an error.
type guardedService struct {
	reachable
	mu     sync.Mutex
	calls  []string // the tokens; "none" for a call without a token
	refuse func(method, token string) error
}

func (s *guardedService) handle(_ any, stream grpc.ServerStream) error {
	// A real handler also reads the request first: some clients of grpc-go would get the status
	// of an earlier answer as EOF.
	if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
		return err
	}
	method, _ := grpc.Method(stream.Context())
	token := tokenIn(stream.Context())
	s.mu.Lock()
	s.calls = append(s.calls, token)
	refuse := s.refuse
	s.mu.Unlock()
	if refuse != nil {
		if err := refuse(method, token); err != nil {
			return err
		}
	}
	return stream.SendMsg(wrapperspb.String(token))
}

// name returns the reason of an error as the ErrorInfo spells it, or the code of an error
// without a reason.
func name(err error) string {
	reason := authn.Reason(err)
	if reason == watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		return status.Code(err).String()
	}
	return strings.TrimPrefix(reason.String(), "ERROR_REASON_")
}

// refusedBy checks the code, the reason, the domain and the method of a refused call.
func refusedBy(t *testing.T, err error, code codes.Code, reason, method string) {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			if status.Code(err) != code || info.GetReason() != reason || info.GetDomain() != "watchword" || info.GetMetadata()["method"] != method {
				t.Fatalf("%v with %v, want %v %s of %q", err, info, code, reason, method)
			}
			return
		}
	}
	t.Fatalf("%v has no ErrorInfo, want %v %s of %q", err, code, reason, method)
}

func bearing(ctx context.Context, values ...string) context.Context {
	for _, v := range values {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
	}
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tokenIn(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 {
		return "none"
	}
	return strings.TrimPrefix(strings.Join(values, "+"), "Bearer ")
}

func (s *guardedService) refuses(refuse func(method, token string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

func (s *guardedService) sinceLast() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := strings.Join(s.calls, " ")
	s.calls = nil
	return taken
}

// calling is a client with a source, and both servers.
type calling struct {
	*tokensource.Source
	auth    *authServer
	service *guardedService
	conn    *grpc.ClientConn // leads to the guarded service
}

const (
	unaryMethod  = "/test.v1.Test/Unary"
	streamMethod = "/test.v1.Test/Stream"
	accessLife   = 5 * time.Minute
)

// reachable is a server in memory. A test can dial the server as if at any address.
type reachable struct{ listener *bufconn.Listener }

// dial dials the server at addr; nil is the server's own address in memory.
func (r reachable) dial(t *testing.T, addr net.Addr, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	target := "memory"
	if addr != nil {
		target = addr.String()
	}
	return r.dialAs(t, target, addr, opts...)
}

// dialAs is dial, with a target of the connection: other than addr with a proxy at addr.
func (r reachable) dialAs(t *testing.T, target string, addr net.Addr, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := r.listener.DialContext(ctx)
			if err != nil || addr == nil {
				return c, err
			}
			return elsewhere{c, addr}, nil
		}),
	}, opts...)...)
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// elsewhere is a connection with another remote address.
type elsewhere struct {
	net.Conn
	addr net.Addr
}

func (e elsewhere) RemoteAddr() net.Addr { return e.addr }

// serve runs a server in memory for one test.
func serve(t *testing.T, register func(*grpc.Server), opts ...grpc.ServerOption) reachable {
	t.Helper()
	server := grpc.NewServer(opts...)
	register(server)
	r := reachable{bufconn.Listen(1 << 20)}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(r.listener) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return r
}

// startAuth runs a stand-in for Watchword.
func startAuth(t *testing.T) *authServer {
	t.Helper()
	s := &authServer{life: accessLife, mint: access}
	s.reachable = serve(t, func(r *grpc.Server) { watchwordv1.RegisterAuthServiceServer(r, s) })
	return s
}

// startService runs a guarded service.
func startService(t *testing.T) *guardedService {
	t.Helper()
	s := new(guardedService)
	s.reachable = serve(t, func(*grpc.Server) {}, grpc.UnknownServiceHandler(s.handle))
	return s
}

// withPassword makes a client that logs in, in a synctest bubble.
func withPassword(t *testing.T, opts ...tokensource.Option) *calling {
	t.Helper()
	return startCalling(t, func(conn grpc.ClientConnInterface) (*tokensource.Source, error) {
		return tokensource.Password(conn, "alice", "secret", opts...)
	})
}

// withSession makes a client that continues the session of refresh-0, in a synctest bubble.
func withSession(t *testing.T, opts ...tokensource.Option) *calling {
	t.Helper()
	return startCalling(t, func(conn grpc.ClientConnInterface) (*tokensource.Source, error) {
		return tokensource.Refresh(conn, "refresh-0", opts...)
	})
}

func startCalling(t *testing.T, make func(grpc.ClientConnInterface) (*tokensource.Source, error)) *calling {
	t.Helper()
	auth, service := startAuth(t), startService(t)
	source, err := make(auth.dial(t, nil))
	check(t, err)
	t.Cleanup(func() { source.Close() })
	return &calling{source, auth, service, service.dial(t, nil, source.DialOptions()...)}
}

// call calls a method, unary or stream, and returns the text of the answer.
func call(ctx context.Context, conn *grpc.ClientConn, method string, stream bool) (string, error) {
	answer := new(wrapperspb.StringValue)
	if !stream {
		err := conn.Invoke(ctx, method, new(emptypb.Empty), answer)
		return answer.GetValue(), err
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return "", err
	}
	if err := errors.Join(s.SendMsg(new(emptypb.Empty)), s.CloseSend()); err != nil {
		return "", err
	}
	err = s.RecvMsg(answer)
	if err == nil {
		for s.RecvMsg(new(wrapperspb.StringValue)) == nil { // reads to the end of the stream, so that no goroutine stays
		}
	}
	return answer.GetValue(), err
}

// call makes a unary call, and waits for a renewal that the call has started.
func (c *calling) call(t *testing.T) (string, error) {
	t.Helper()
	token, err := call(t.Context(), c.conn, unaryMethod, false)
	synctest.Wait()
	return token, err
}

// goesWith checks the token of a unary call.
func (c *calling) goesWith(t *testing.T, want string) {
	t.Helper()
	if token, err := c.call(t); token != want || err != nil {
		t.Fatalf("%q, %v; want %s", token, err, want)
	}
}

// failsWith checks the reason, or the code, of a unary call's error.
func (c *calling) failsWith(t *testing.T, want string) {
	t.Helper()
	if _, err := c.call(t); name(err) != want {
		t.Fatalf("%v; want %s", err, want)
	}
}

// saw checks what a server, a service or a store has received since the last check.
func saw(t *testing.T, by interface{ sinceLast() string }, want string) {
	t.Helper()
	if got := by.sinceLast(); got != want {
		t.Fatalf("%T saw %q, want %q", by, got, want)
	}
}

// keep is a store that remembers the refresh tokens.
type keep struct {
	mu    sync.Mutex
	taken []string
	err   error
}

func (k *keep) store(_ context.Context, token string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.taken = append(k.taken, token)
	return k.err
}

func (k *keep) fails(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

func (k *keep) sinceLast() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	taken := strings.Join(k.taken, " ")
	k.taken = nil
	return taken
}
