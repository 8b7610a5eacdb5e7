package authn_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// watchword stands in for a running server with one key. The user alice is signed in, and an
// older session of alice has ended.
type watchword struct {
	watchwordv1.UnimplementedTrustServiceServer
	key *token.SigningKey
}

func (s watchword) WatchBundle(_ *watchwordv1.WatchBundleRequest, stream grpc.ServerStreamingServer[watchwordv1.WatchBundleResponse]) error {
	for _, m := range []*message{
		snapshot(trustState(s.key)),
		endedSession("session-0", time.Now().Add(maxLifetime)),
		heartbeat(time.Now()),
	} {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return nil
}

func (s watchword) mint(edit func(*token.Claims)) string {
	c := claims()
	edit(c)
	raw, err := token.Sign(s.key, c)
	if err != nil {
		log.Fatal(err)
	}
	return raw
}

// exampleServer runs the stand-in. A real program gets the connection by
// tokensource.Dial("auth:50051", …).
func exampleServer() (server watchword, conn *grpc.ClientConn, stop func()) {
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		log.Fatal(err)
	}
	server = watchword{key: key}
	listener, stopServing := serve(func(r *grpc.Server) { watchwordv1.RegisterTrustServiceServer(r, server) })
	conn = dial(listener)
	return server, conn, func() {
		conn.Close()
		stopServing()
	}
}

func unchanged(*token.Claims) {}

func ofEndedSession(c *token.Claims) { c.SessionID = "session-0" }

// greeter is a service that greets the caller.
type greeter struct {
	healthpb.UnimplementedHealthServer
}

func (greeter) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	principal, ok := authn.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "not guarded")
	}
	fmt.Println("hello,", principal.Username())
	return &healthpb.HealthCheckResponse{}, nil
}

func ExampleNewVerifier() {
	server, conn, stop := exampleServer()
	defer stop()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	verifier, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()
	srv := grpc.NewServer(verifier.ServerOptions()...)
	healthpb.RegisterHealthServer(srv, greeter{})

	// The rest of this example calls the service.
	client, done := serveExample(srv)
	defer done()
	_, err = client.Check(ctx, new(healthpb.HealthCheckRequest))
	fmt.Println(authn.Reason(err))
	accessToken := server.mint(unchanged)
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+accessToken)
	_, err = client.Check(ctx, new(healthpb.HealthCheckRequest))
	fmt.Println(err)

	// Output:
	// ERROR_REASON_TOKEN_MISSING
	// hello, alice
	// <nil>
}

