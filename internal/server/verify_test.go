package server_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/rpc"
	"github.com/watchword-auth/watchword/internal/token/tokentest"
	"github.com/watchword-auth/watchword/internal/trusttest"
)

// openList is a SessionService behind whose guard nothing can go wrong.
type openList struct {
	watchwordv1.UnimplementedSessionServiceServer
}

func (openList) ListSessions(ctx context.Context, _ *watchwordv1.ListSessionsRequest) (*watchwordv1.ListSessionsResponse, error) {
	if p, ok := authn.FromContext(ctx); !ok || p.Subject() == "" {
		return nil, status.Error(codes.Internal, "no principal")
	}
	return &watchwordv1.ListSessionsResponse{}, nil
}

// suite serves AuthService and a guarded method with the bundle of the suite of
// tokens, whose clock it has. In a bubble.
func suite(t *testing.T, s tokentest.Suite) *grpc.ClientConn {
	t.Helper()
	state := &watchwordv1.TrustState{
		Issuer: s.Issuer, MaxTokenLifetime: durationpb.New(s.MaxLifetime), Margin: durationpb.New(5 * time.Minute),
	}
	for _, k := range s.Keys {
		state.Keys = append(state.Keys, &watchwordv1.VerificationKey{Key: k.JWK})
	}
	verifier, err := authn.NewVerifier(t.Context(), trusttest.Play(
		trusttest.Chunk(&watchwordv1.SnapshotChunk{TrustState: state, Last: true}), trusttest.Heartbeat(s.Now),
	), authn.WithAudience(s.Audience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verifier.Close() })

	logger := slog.New(slog.NewJSONHandler(&logged, nil))
	edge := rpc.NewEdge(audit.New(nil, logger), func() time.Duration { return time.Second }, logger)
	server := grpc.NewServer(append([]grpc.ServerOption{grpc.ChainUnaryInterceptor(edge.Unary)}, verifier.ServerOptions()...)...)
	watchwordv1.RegisterAuthServiceServer(server, &rpc.Auth{Verifier: verifier, Audience: []string{s.Audience}})
	watchwordv1.RegisterSessionServiceServer(server, openList{})
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		<-served
	})
	return conn
}

// sendable reports whether a token can be sent in metadata without a change.
func sendable(raw string) bool {
	return raw == strings.TrimSpace(raw) && !strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' || r > '~' })
}

// Every token of the suite, good and hostile, gets through the RPC Verify and
// past the guard of a method what it must get.
func TestTokens(t *testing.T) {
	s := tokentest.Load(t)
	synctest.Test(t, func(t *testing.T) {
		conn := suite(t, s)
		auth, sessions := watchwordv1.NewAuthServiceClient(conn), watchwordv1.NewSessionServiceClient(conn)
		for _, c := range s.Cases {
			for _, audience := range []string{"", s.Audience} {
				_, err := auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: c.Token, Audience: audience})
				wants(t, "Verify: "+c.Name, outcome(err), c.Want)
				if err != nil {
					refusedBy(t, err, c.Want, "")
				}
			}
			// The server issues no tokens for these audiences, and refuses even a token that
			// names one of them.
			want := c.Want
			// The audience is judged before the times.
			if want == tokentest.OK || want == "TOKEN_EXPIRED" || strings.HasPrefix(c.Name, "issued ") {
				want = "AUDIENCE_MISMATCH"
			}
			for _, other := range []string{"elsewhere", "other", "another"} {
				_, err := auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: c.Token, Audience: other})
				wants(t, "Verify for "+other+": "+c.Name, outcome(err), want)
			}
			if sendable(c.Token) {
				_, err := sessions.ListSessions(bearing(t.Context(), c.Token), &watchwordv1.ListSessionsRequest{})
				want := c.Want
				if c.Delegated {
					want = "DELEGATION_DENIED"
				}
				wants(t, "ListSessions: "+c.Name, outcome(err), want)
			}
		}
	})
}

// No change of a single character leaves a good token good, for the RPC Verify and for a
// guarded method: two changes of each place go over the connection.
func TestEveryChangeIsRefused(t *testing.T) {
	s := tokentest.Load(t)
	synctest.Test(t, func(t *testing.T) {
		conn := suite(t, s)
		auth, sessions := watchwordv1.NewAuthServiceClient(conn), watchwordv1.NewSessionServiceClient(conn)
		for alg, good := range s.Good() {
			_, err := auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: good})
			wants(t, alg, outcome(err), "ok")
			n := 0
			for raw := range tokentest.Changes(good) {
				if n++; n%31 != 0 { // a character of the token has 67 changes, so this visits every character
					continue
				}
				_, err := auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: raw})
				refusedBy(t, err, "TOKEN_INVALID", "")
				_, err = sessions.ListSessions(bearing(t.Context(), raw), &watchwordv1.ListSessionsRequest{})
				refusedBy(t, err, "TOKEN_INVALID", "")
			}
		}
	})
}

// The tokens of Wycheproof, which are no access tokens, are all refused.
func TestWycheproofIsRefused(t *testing.T) {
	all := tokentest.Wycheproof(t)
	s := tokentest.Load(t)
	synctest.Test(t, func(t *testing.T) {
		conn := suite(t, s)
		auth, sessions := watchwordv1.NewAuthServiceClient(conn), watchwordv1.NewSessionServiceClient(conn)
		for _, raw := range all {
			_, err := auth.Verify(t.Context(), &watchwordv1.VerifyRequest{AccessToken: raw})
			refusedBy(t, err, "TOKEN_INVALID", "")
			if sendable(raw) {
				_, err := sessions.ListSessions(bearing(t.Context(), raw), &watchwordv1.ListSessionsRequest{})
				refusedBy(t, err, "TOKEN_INVALID", "")
			}
		}
		_, err := auth.Verify(t.Context(), &watchwordv1.VerifyRequest{})
		refusedBy(t, err, invalid, "access_token")
	})
	// The server itself refuses the suite's tokens, since the server has other keys.
	h := shared(t)
	for _, raw := range all {
		wants(t, "Verify", h.verify(t, raw), "TOKEN_INVALID")
	}
}
