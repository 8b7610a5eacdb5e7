package notes

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/watchword-auth/watchword/authn"

	notesv1 "example.com/notes/gen/notes/v1"
)

// PublicMethods is a pattern for authn.WithPublicMethods: the health service is open to every
// caller, and the proto file of the health service, of another project, has no option that says so.
const PublicMethods = "/grpc.health.v1.Health/*"

// NewServer returns a gRPC server with the notes service and the health service, guarded by
// the verifier. opts come after the options of the verifier.
//
// Errors: those of authn.Verifier.CheckServices, which name every method without a rule.
func NewServer(verifier *authn.Verifier, service *Service, status *health.Server, opts ...grpc.ServerOption) (*grpc.Server, error) {
	server := grpc.NewServer(append(verifier.ServerOptions(), opts...)...)
	notesv1.RegisterNotesServiceServer(server, service)
	healthv1.RegisterHealthServer(server, status)
	if err := verifier.CheckServices(server.GetServiceInfo()); err != nil {
		return nil, fmt.Errorf("checking the access rules of the methods: %w", err)
	}
	return server, nil
}