// A service starts before the Watchword server, and waits for the trust bundle in its
// readiness probe.
func ExampleWithoutWaiting() {
	_, conn, stop := exampleServer()
	defer stop()
	verifier, err := authn.NewVerifier(context.Background(), conn,
		authn.WithAudience("internal"),
		authn.WithoutWaiting(),
		authn.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println("ready:", verifier.Ready(ctx))
	// Output: ready: <nil>
}

func ExampleVerifier_Verify() {
	server, conn, stop := exampleServer()
	defer stop()
	ctx := context.Background()
	verifier, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	principal, err := verifier.Verify(ctx, server.mint(unchanged))
	fmt.Println(principal, principal.HasRole("reader"), err)
	_, err = verifier.Verify(ctx, server.mint(ofEndedSession))
	fmt.Println(authn.Reason(err))
	// Output:
	// alice (user-1) true <nil>
	// ERROR_REASON_TOKEN_REVOKED
}

// A gateway verifies tokens for the services behind the gateway.
func ExampleVerifier_VerifyFor() {
	server, conn, stop := exampleServer()
	defer stop()
	ctx := context.Background()
	verifier, err := authn.NewVerifier(ctx, conn, authn.WithAnyAudience())
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	raw := server.mint(unchanged)
	for _, service := range []string{"internal", "billing"} {
		_, err := verifier.VerifyFor(ctx, raw, service)
		fmt.Println(service, status.Code(err), authn.Reason(err))
	}
	// Output:
	// internal OK ERROR_REASON_UNSPECIFIED
	// billing Unauthenticated ERROR_REASON_AUDIENCE_MISMATCH
}

// A program checks its services at start, after registering all of them.
func ExampleVerifier_CheckServices() {
	_, conn, stop := exampleServer()
	defer stop()
	verifier, err := authn.NewVerifier(context.Background(), conn,
		authn.WithAudience("internal"),
		authn.WithPublicMethods("/grpc.health.v1.Health/Check", "/notes.v1.NotesService/Lost"),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	srv := grpc.NewServer(verifier.ServerOptions()...)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	fmt.Println(verifier.CheckServices(srv.GetServiceInfo()))
	// Output:
	// authn: the services are not guarded as they must be:
	// 	/grpc.health.v1.Health/List: no rule: set the method's option (watchword.v1.access), or state the rule by WithMethodRule or WithPublicMethods
	// 	/grpc.health.v1.Health/Watch: no rule: set the method's option (watchword.v1.access), or state the rule by WithMethodRule or WithPublicMethods
	// 	/notes.v1.NotesService/Lost: named in WithPublicMethods, but no service has such a method
}

// Reflection is for admins: its proto file belongs to another project, and has no option.
func ExampleWithMethodRule() {
	_, conn, stop := exampleServer()
	defer stop()
	ctx := context.Background()
	admins := &watchwordv1.Access{Roles: []string{"admin"}}
	verifier, err := authn.NewVerifier(ctx, conn,
		authn.WithAudience("internal"),
		authn.WithMethodRule("/grpc.reflection.v1.ServerReflection/*", admins),
		authn.WithMethodRule("/grpc.reflection.v1alpha.ServerReflection/*", admins))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	srv := grpc.NewServer(verifier.ServerOptions()...)
	reflection.Register(srv)
	fmt.Println(verifier.CheckServices(srv.GetServiceInfo()))
	// Output:
	// <nil>
}

// Methods of services with foreign proto files, such as health checks, are made public by
// name.
func ExampleWithPublicMethods() {
	_, conn, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	verifier, err := authn.NewVerifier(ctx, conn,
		authn.WithAudience("internal"),
		authn.WithPublicMethods("/grpc.health.v1.Health/*"))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()
	srv := grpc.NewServer(verifier.ServerOptions()...)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	if err := verifier.CheckServices(srv.GetServiceInfo()); err != nil {
		log.Fatal(err)
	}

	client, done := serveExample(srv)
	defer done()
	response, err := client.Check(ctx, new(healthpb.HealthCheckRequest)) // without a token
	fmt.Println(response.GetStatus(), err)
	// Output: SERVING <nil>
}

func ExampleReason() {
	server, conn, stop := exampleServer()
	defer stop()
	ctx := context.Background()
	verifier, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	_, err = verifier.Verify(ctx, server.mint(ofEndedSession))
	err = fmt.Errorf("opening the notebook: %w", err)
	switch authn.Reason(err) {
	case watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE:
		fmt.Println("refresh and try again")
	case watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED:
		fmt.Println("sign in again")
	}
	// Output: sign in again
}

func ExampleFromContext() {
	handler := func(ctx context.Context) string {
		principal, ok := authn.FromContext(ctx)
		if !ok {
			return "a public method: the caller is unknown"
		}
		return "called by " + principal.Subject()
	}
	fmt.Println(handler(context.Background()))
	// Output: a public method: the caller is unknown
}

// serveExample runs a server in memory and returns a client for the server.
func serveExample(srv *grpc.Server) (client healthpb.HealthClient, done func()) {
	listener, stop := serveOn(srv)
	conn := dial(listener)
	return healthpb.NewHealthClient(conn), func() {
		conn.Close()
		stop()
	}
}

// A server of net/http checks each call by the rule of the method in its path.
func ExampleVerifier_Authorize() {
	server, conn, stop := exampleServer()
	defer stop()
	verifier, err := authn.NewVerifier(context.Background(), conn, authn.WithAudience("internal"), authn.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello", caller(r.Context()).GetValue()) })

	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, err := verifier.Authorize(r.Context(), r.URL.Path, r.Header.Values("Authorization"))
		switch status.Code(err) {
		case codes.OK:
			next.ServeHTTP(w, r.WithContext(ctx))
		case codes.Unauthenticated:
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, authn.Reason(err).String(), http.StatusUnauthorized)
		case codes.PermissionDenied:
			http.Error(w, authn.Reason(err).String(), http.StatusForbidden)
		default:
			http.Error(w, authn.Reason(err).String(), http.StatusServiceUnavailable)
		}
	})

	token := server.mint(func(*token.Claims) {})
	for path, authorization := range map[string]string{notes + "List": "", notes + "Mine": "Bearer " + token, notes + "Add": "Bearer " + token} {
		r := httptest.NewRequest(http.MethodPost, path, nil)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		guarded.ServeHTTP(w, r)
		fmt.Print(w.Code, " ", w.Body)
	}
	// Unordered output:
	// 401 ERROR_REASON_TOKEN_MISSING
	// 200 hello alice
	// 403 ERROR_REASON_ROLE_REQUIRED
}
