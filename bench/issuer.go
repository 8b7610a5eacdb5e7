package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

const (
	audience = "internal"
	lifetime = time.Hour // longer than any run
)

// issuer mints tokens by the thousand, and is trusted by verifiers that it feeds
// in process and by peers that ask it over HTTP on loopback.
type issuer struct {
	name string // its URL
	key  *token.SigningKey
	http *http.Server
}

func newIssuer() (*issuer, error) {
	key, err := token.GenerateKey(token.EdDSA)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	i := &issuer{name: "http://" + listener.Addr().String(), key: key}
	mux := http.NewServeMux()
	i.http = &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	serve := func(path string, document any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(document)
		})
	}
	serve("/.well-known/openid-configuration", map[string]any{
		"issuer": i.name, "jwks_uri": i.jwksURL(), "authorization_endpoint": i.name + "/authorize",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"EdDSA"},
	})
	serve("/jwks.json", map[string]any{"keys": []any{key.Public().JWK()}}) // whose JSON names are those of RFC 7517
	go func() { _ = i.http.Serve(listener) }()
	return i, nil
}

func (i *issuer) close() { _ = i.http.Close() }

func (i *issuer) jwksURL() string { return i.name + "/jwks.json" }

// mint makes tokens as a server does: no two alike, each of a session of its own.
func (i *issuer) mint(n int) ([]string, error) {
	tokens := make([]string, n)
	now := time.Now()
	for k := range tokens {
		var err error
		tokens[k], err = token.Sign(i.key, &token.Claims{
			Issuer: i.name, Subject: randomID(12), ID: randomID(8), SessionID: randomID(12), Username: "benjamin",
			Audience: []string{audience, "billing"}, Roles: []string{"reader", "writer", "auditor"},
			IssuedAt: now, ExpiresAt: now.Add(lifetime), Version: 1,
		})
		if err != nil {
			return nil, err
		}
	}
	return tokens, nil
}

func randomID(bytes int) string {
	id := make([]byte, bytes)
	rand.Read(id)
	return base64.RawURLEncoding.EncodeToString(id)
}

// verifier makes one that knows of so many ended sessions.
func (i *issuer) verifier(ended int) (*authn.Verifier, error) {
	return authn.NewVerifier(context.Background(), feed{i, ended}, authn.WithAudience(audience))
}

// feed is a connection to an issuer in process. It serves WatchBundle alone.
type feed struct {
	issuer *issuer
	ended  int
}

func (feed) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	return status.Errorf(codes.Unimplemented, "%s is not served in process", method)
}

func (f feed) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	for _, opt := range opts {
		if p, ok := opt.(grpc.PeerCallOption); ok {
			*p.PeerAddr = peer.Peer{Addr: &net.UnixAddr{Net: "unix"}} // on this machine
		}
	}
	return &feedStream{feed: f, ctx: ctx}, nil
}

type feedStream struct {
	feed
	ctx   context.Context
	next  int // the ended session that is told of next
	stage int // 0: the snapshot begins; 1: it goes on; 2: it is complete; 3: and the first heartbeat is out
}

func (s *feedStream) Header() (metadata.MD, error) { return nil, nil }
func (s *feedStream) Trailer() metadata.MD         { return nil }
func (s *feedStream) CloseSend() error             { return nil }
func (s *feedStream) Context() context.Context     { return s.ctx }
func (s *feedStream) SendMsg(any) error            { return nil }

const (
	chunkSize = 1000
	beatEvery = 5 * time.Second // so that a verifier doesn't take silence for a lost connection
)

// RecvMsg makes the snapshot as it is asked for: nothing of it is left when it
// has been told.
func (s *feedStream) RecvMsg(m any) error {
	out := m.(*watchwordv1.WatchBundleResponse)
	proto.Reset(out)
	if s.stage < 2 {
		out.Message = &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: s.chunk()}
		return nil
	}
	if s.stage == 2 {
		s.stage = 3
	} else {
		select {
		case <-time.After(beatEvery):
		case <-s.ctx.Done():
			return status.FromContextError(s.ctx.Err()).Err()
		}
	}
	now := timestamppb.Now()
	out.Message = &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: &watchwordv1.Heartbeat{ServerTime: now, AsOf: now}}
	return nil
}

func (s *feedStream) chunk() *watchwordv1.SnapshotChunk {
	c := &watchwordv1.SnapshotChunk{}
	if s.stage == 0 {
		s.stage = 1
		c.TrustState = &watchwordv1.TrustState{
			Issuer: s.issuer.name, MaxTokenLifetime: durationpb.New(lifetime), Margin: durationpb.New(time.Minute),
			Keys: []*watchwordv1.VerificationKey{{Key: s.issuer.key.Public().JWK()}},
		}
	}
	until := timestamppb.New(time.Now().Add(lifetime))
	for ; s.next < s.ended && len(c.EndedSessions) < chunkSize; s.next++ {
		c.EndedSessions = append(c.EndedSessions, &watchwordv1.EndedSession{SessionId: randomID(12), Until: until})
	}
	if s.next == s.ended {
		c.Last, s.stage = true, 2
	}
	return c
}
