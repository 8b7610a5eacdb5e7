package authntest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// tester is a service with a unary method and every kind of stream. Each method answers.
type tester struct {
	testpb.UnimplementedTestServiceServer
	next func(ctx context.Context) error // called by UnaryCall; nil: none
}

func (s tester) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	return new(testpb.Empty), nil
}

func (s tester) UnaryCall(ctx context.Context, _ *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if s.next != nil {
		return nil, s.next(ctx)
	}
	return new(testpb.SimpleResponse), nil
}

func (tester) StreamingOutputCall(_ *testpb.StreamingOutputCallRequest, s grpc.ServerStreamingServer[testpb.StreamingOutputCallResponse]) error {
	return s.Send(new(testpb.StreamingOutputCallResponse))
}

func (tester) FullDuplexCall(s grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	for {
		if _, err := s.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

const (
	testService = "/grpc.testing.TestService/"
	healthAll   = "/grpc.health.v1.Health/*"
)

// served serves the services and returns a connection.
func served(t *testing.T, s tester, opts ...grpc.ServerOption) (*grpc.ClientConn, *grpc.Server) {
	t.Helper()
	srv := grpc.NewServer(opts...)
	testpb.RegisterTestServiceServer(srv, s)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	watchwordv1.RegisterTrustServiceServer(srv, watchwordv1.UnimplementedTrustServiceServer{})
	listener := bufconn.Listen(1 << 16)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:service", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); srv.Stop(); <-done })
	return conn, srv
}

// unguarded returns the methods that an error of CheckGuarded names.
func unguarded(err error) map[string]bool {
	found := map[string]bool{}
	if err == nil {
		return found
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if name, rest, ok := strings.Cut(strings.TrimPrefix(line, "authntest: "), " is not guarded: "); ok && rest != "" {
			found[name] = true
		}
	}
	return found
}

const trust = "watchword.v1.TrustService"

// publicTrust returns the services of a server, of TrustService the public methods alone.
func publicTrust(srv *grpc.Server) map[string]grpc.ServiceInfo {
	services := srv.GetServiceInfo()
	info := services[trust]
	info.Methods = slices.DeleteFunc(info.Methods, func(m grpc.MethodInfo) bool { return m.Name == "ListWatchers" })
	services[trust] = info
	return services
}

// CheckGuarded finds each method that answers without a token: on a server without the
// verifier's interceptors, and on a server with one of the two.
func TestCheckGuarded(t *testing.T) {
	verifier := authntest.New().NewVerifier(t, authn.WithAudience("test"), authn.WithPublicMethods(healthAll))
	unary := grpc.ChainUnaryInterceptor(verifier.UnaryServerInterceptor())
	stream := grpc.ChainStreamInterceptor(verifier.StreamServerInterceptor())
	for name, test := range map[string]struct {
		opts          []grpc.ServerOption
		unary, stream bool // kinds of methods that are not guarded
	}{
		"guarded":       {[]grpc.ServerOption{unary, stream}, false, false},
		"by options":    {verifier.ServerOptions(), false, false},
		"no verifier":   {nil, true, true},
		"unary alone":   {[]grpc.ServerOption{unary}, false, true},
		"streams alone": {[]grpc.ServerOption{stream}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			conn, srv := served(t, tester{}, test.opts...)
			// A token that the caller of CheckGuarded happens to have is not sent.
			ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer x", "x-tenant", "a")
			err := authntest.CheckGuarded(ctx, conn, publicTrust(srv), healthAll)
			found := unguarded(err)
			for _, m := range srv.GetServiceInfo()["grpc.testing.TestService"].Methods {
				want := test.unary
				if m.IsClientStream || m.IsServerStream {
					want = test.stream
				}
				if found[testService+m.Name] != want {
					t.Errorf("%s is named: %t, want %t", m.Name, !want, want)
				}
				delete(found, testService+m.Name)
			}
			if len(found) > 0 || (err != nil) != (test.unary || test.stream) {
				t.Errorf("also named: %v: %v", found, err)
			}
		})
	}
}

// inProcess calls the handlers of a server as a gateway in the same process does: by the
// methods of the service, past the server and every interceptor.
type inProcess struct{ service tester }

func (g inProcess) Invoke(ctx context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	for _, m := range testpb.TestService_ServiceDesc.Methods {
		if method == testService+m.MethodName {
			_, err := m.Handler(g.service, ctx, func(any) error { return nil }, nil)
			return err
		}
	}
	return status.Error(codes.NotFound, "the gateway has no such path")
}

func (inProcess) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.NotFound, "the gateway has no streams")
}

// The gRPC server is guarded, and CheckGuarded finds that a gateway in the same process, which
// calls the handlers directly, is not.
func TestCheckGuardedFindsAGatewayInTheSameProcess(t *testing.T) {
	verifier := authntest.New().NewVerifier(t, authn.WithAudience("test"))
	conn, srv := served(t, tester{}, verifier.ServerOptions()...)
	services := map[string]grpc.ServiceInfo{"grpc.testing.TestService": srv.GetServiceInfo()["grpc.testing.TestService"]}
	if err := authntest.CheckGuarded(t.Context(), conn, services); err != nil {
		t.Fatal(err)
	}
	err := authntest.CheckGuarded(t.Context(), inProcess{}, services)
	if found := unguarded(err); !found[testService+"UnaryCall"] || !found[testService+"EmptyCall"] || len(found) != len(services["grpc.testing.TestService"].Methods) {
		t.Errorf("%v", err)
	}
}

// If a called service further down answers TOKEN_MISSING, the handler has run without a token,
// and CheckGuarded says so.
func TestCheckGuardedTellsTheServiceFurtherDown(t *testing.T) {
	verifier := authntest.New().NewVerifier(t, authn.WithAudience("test"))
	next, _ := served(t, tester{}, verifier.ServerOptions()...)
	client := testpb.NewTestServiceClient(next)
	conn, srv := served(t, tester{next: func(ctx context.Context) error {
		_, err := client.EmptyCall(ctx, new(testpb.Empty))
		return err
	}})
	err := authntest.CheckGuarded(t.Context(), conn, srv.GetServiceInfo())
	if found := unguarded(err); !found[testService+"UnaryCall"] || !strings.Contains(err.Error(), "(from "+testService+"EmptyCall)") {
		t.Errorf("%v", err)
	}
}

func TestCheckGuardedNeedsMethods(t *testing.T) {
	verifier := authntest.New().NewVerifier(t, authn.WithAudience("test"))
	conn, srv := served(t, tester{}, verifier.ServerOptions()...)
	for name, test := range map[string]struct {
		services map[string]grpc.ServiceInfo
		public   []string
		want     string
	}{
		"no services":     {nil, nil, "no method to call"},
		"all are public":  {map[string]grpc.ServiceInfo{trust: publicTrust(srv)[trust]}, nil, "no method to call"},
		"a pattern":       {srv.GetServiceInfo(), []string{"Check"}, "neither /package.Service/Method"},
		"an unknown name": {srv.GetServiceInfo(), []string{healthAll, testService + "Unary"}, testService + "Unary: named as public"},
		"an unknown star": {srv.GetServiceInfo(), []string{"/gone.v1.Gone/*"}, "/gone.v1.Gone/*: named as public"},
		"health, guarded": {srv.GetServiceInfo(), nil, ""},
	} {
		err := authntest.CheckGuarded(t.Context(), conn, test.services, test.public...)
		if test.want == "" {
			if err != nil { // the verifier here has no public methods: health is guarded
				t.Errorf("%s: %v", name, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
