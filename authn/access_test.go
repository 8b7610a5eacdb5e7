package authn_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

func TestCheckServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, authn.WithPublicMethods(notes+"List", "/grpc.health.v1.Health/*", "/gone.v1.Gone/*", notes+"Wacth"))
		server := grpc.NewServer(w.ServerOptions()...)
		registerNotes(server, "notes.v1.NotesService")
		healthpb.RegisterHealthServer(server, health.NewServer())
		err := w.CheckServices(server.GetServiceInfo())
		if status.Code(err) != codes.FailedPrecondition {
			t.Fatal(err)
		}
		lines := strings.Split(err.Error(), "\n\t")[1:]
		want := []string{"/gone.v1.Gone/*: ", notes + "Wacth: ", notes + "Watch: no rule"}
		if len(lines) != len(want) || !slices.EqualFunc(lines, want, strings.HasPrefix) {
			t.Errorf("%q, want %q", lines, want)
		}

		// Every method of Watchword's own services has a rule.
		fine := start(t)
		own := grpc.NewServer(fine.ServerOptions()...)
		watchwordv1.RegisterAuthServiceServer(own, watchwordv1.UnimplementedAuthServiceServer{})
		watchwordv1.RegisterTrustServiceServer(own, watchwordv1.UnimplementedTrustServiceServer{})
		watchwordv1.RegisterUserServiceServer(own, watchwordv1.UnimplementedUserServiceServer{})
		watchwordv1.RegisterSessionServiceServer(own, watchwordv1.UnimplementedSessionServiceServer{})
		watchwordv1.RegisterKeyServiceServer(own, watchwordv1.UnimplementedKeyServiceServer{})
		watchwordv1.RegisterAuditServiceServer(own, watchwordv1.UnimplementedAuditServiceServer{})
		if err := fine.CheckServices(own.GetServiceInfo()); err != nil {
			t.Error(err)
		}
	})
}

// register adds descriptors to the program's descriptors until the end of the test.
func register(t *testing.T, files ...protoreflect.FileDescriptor) {
	t.Helper()
	all, before := new(protoregistry.Files), protoregistry.GlobalFiles
	add := func(f protoreflect.FileDescriptor) bool {
		if err := all.RegisterFile(f); err != nil {
			t.Error(err)
		}
		return true
	}
	before.RangeFiles(add)
	for _, f := range files {
		add(f)
	}
	protoregistry.GlobalFiles = all
	t.Cleanup(func() { protoregistry.GlobalFiles = before })
}

var contradiction = &watchwordv1.Access{Public: true, Roles: []string{"admin"}}

func TestContradictionInAnOption(t *testing.T) {
	register(t, notesFile("broken.v1", contradiction))
	_, err := authn.NewVerifier(t.Context(), newHandFed(), authn.WithAudience("internal"))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "/broken.v1.NotesService/Extra") {
		t.Error(err)
	}
}

// If a descriptor registered after NewVerifier has a contradiction in its access rule,
// CheckServices and each call return an error.
func TestContradictionInALateDescriptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		register(t, notesFile("broken.v1", contradiction))
		const method = "/broken.v1.NotesService/Extra"
		err := w.CheckServices(map[string]grpc.ServiceInfo{"broken.v1.NotesService": {Methods: []grpc.MethodInfo{{Name: "Extra"}}}})
		if err == nil || !strings.Contains(err.Error(), method) {
			t.Error(err)
		}
		conn := serveNotes(t, w.Verifier)
		ctx := bearing(t.Context(), "Bearer "+mint(t, w.key, func(c *token.Claims) { c.Roles = []string{"admin"} }))
		if _, err := call(ctx, conn, method, true); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "roles") {
			t.Error(err)
		}
	})
}

// An undecoded option counts, also for a method called before its descriptor was registered.
func TestOptionOfALateDescriptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		conn := serveNotes(t, w.Verifier)
		ctx := bearing(t.Context(), "Bearer "+mint(t, w.key))
		const method = "/late.v1.NotesService/Extra"
		if caller, err := call(ctx, conn, method, true); err != nil || caller != "alice" {
			t.Errorf("before: %q, %v", caller, err)
		}
		register(t, notesFile("late.v1", &watchwordv1.Access{Roles: []string{"admin"}}))
		_, err := call(ctx, conn, method, true)
		refusedBy(t, err, codes.PermissionDenied, "ROLE_REQUIRED", method)

		// A name spelled alike does not get the rule.
		if caller, err := call(ctx, conn, "/late.v1/NotesService.Extra", true); err != nil || caller != "alice" {
			t.Errorf("%q, %v", caller, err)
		}
	})
}

func TestPublicMethodsBesidesAnEmptyOption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, authn.WithPublicMethods(notes+"Mine"))
		conn := serveNotes(t, w.Verifier)
		if caller, err := call(t.Context(), conn, notes+"Mine", false); err != nil || caller != "no principal" {
			t.Errorf("%q, %v", caller, err)
		}
	})
}
