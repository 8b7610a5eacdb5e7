package authn_test

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// foreign is a service with code of another protobuf runtime (gogo/protobuf): grpc-go serves the
// service, but the program has no descriptor of the service. So no code can read that the proto
// file asks for a role.
const foreign = "/foreign.v1.NotesService/"

func serveForeign(t *testing.T, v *authn.Verifier) (*grpc.ClientConn, map[string]grpc.ServiceInfo) {
	t.Helper()
	server := grpc.NewServer(v.ServerOptions()...)
	registerNotes(server, "foreign.v1.NotesService")
	listener, stop := serveOn(server)
	t.Cleanup(stop)
	conn := dial(listener)
	t.Cleanup(func() { conn.Close() })
	return conn, server.GetServiceInfo()
}

// A registered method without a descriptor admits no caller, and CheckServices says why.
func TestAMethodWithoutADescriptorIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		w := start(t, authn.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		conn, services := serveForeign(t, w.Verifier)
		for _, roles := range [][]string{{"reader"}, {"admin"}, nil} {
			ctx := bearing(t.Context(), "Bearer "+mint(t, w.key, func(c *token.Claims) { c.Roles = roles }))
			for _, m := range notesMethods {
				caller, err := call(ctx, conn, foreign+m.name, m.stream)
				if status.Code(err) != codes.PermissionDenied || caller != "" {
					t.Errorf("%s with %q: %q, %v", m.name, roles, caller, err)
				}
				_, err = call(t.Context(), conn, foreign+m.name, m.stream)
				refusedBy(t, err, codes.Unauthenticated, "TOKEN_MISSING", foreign+m.name)
			}
		}
		// However many calls, the log has one entry a minute.
		if n := strings.Count(log.String(), "CheckServices"); n != 1 || !strings.Contains(log.String(), foreign) {
			t.Errorf("%d entries:\n%s", n, log.String())
		}
		time.Sleep(time.Minute)
		for range 3 {
			_, _ = call(bearing(t.Context(), "Bearer "+mint(t, w.key)), conn, foreign+"List", false)
		}
		if n := strings.Count(log.String(), "CheckServices"); n != 2 {
			t.Errorf("a minute later: %d entries", n)
		}

		err := w.CheckServices(services)
		for _, m := range notesMethods {
			if err == nil || !strings.Contains(err.Error(), foreign+m.name+": no call is admitted") || !strings.Contains(err.Error(), "gogo/protobuf") {
				t.Errorf("CheckServices does not explain %s: %v", m.name, err)
			}
		}
	})
}

// WithMethodRule and WithPublicMethods say what holds for methods without a descriptor. The
// name of a method counts before the pattern of the service.
func TestRulesOfMethodsWithoutADescriptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		roles := &watchwordv1.Access{Roles: []string{"writer", "admin"}}
		w := start(t, tokenNeeded(foreign+"*"), authn.WithMethodRule(foreign+"Add", roles),
			authn.WithMethodRule(foreign+"WatchAll", roles), authn.WithPublicMethods(foreign+"About", foreign+"WatchAbout"))
		roles.Roles[0], roles.Roles[1] = "reader", "reader" // the program's own copy
		conn, services := serveForeign(t, w.Verifier)
		check(t, w.CheckServices(services))
		for _, m := range notesMethods {
			public, asks := strings.HasSuffix(m.name, "About"), m.name == "Add" || m.name == "WatchAll"
			for role, ok := range map[string]bool{"reader": !asks, "writer": true, "admin": true} {
				ctx := bearing(t.Context(), "Bearer "+mint(t, w.key, func(c *token.Claims) { c.Roles = []string{role} }))
				_, err := call(ctx, conn, foreign+m.name, m.stream)
				if ok {
					check(t, err)
				} else {
					refusedBy(t, err, codes.PermissionDenied, "ROLE_REQUIRED", foreign+m.name)
				}
			}
			_, err := call(t.Context(), conn, foreign+m.name, m.stream)
			if public {
				check(t, err)
			} else {
				refusedBy(t, err, codes.Unauthenticated, "TOKEN_MISSING", foreign+m.name)
			}
		}
	})
}

