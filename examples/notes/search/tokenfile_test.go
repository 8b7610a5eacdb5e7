package search

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/jwt"
	"google.golang.org/grpc/health"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"

	searchv1 "example.com/notes/gen/search/v1"
)

// exchanger is a Watchword server that knows the service account report.
type exchanger struct {
	watchwordv1.UnimplementedAuthServiceServer
	issuer *authntest.Issuer
}

func (e exchanger) ExchangeToken(_ context.Context, req *watchwordv1.ExchangeTokenRequest) (*watchwordv1.ExchangeTokenResponse, error) {
	token := e.issuer.Token(authntest.User{Name: "report", Kind: watchwordv1.UserKind_USER_KIND_SERVICE, Audience: req.GetAudience()})
	return &watchwordv1.ExchangeTokenResponse{AccessToken: token, TokenType: "Bearer", ExpiresIn: durationpb.New(5 * time.Minute)}, nil
}

// serve runs a server on loopback, and returns the server's address.
func serve(t *testing.T, server *grpc.Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

// A process with gRPC's JWT file credentials (gRFC A97), which knows nothing of Watchword, calls
// search over TLS by the token file of another process. gRPC sends no such token over plaintext.
func TestFindByATokenFile(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	issuer := authntest.New()
	auth := grpc.NewServer()
	watchwordv1.RegisterAuthServiceServer(auth, exchanger{issuer: issuer})
	authConn, err := grpc.NewClient(serve(t, auth), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer authConn.Close()
	file := filepath.Join(t.TempDir(), "access-token")
	assertion := func(context.Context) (string, error) { return "of.the.platform", nil }
	source, err := tokensource.Workload(authConn, assertion, tokensource.WithAudience("search"), tokensource.WithTokenFile(file))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	for _, err = os.Stat(file); err != nil; _, err = os.Stat(file) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}

	web := httptest.NewUnstartedServer(nil) // for its certificate
	web.StartTLS()
	defer web.Close()
	verifier := issuer.NewVerifier(t, authn.WithAudience("search"), authn.WithPublicMethods(PublicMethods))
	server, err := NewServer(verifier, health.NewServer(), grpc.Creds(credentials.NewServerTLSFromCert(&web.TLS.Certificates[0])))
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, server)
	fromFile, err := jwt.NewTokenFileCallCredentials(file)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	conn, err := grpc.NewClient(addr, grpc.WithPerRPCCredentials(fromFile), grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	found, err := searchv1.NewSearchServiceClient(conn).Find(ctx, &searchv1.FindRequest{Word: "tea", Texts: []string{"Tea, please."}})
	if got := fmt.Sprint(found.GetPlaces(), found.GetSubject(), found.GetActor()); err != nil || got != "[0]report" {
		t.Errorf("%q, %v", got, err)
	}
	if conn, err := grpc.NewClient(addr, grpc.WithPerRPCCredentials(fromFile), grpc.WithTransportCredentials(insecure.NewCredentials())); err == nil {
		conn.Close()
		t.Error("gRPC would send the token over plaintext")
	}
}
