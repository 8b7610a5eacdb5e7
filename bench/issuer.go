package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/trusttest"
)

const (
	audience = "internal"
	lifetime = time.Hour // longer than any run
)

// issuer makes tokens by the thousand. Verifiers in this process get its keys by a
// stream, and the peers get them by HTTP on loopback.
type issuer struct {
	name string // the URL of the issuer
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
	serve("/jwks.json", map[string]any{"keys": []any{key.Public().JWK()}}) // token.JWK has the JSON names of RFC 7517
	go func() { _ = i.http.Serve(listener) }()
	return i, nil
}

func (i *issuer) close() { _ = i.http.Close() }

func (i *issuer) jwksURL() string { return i.name + "/jwks.json" }

// mint makes tokens as a server does: all different, each of a session of its own.
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

// verifier returns a verifier that has the given number of ended sessions.
func (i *issuer) verifier(ended int, opts ...authn.Option) (*authn.Verifier, error) {
	conn := trusttest.Conn(func(ctx context.Context) (trusttest.Next, error) {
		return (&feed{issuer: i, ctx: ctx, ended: ended}).next, nil
	})
	return authn.NewVerifier(context.Background(), conn, append(opts, authn.WithAudience(audience))...)
}

// feed is one stream of messages to a verifier.
type feed struct {
	issuer *issuer
	ctx    context.Context // ends with the stream
	ended  int             // sessions that no chunk has named yet
	stage  stage
}

type stage int

const (
	begin     stage = iota // the first chunk comes next
	snapshot               // the chunks after the first one come next
	complete               // the first heartbeat comes next
	following              // only heartbeats come from now on
)

const (
	chunkSize = 1000
	beatEvery = 5 * time.Second // a verifier takes a longer silence for a lost connection
)

// next makes the snapshot message by message, while the verifier reads, so that no copy
// of it is left when memory is measured.
func (f *feed) next() (*trusttest.Message, error) {
	switch f.stage {
	case begin, snapshot:
		return trusttest.Chunk(f.chunk()), nil
	case complete:
		f.stage = following
	case following:
		select {
		case <-time.After(beatEvery):
		case <-f.ctx.Done():
			return nil, status.FromContextError(f.ctx.Err()).Err()
		}
	}
	return trusttest.Heartbeat(time.Now()), nil
}

func (f *feed) chunk() *watchwordv1.SnapshotChunk {
	c := &watchwordv1.SnapshotChunk{}
	if f.stage == begin {
		f.stage = snapshot
		c.TrustState = &watchwordv1.TrustState{
			Issuer: f.issuer.name, MaxTokenLifetime: durationpb.New(lifetime), Margin: durationpb.New(time.Minute),
			Keys: []*watchwordv1.VerificationKey{{Key: f.issuer.key.Public().JWK()}},
		}
	}
	until := timestamppb.New(time.Now().Add(lifetime))
	for ; f.ended > 0 && len(c.EndedSessions) < chunkSize; f.ended-- {
		c.EndedSessions = append(c.EndedSessions, &watchwordv1.EndedSession{SessionId: randomID(12), Until: until})
	}
	if f.ended == 0 {
		c.Last, f.stage = true, complete
	}
	return c
}
