package notes

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/watchword-auth/watchword/authn"

	notesv1 "example.com/notes/gen/notes/v1"
)

// PublicMethods are the methods that anyone may call although their proto files,
// which are not ours, don't say so. For authn.WithPublicMethods.
const PublicMethods = "/grpc.health.v1.Health/*"

// NewServer returns a server with the notes and their health on it, both kinds of
// call guarded by the verifier. Its error names every method that has no rule.
func NewServer(verifier *authn.Verifier, service *Service, status *health.Server) (*grpc.Server, error) {
	server := grpc.NewServer(verifier.ServerOptions()...)
	notesv1.RegisterNotesServiceServer(server, service)
	healthv1.RegisterHealthServer(server, status)
	if err := verifier.CheckServices(server.GetServiceInfo()); err != nil {
		return nil, fmt.Errorf("checking the rules of the methods: %w", err)
	}
	return server, nil
}
