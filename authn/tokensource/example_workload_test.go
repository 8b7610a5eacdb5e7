package tokensource_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// workloadService stands in for Watchword's AuthService, for the service account notes.
type workloadService struct {
	watchwordv1.UnimplementedAuthServiceServer
	issuer *authntest.Issuer
}

var exampleAccount = authntest.User{Name: "notes", Kind: watchwordv1.UserKind_USER_KIND_SERVICE}

func (s workloadService) ExchangeToken(_ context.Context, req *watchwordv1.ExchangeTokenRequest) (*watchwordv1.ExchangeTokenResponse, error) {
	account := exampleAccount
	account.Audience = req.GetAudience()
	return &watchwordv1.ExchangeTokenResponse{AccessToken: s.issuer.Token(account), ExpiresIn: durationpb.New(5 * time.Minute)}, nil
}

func (s workloadService) DelegateToken(_ context.Context, req *watchwordv1.DelegateTokenRequest) (*watchwordv1.DelegateTokenResponse, error) {
	delegated := s.issuer.Delegate(req.GetSubjectToken(), exampleAccount, req.GetAudience())
	return &watchwordv1.DelegateTokenResponse{AccessToken: delegated, ExpiresIn: durationpb.New(5 * time.Minute)}, nil
}

// searcher is a guarded service that says who calls, and by which service.
type searcher struct {
	healthpb.UnimplementedHealthServer
}

func (searcher) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	principal, _ := authn.FromContext(ctx)
	actor, delegated := principal.Actor()
	fmt.Println("search is called by", principal.Username(), "through", actor.Username(), delegated)
	return &healthpb.HealthCheckResponse{}, nil
}

// exampleSearch runs the stand-in for Watchword, and the service search.
func exampleSearch(issuer *authntest.Issuer) (authAddr, searchAddr string, stop func()) {
	verifier, err := authn.NewVerifier(context.Background(), issuer.Conn(), authn.WithAudience("search"))
	if err != nil {
		log.Fatal(err)
	}
	authAddr, stopAuth := serveExample(func(r *grpc.Server) { watchwordv1.RegisterAuthServiceServer(r, workloadService{issuer: issuer}) })
	searchAddr, stopSearch := serveExample(func(r *grpc.Server) { healthpb.RegisterHealthServer(r, searcher{}) }, verifier.ServerOptions()...)
	return authAddr, searchAddr, func() {
		stopSearch()
		stopAuth()
		verifier.Close()
	}
}

// platformToken stands in for the token that a platform writes for a process.
func platformToken() (path string, remove func()) {
	folder, err := os.MkdirTemp("", "platform")
	if err != nil {
		log.Fatal(err)
	}
	path = filepath.Join(folder, "token")
	assertion := authntest.NewForeignIssuer("https://platform.example").Assertion("notes", authntest.Name, nil)
	if err := os.WriteFile(path, []byte(assertion), 0o600); err != nil {
		log.Fatal(err)
	}
	return path, func() { os.RemoveAll(folder) }
}

// A service signs in by the token of its platform, and calls a guarded service as itself.
func ExampleWorkload() {
	authAddr, searchAddr, stop := exampleSearch(authntest.New())
	defer stop()
	tls, ctx := insecure.NewCredentials(), context.Background() // on this machine; TLS to any other
	tokenPath, remove := platformToken()                        // such as /var/run/secrets/tokens/watchword
	defer remove()

	authConn, err := tokensource.Dial(authAddr, grpc.WithTransportCredentials(tls))
	if err != nil {
		log.Fatal(err)
	}
	defer authConn.Close()
	source, err := tokensource.Workload(authConn, tokensource.File(tokenPath), tokensource.WithAudience("search"))
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	conn, err := grpc.NewClient(searchAddr, append(source.DialOptions(), grpc.WithTransportCredentials(tls))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	_, err = healthpb.NewHealthClient(conn).Check(ctx, new(healthpb.HealthCheckRequest))
	fmt.Println(err)
	// Output:
	// search is called by notes through  false
	// <nil>
}

// A service calls another service on behalf of its caller.
func ExampleOnBehalfOf() {
	issuer := authntest.New()
	authAddr, searchAddr, stop := exampleSearch(issuer)
	defer stop()
	authConn := dialExample(authAddr)
	defer authConn.Close()
	tls := insecure.NewCredentials() // on this machine; TLS to any other
	tokenPath, remove := platformToken()
	defer remove()

	source, err := tokensource.Workload(authConn, tokensource.File(tokenPath))
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	search, err := grpc.NewClient(searchAddr, append(tokensource.OnBehalfOf(source, authConn, "search"), grpc.WithTransportCredentials(tls))...)
	if err != nil {
		log.Fatal(err)
	}
	defer search.Close()

	// The handlers of the service notes pass their own context to the calls of search.
	verifier, err := authn.NewVerifier(context.Background(), issuer.Conn(), authn.WithAudience("internal"))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()
	notes := greeter{name: "notes", next: healthpb.NewHealthClient(search)}
	notesAddr, stopNotes := serveExample(func(r *grpc.Server) { healthpb.RegisterHealthServer(r, notes) }, verifier.ServerOptions()...)
	defer stopNotes()

	// A user calls notes.
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
	// search is called by alice through notes true
	// <nil>
}
