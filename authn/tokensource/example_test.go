package tokensource_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// loginService stands in for Watchword's AuthService.
type loginService struct {
	watchwordv1.UnimplementedAuthServiceServer
	issuer *authntest.Issuer
}

func (s loginService) tokens(n int) *watchwordv1.TokenPair {
	return &watchwordv1.TokenPair{
		AccessToken:  s.issuer.Token(authntest.User{Name: "alice", Audience: []string{"internal"}}),
		RefreshToken: fmt.Sprintf("refresh-%d", n), ExpiresIn: durationpb.New(5 * time.Minute),
	}
}

func (s loginService) Login(context.Context, *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	return &watchwordv1.LoginResponse{Tokens: s.tokens(1)}, nil
}

func (s loginService) Refresh(context.Context, *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	return &watchwordv1.RefreshResponse{Tokens: s.tokens(2)}, nil
}

func (s loginService) Logout(_ context.Context, req *watchwordv1.LogoutRequest) (*watchwordv1.LogoutResponse, error) {
	fmt.Println("logged out", req.GetRefreshToken())
	return &watchwordv1.LogoutResponse{}, nil
}

// greeter is a service that greets the caller, and then calls the next service if there is
// one.
type greeter struct {
	healthpb.UnimplementedHealthServer
	name string
	next healthpb.HealthClient // nil: no next service
}

func (g greeter) Check(ctx context.Context, req *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	principal, _ := authn.FromContext(ctx)
	fmt.Println(g.name, "greets", principal.Username())
	if g.next != nil {
		return g.next.Check(ctx, req) // the context carries the caller's token
	}
	return &healthpb.HealthCheckResponse{}, nil
}

