package authn_test

import (
	"context"
	"fmt"
	"log"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// loginService is the part of a Watchword server that signs in.
type loginService struct {
	watchwordv1.UnimplementedAuthServiceServer
	watchword
}

func (s loginService) tokens(n int) *watchwordv1.TokenPair {
	return &watchwordv1.TokenPair{
		AccessToken: s.mint(asIs), RefreshToken: fmt.Sprintf("refresh-%d", n), ExpiresIn: durationpb.New(maxLifetime),
	}
}

func (s loginService) Login(context.Context, *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	return &watchwordv1.LoginResponse{Tokens: s.tokens(1)}, nil
}

func (s loginService) Refresh(context.Context, *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	return &watchwordv1.RefreshResponse{Tokens: s.tokens(2)}, nil
}

// exampleCalling runs a stand-in for Watchword, and a service that it guards.
func exampleCalling() (authConn *grpc.ClientConn, dialNotes func(...grpc.DialOption) *grpc.ClientConn, stop func()) {
	server, trust, stopTrust := exampleServer()
	authListener, stopAuth := serve(func(r *grpc.Server) {
		watchwordv1.RegisterAuthServiceServer(r, loginService{watchword: server})
	})
	verifier, err := authn.NewVerifier(context.Background(), trust, authn.WithAudience("internal"))
	if err != nil {
		log.Fatal(err)
	}
	listener, stopNotes := serve(func(r *grpc.Server) { healthpb.RegisterHealthServer(r, greeter{}) }, verifier.ServerOptions()...)
	authConn = dial(authListener)
	return authConn, func(opts ...grpc.DialOption) *grpc.ClientConn { return dial(listener, opts...) }, func() {
		authConn.Close()
		stopNotes()
		verifier.Close()
		stopAuth()
		stopTrust()
	}
}

// A program with a user of its own calls a guarded service. dialNotes stands for
// grpc.NewClient("notes:50061", append(creds.DialOptions(), …)...).
func ExampleNewPasswordCredentials() {
	authConn, dialNotes, stop := exampleCalling()
	defer stop()
	password := "correct horse"

	creds, err := authn.NewPasswordCredentials(authConn, "alice", password)
	if err != nil {
		log.Fatal(err)
	}
	defer creds.Close()
	conn := dialNotes(creds.DialOptions()...)
	defer conn.Close()

	// It logs in at the first call, and refreshes from then on.
	_, err = healthpb.NewHealthClient(conn).Check(context.Background(), new(healthpb.HealthCheckRequest))
	fmt.Println(err)
	// Output:
	// hello, alice
	// <nil>
}

// A program goes on with the session of the last time.
func ExampleNewRefreshCredentials() {
	authConn, dialNotes, stop := exampleCalling()
	defer stop()

	stored := "refresh-1"
	creds, err := authn.NewRefreshCredentials(authConn, stored,
		authn.WithTokenStore(func(_ context.Context, refreshToken string) error {
			stored = refreshToken // in a real program, to a file of mode 0600
			return nil
		}))
	if err != nil {
		log.Fatal(err)
	}
	defer creds.Close()
	conn := dialNotes(creds.DialOptions()...)
	defer conn.Close()

	_, err = healthpb.NewHealthClient(conn).Check(context.Background(), new(healthpb.HealthCheckRequest))
	fmt.Println(err, stored)
	// Output:
	// hello, alice
	// <nil> refresh-2
}

// A service calls the next one in the name of its own caller.
func ExampleForwardToken() {
	opts := append(authn.ForwardToken(), grpc.WithTransportCredentials(insecure.NewCredentials())) // TLS, off this machine
	conn, err := grpc.NewClient("localhost:50062", opts...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	// In a guarded handler, its context takes the caller's token along:
	_ = func(ctx context.Context, req *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
		return healthpb.NewHealthClient(conn).Check(ctx, req)
	}
	// Output:
}
