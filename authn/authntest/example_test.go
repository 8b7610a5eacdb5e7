package authntest_test

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// The README's lines, in the test of a service that is guarded.
func TestReadme(t *testing.T) {
	issuer := authntest.New()
	verifier := issuer.NewVerifier(t, authn.WithAudience("internal"))
	srv := grpc.NewServer(verifier.ServerOptions()...)
	token := issuer.Token(authntest.User{Name: "alice", Roles: []string{"reader"}, Audience: []string{"internal"}})
	ctx := authntest.Bearer(t.Context(), token) // for a client's calls to srv

	healthpb.RegisterHealthServer(srv, health.NewServer())
	listener := bufconn.Listen(1 << 16)
	go func() { _ = srv.Serve(listener) }()
	defer srv.Stop()
	conn, err := grpc.NewClient("passthrough:service", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = authntest.CheckGuarded(ctx, conn, srv.GetServiceInfo())
	if err != nil {
		t.Error(err)
	}
	client := healthpb.NewHealthClient(conn)
	if _, err := client.Check(ctx, new(healthpb.HealthCheckRequest)); err != nil {
		t.Error(err)
	}

	issuer.EndSession(token) // from here on such a call is refused with TOKEN_REVOKED
	_, err = client.Check(ctx, new(healthpb.HealthCheckRequest))
	if reason := authn.Reason(err); reason != watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED {
		t.Error(reason)
	}
}