// serveExample runs a server on a port of this machine.
func serveExample(register func(*grpc.Server), opts ...grpc.ServerOption) (addr string, stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(opts...)
	register(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	return listener.Addr().String(), func() {
		server.Stop()
		<-done
	}
}

// exampleServers runs a stand-in for Watchword, and a service guarded by a verifier.
func exampleServers(g greeter) (authAddr, notesAddr string, stop func()) {
	issuer := authntest.New()
	verifier, err := authn.NewVerifier(context.Background(), issuer.Conn(), authn.WithAudience("internal"))
	if err != nil {
		log.Fatal(err)
	}
	authAddr, stopAuth := serveExample(func(r *grpc.Server) { watchwordv1.RegisterAuthServiceServer(r, loginService{issuer: issuer}) })
	notesAddr, stopNotes := serveExample(func(r *grpc.Server) { healthpb.RegisterHealthServer(r, g) }, verifier.ServerOptions()...)
	return authAddr, notesAddr, func() {
		stopNotes()
		stopAuth()
		verifier.Close()
	}
}

// dialExample returns a connection to the stand-in for Watchword.
func dialExample(authAddr string) *grpc.ClientConn {
	conn, err := tokensource.Dial(authAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	return conn
}

// A program calls Watchword itself, over the connection of its sources and verifiers.
func ExampleDial() {
	authAddr, _, stop := exampleServers(greeter{name: "notes"})
	defer stop()
	tls := insecure.NewCredentials() // on this machine; TLS to any other
	ctx := context.Background()

	authConn, err := tokensource.Dial(authAddr, grpc.WithTransportCredentials(tls))
	if err != nil {
		log.Fatal(err)
	}
	defer authConn.Close()
	resp, err := watchwordv1.NewAuthServiceClient(authConn).Login(ctx, &watchwordv1.LoginRequest{Username: "alice", Password: "correct horse battery"})
	fmt.Println(resp.GetTokens().GetRefreshToken(), err)
	// Output: refresh-1 <nil>
}

// A program with a user of its own calls a guarded service.
func ExamplePassword() {
	authAddr, notesAddr, stop := exampleServers(greeter{name: "notes"})
	defer stop()
	tls, password := insecure.NewCredentials(), "correct horse battery" // on this machine; TLS to any other
	ctx := context.Background()

	authConn, err := tokensource.Dial(authAddr, grpc.WithTransportCredentials(tls))
	if err != nil {
		log.Fatal(err)
	}
	defer authConn.Close()
	source, err := tokensource.Password(authConn, "alice", password)
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	conn, err := grpc.NewClient(notesAddr, append(source.DialOptions(), grpc.WithTransportCredentials(tls))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	// The first call logs in; later ones use the token, or refresh it.
	_, err = healthpb.NewHealthClient(conn).Check(ctx, new(healthpb.HealthCheckRequest))
	fmt.Println(err)
	// Output:
	// notes greets alice
	// <nil>
}

// A program finds the replicas of Watchword in a list of addresses. When one replica fails,
// the connection goes on with the other replica.
func ExampleDial_replicas() {
	replicaA, _, stopA := exampleServers(greeter{name: "notes"})
	replicaB, _, stopB := exampleServers(greeter{name: "notes"})
	defer stopB()
	tls := insecure.NewCredentials() // on this machine; TLS to any other
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	replicas := manual.NewBuilderWithScheme("replicas")
	replicas.InitialState(resolver.State{Addresses: []resolver.Address{{Addr: replicaA}, {Addr: replicaB}}})
	authConn, err := tokensource.Dial("replicas:///auth.example",
		grpc.WithResolvers(replicas), grpc.WithTransportCredentials(tls))
	if err != nil {
		log.Fatal(err)
	}
	defer authConn.Close()

	auth := watchwordv1.NewAuthServiceClient(authConn)
	login := func() (replica string, err error) {
		var to peer.Peer
		_, err = auth.Login(ctx, &watchwordv1.LoginRequest{Username: "alice", Password: "correct horse battery"}, grpc.Peer(&to))
		return fmt.Sprint(to.Addr), err
	}
	replica, err := login()
	fmt.Println("the first replica:", replica == replicaA, err)
	stopA()
	replica, err = login() // sent again if the failure interrupts the call
	fmt.Println("the second replica:", replica == replicaB, err)
	// Output:
	// the first replica: true <nil>
	// the second replica: true <nil>
}

// A program keeps the newest refresh token, and logs out with this token at its end.
func ExampleWithStore() {
	authAddr, notesAddr, stop := exampleServers(greeter{name: "notes"})
	defer stop()
	authConn := dialExample(authAddr)
	defer authConn.Close()
	password, ctx := "correct horse battery", context.Background()

	var refreshToken string
	source, err := tokensource.Password(authConn, "alice", password,
		tokensource.WithStore(func(_ context.Context, newest string) error {
			refreshToken = newest
			return nil
		}))
	if err != nil {
		log.Fatal(err)
	}

	conn, err := grpc.NewClient(notesAddr, append(source.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, new(healthpb.HealthCheckRequest))
	fmt.Println(err)

	// After Close, the token source makes no new refresh token.
	source.Close()
	if refreshToken != "" { // otherwise the token source has never logged in
		_, err = watchwordv1.NewAuthServiceClient(authConn).Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: refreshToken})
	}
	fmt.Println(err)
	// Output:
	// notes greets alice
	// <nil>
	// logged out refresh-1
	// <nil>
}

// A program continues its session after a restart.
func ExampleRefresh() {
	authAddr, notesAddr, stop := exampleServers(greeter{name: "notes"})
	defer stop()
	authConn := dialExample(authAddr)
	defer authConn.Close()

	stored := "refresh-1"
	source, err := tokensource.Refresh(authConn, stored,
		tokensource.WithStore(func(_ context.Context, refreshToken string) error {
			stored = refreshToken // a real program writes the token to a file of mode 0600
			return nil
		}))
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	conn, err := grpc.NewClient(notesAddr, append(source.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	_, err = healthpb.NewHealthClient(conn).Check(context.Background(), new(healthpb.HealthCheckRequest))
	fmt.Println(err, stored)
	// Output:
	// notes greets alice
	// <nil> refresh-2
}

// A request by HTTP, or by another library than grpc-go, carries the token in its own
// header.
func ExampleSource_Token() {
	authAddr, _, stop := exampleServers(greeter{})
	defer stop()
	authConn := dialExample(authAddr)
	defer authConn.Close()
	source, err := tokensource.Password(authConn, "alice", "correct horse battery")
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()

	token, err := source.Token(context.Background()) // call Token for each request, and send the token to https:// alone
	fmt.Println(token != "", err)
	// Output: true <nil>
}

// A service calls the next service in the name of the caller.
func ExampleForward() {
	// The last service of the chain, and the first service's connection to it.
	issuer := authntest.New()
	verifier, err := authn.NewVerifier(context.Background(), issuer.Conn(), authn.WithAudience("internal"))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()
	billingAddr, stopBilling := serveExample(func(r *grpc.Server) { healthpb.RegisterHealthServer(r, greeter{name: "billing"}) }, verifier.ServerOptions()...)
	defer stopBilling()
	tls := insecure.NewCredentials() // on this machine; TLS to any other
	billing, err := grpc.NewClient(billingAddr, append(tokensource.Forward(), grpc.WithTransportCredentials(tls))...)
	if err != nil {
		log.Fatal(err)
	}
	defer billing.Close()

	// The first service: its handler passes its own context to the call of the next.
	notes := greeter{name: "notes", next: healthpb.NewHealthClient(billing)}
	notesAddr, stopNotes := serveExample(func(r *grpc.Server) { healthpb.RegisterHealthServer(r, notes) }, verifier.ServerOptions()...)
	defer stopNotes()

	// The caller of the service notes.
	conn, err := grpc.NewClient(notesAddr, grpc.WithTransportCredentials(tls))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx := authntest.Bearer(context.Background(), issuer.Token(authntest.User{Name: "alice", Audience: []string{"internal"}}))
	_, err = healthpb.NewHealthClient(conn).Check(ctx, new(healthpb.HealthCheckRequest))
	fmt.Println(err)
	// Output:
	// notes greets alice
	// billing greets alice
	// <nil>
}
