package search

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"

	searchv1 "example.com/notes/gen/search/v1"
)

// The service is guarded, finds whole words, and distinguishes the user from the service that
// calls for the user.
func TestFind(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	issuer := authntest.New()
	server, err := NewServer(issuer.NewVerifier(t, authn.WithAudience("search"), authn.WithPublicMethods(PublicMethods)), health.NewServer())
	if err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 16)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	conn, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := authntest.CheckGuarded(ctx, conn, server.GetServiceInfo(), PublicMethods); err != nil {
		t.Error(err)
	}
	client := searchv1.NewSearchServiceClient(conn)
	find := &searchv1.FindRequest{Word: "tea", Texts: []string{"Tea, please.", "A team", "no\ntea"}}
	alice := authntest.User{Name: "alice", Audience: []string{"internal"}}
	notes := authntest.User{Name: "notes", Kind: watchwordv1.UserKind_USER_KIND_SERVICE}
	own := alice
	own.Audience = []string{"search"}
	for want, token := range map[string]string{
		"[0 2] alice ":      issuer.Token(own),
		"[0 2] alice notes": issuer.Delegate(issuer.Token(alice), notes, "search"),
	} {
		found, err := client.Find(authntest.Bearer(ctx, token), find)
		if got := fmt.Sprint(found.GetPlaces(), " ", found.GetSubject(), " ", found.GetActor()); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if _, err := client.Find(authntest.Bearer(ctx, issuer.Token(own)), new(searchv1.FindRequest)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without a word: %v", err)
	}
}