// secondCopy is the option of a second copy of access.proto: the same number, in another
// proto package, with another type.
func secondCopy(t *testing.T, kind descriptorpb.FieldDescriptorProto_Type) protoreflect.ExtensionType {
	t.Helper()
	field := &descriptorpb.FieldDescriptorProto{
		Name: proto.String("access"), Number: proto.Int32(73184), Extendee: proto.String(".google.protobuf.MethodOptions"),
		Type: kind.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
	if kind == descriptorpb.FieldDescriptorProto_TYPE_MESSAGE {
		field.TypeName = proto.String(".copied.v1.Access")
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Syntax: proto.String("proto2"), Name: proto.String("copied/v1/access.proto"), Package: proto.String("copied.v1"),
		Dependency: []string{"google/protobuf/descriptor.proto"},
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("Access"), Field: []*descriptorpb.FieldDescriptorProto{
			{Name: proto.String("open"), Number: proto.Int32(1), Type: descriptorpb.FieldDescriptorProto_TYPE_BOOL.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()},
			{Name: proto.String("must"), Number: proto.Int32(9), Type: descriptorpb.FieldDescriptorProto_TYPE_BOOL.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_REQUIRED.Enum()},
		}}},
		Extension: []*descriptorpb.FieldDescriptorProto{field},
	}, protoregistry.GlobalFiles)
	check(t, err)
	return dynamicpb.NewExtensionType(file.Extensions().Get(0))
}

// Which copy of the option the program has registered, and whether the descriptor's options
// were decoded before or after, does not matter.
func TestASecondCopyOfTheOption(t *testing.T) {
	admin := encoded(&watchwordv1.Access{Roles: []string{"admin"}})
	for name, kind := range map[string]descriptorpb.FieldDescriptorProto_Type{
		"a message": descriptorpb.FieldDescriptorProto_TYPE_MESSAGE,
		"bytes":     descriptorpb.FieldDescriptorProto_TYPE_BYTES,
		"a number":  descriptorpb.FieldDescriptorProto_TYPE_INT32,
		"none":      0,
	} {
		for _, early := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				before := protoregistry.GlobalTypes
				types := typesWithoutTheOption(t)
				if kind != 0 {
					check(t, types.RegisterExtension(secondCopy(t, kind)))
				}
				t.Cleanup(func() { protoregistry.GlobalTypes = before })
				file := notesFile("copied.v1", admin)
				if early { // the options of the file are decoded by the second copy of access.proto
					protoregistry.GlobalTypes = types
					file = decodedAgain(t, file)
				}
				protoregistry.GlobalTypes = types
				synctest.Test(t, func(t *testing.T) {
					register(t, file)
					w := start(t)
					conn := serveNotes(t, w.Verifier)
					_, err := call(bearing(t.Context(), "Bearer "+mint(t, w.key)), conn, "/copied.v1.NotesService/Extra", true)
					refusedBy(t, err, codes.PermissionDenied, "ROLE_REQUIRED", "/copied.v1.NotesService/Extra")
				})
			})
		}
	}
}

// typesWithoutTheOption returns the program's types, less the option.
func typesWithoutTheOption(t *testing.T) *protoregistry.Types {
	t.Helper()
	types := new(protoregistry.Types)
	protoregistry.GlobalTypes.RangeMessages(func(m protoreflect.MessageType) bool {
		check(t, types.RegisterMessage(m))
		return true
	})
	protoregistry.GlobalTypes.RangeExtensions(func(x protoreflect.ExtensionType) bool {
		if x != watchwordv1.E_Access {
			check(t, types.RegisterExtension(x))
		}
		return true
	})
	return types
}

// decodedAgain returns a file with its options decoded by the types now registered.
func decodedAgain(t *testing.T, file protoreflect.FileDescriptor) protoreflect.FileDescriptor {
	t.Helper()
	raw, err := proto.Marshal(protodesc.ToFileDescriptorProto(file))
	check(t, err)
	decoded := new(descriptorpb.FileDescriptorProto)
	check(t, proto.UnmarshalOptions{AllowPartial: true}.Unmarshal(raw, decoded))
	again, err := protodesc.FileOptions{AllowUnresolvable: true}.New(decoded, protoregistry.GlobalFiles)
	check(t, err)
	return again
}
