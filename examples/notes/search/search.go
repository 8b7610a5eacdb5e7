// Package search finds words in texts, as an example of a service that other services call on
// behalf of their users. The service stores nothing.
package search

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"

	searchv1 "example.com/notes/gen/search/v1"
)

// PublicMethods is a pattern for authn.WithPublicMethods, as in package notes.
const PublicMethods = "/grpc.health.v1.Health/*"

// Service implements searchv1.SearchServiceServer.
type Service struct {
	searchv1.UnimplementedSearchServiceServer
}

// Find returns the places of the texts that have the word. The principal is the user, also if a
// service calls: the service that called on the user's behalf is the actor of the token.
//
// Errors: INVALID_ARGUMENT for an empty word.
func (Service) Find(ctx context.Context, req *searchv1.FindRequest) (*searchv1.FindResponse, error) {
	user, ok := authn.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "the server is not guarded")
	}
	if req.GetWord() == "" {
		return nil, status.Error(codes.InvalidArgument, "word: is empty")
	}
	resp := &searchv1.FindResponse{Subject: user.Username()}
	if actor, ok := user.Actor(); ok {
		resp.Actor = actor.Username()
	}
	for i, text := range req.GetTexts() {
		if has(text, req.GetWord()) {
			resp.Places = append(resp.Places, int32(i))
		}
	}
	return resp, nil
}

func has(text, word string) bool {
	words := strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsNumber(r) })
	return slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, word) })
}

// NewServer returns a gRPC server with the search service and the health service, guarded by the
// verifier. opts come after the options of the verifier.
//
// Errors: those of authn.Verifier.CheckServices, which name every method without a rule.
func NewServer(verifier *authn.Verifier, status *health.Server, opts ...grpc.ServerOption) (*grpc.Server, error) {
	server := grpc.NewServer(append(verifier.ServerOptions(), opts...)...)
	searchv1.RegisterSearchServiceServer(server, Service{})
	healthv1.RegisterHealthServer(server, status)
	if err := verifier.CheckServices(server.GetServiceInfo()); err != nil {
		return nil, fmt.Errorf("checking the access rules of the methods: %w", err)
	}
	return server, nil
}
