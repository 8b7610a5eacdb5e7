package authn_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// notes is a service of another program. Every method answers with the caller's name.
const notes = "/notes.v1.NotesService/"

var (
	empty   = new(emptypb.Empty)
	newText = func() *wrapperspb.StringValue { return new(wrapperspb.StringValue) }
)

// notesMethods has, for unary calls and for streams, methods with each kind of rule.
var notesMethods = []struct {
	name   string
	access *watchwordv1.Access // nil: no option
	stream bool
}{
	{"List", nil, false},
	{"Mine", &watchwordv1.Access{}, false},
	{"Add", &watchwordv1.Access{Roles: []string{"writer", "admin"}}, false},
	{"About", &watchwordv1.Access{Public: true}, false},
	{"Watch", nil, true},
	{"WatchAll", &watchwordv1.Access{Roles: []string{"admin"}}, true},
	{"WatchAbout", &watchwordv1.Access{Public: true}, true},
	{"Bill", &watchwordv1.Access{Audience: []string{"billing", "office"}, Roles: []string{"writer"}}, false},
	{"Own", &watchwordv1.Access{Delegated: watchwordv1.Access_REFUSE}, false},
	{"WatchOwn", &watchwordv1.Access{Delegated: watchwordv1.Access_REFUSE, Roles: []string{"writer"}}, true},
	{"WatchBills", &watchwordv1.Access{Audience: []string{"billing", "office"}, Roles: []string{"writer"}}, true},
}

func init() {
	if err := protoregistry.GlobalFiles.RegisterFile(notesFile("notes.v1", nil)); err != nil {
		panic(err)
	}
}

// notesFile returns the service's descriptor. If extra is not nil, the service also has a
// method Extra with this option, undecoded as in a reflection client.
func notesFile(pkg string, extra []byte) protoreflect.FileDescriptor {
	service := &descriptorpb.ServiceDescriptorProto{Name: proto.String("NotesService")}
	add := func(name string, options *descriptorpb.MethodOptions, stream bool) {
		service.Method = append(service.Method, &descriptorpb.MethodDescriptorProto{
			Name: proto.String(name), Options: options, ServerStreaming: proto.Bool(stream),
			InputType: proto.String(".google.protobuf.Empty"), OutputType: proto.String(".google.protobuf.StringValue"),
		})
	}
	for _, m := range notesMethods {
		options := new(descriptorpb.MethodOptions)
		if m.access != nil {
			proto.SetExtension(options, watchwordv1.E_Access, m.access)
		}
		add(m.name, options, m.stream)
	}
	if extra != nil {
		options := new(descriptorpb.MethodOptions)
		options.ProtoReflect().SetUnknown(protowire.AppendBytes(
			protowire.AppendTag(nil, watchwordv1.E_Access.TypeDescriptor().Number(), protowire.BytesType), extra))
		add("Extra", options, false)
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Syntax: proto.String("proto3"), Name: proto.String(pkg + ".proto"), Package: proto.String(pkg),
		Dependency: []string{"google/protobuf/empty.proto", "google/protobuf/wrappers.proto"},
		Service:    []*descriptorpb.ServiceDescriptorProto{service},
	}, protoregistry.GlobalFiles)
	if err != nil {
		panic(err)
	}
	return file
}

// tokenNeeded is the rule of methods that need a valid token.
func tokenNeeded(pattern string) authn.Option {
	return authn.WithMethodRule(pattern, &watchwordv1.Access{})
}

// caller returns the answer of every handler: the caller's name.
func caller(ctx context.Context) *wrapperspb.StringValue {
	if p, ok := authn.FromContext(ctx); ok {
		return wrapperspb.String(p.Username())
	}
	return wrapperspb.String("no principal")
}

// registerNotes registers the service as generated code does.
func registerNotes(r *grpc.Server, service string, more ...string) {
	desc := &grpc.ServiceDesc{ServiceName: service}
	unary := func(name string) {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			if err := decode(new(emptypb.Empty)); err != nil {
				return nil, err
			}
			handler := func(ctx context.Context, _ any) (any, error) { return caller(ctx), nil }
			if intercept == nil {
				return handler(ctx, nil)
			}
			return intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/" + service + "/" + name}, handler)
		}})
	}
	for _, m := range notesMethods {
		if m.stream {
			desc.Streams = append(desc.Streams, grpc.StreamDesc{StreamName: m.name, ServerStreams: true, Handler: answerStream})
		} else {
			unary(m.name)
		}
	}
	for _, name := range more {
		unary(name)
	}
	r.RegisterService(desc, nil)
}

func answerStream(_ any, stream grpc.ServerStream) error {
	return stream.SendMsg(caller(stream.Context()))
}

// serveNotes guards the service, and every unknown method, with a verifier.
func serveNotes(t *testing.T, v *authn.Verifier, opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	conn := dial(listenNotes(t, v, opts...))
	t.Cleanup(func() { conn.Close() })
	return conn
}

func listenNotes(t *testing.T, v *authn.Verifier, opts ...grpc.ServerOption) *bufconn.Listener {
	t.Helper()
	opts = append(append(opts, v.ServerOptions()...), grpc.UnknownServiceHandler(answerStream))
	listener, stop := serve(func(r *grpc.Server) { registerNotes(r, "notes.v1.NotesService") }, opts...)
	t.Cleanup(stop)
	return listener
}

// call calls a method, unary or stream, and returns the caller's name in the answer.
func call(ctx context.Context, conn *grpc.ClientConn, method string, stream bool) (string, error) {
	answer := newText()
	if !stream {
		err := conn.Invoke(ctx, method, empty, answer)
		return answer.GetValue(), err
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return "", err
	}
	if err := s.SendMsg(empty); err != nil {
		return "", err
	}
	if err := s.CloseSend(); err != nil {
		return "", err
	}
	err = s.RecvMsg(answer)
	if err == nil {
		for s.RecvMsg(newText()) == nil { // reads to the end of the stream, so that no goroutine stays
		}
	}
	return answer.GetValue(), err
}
