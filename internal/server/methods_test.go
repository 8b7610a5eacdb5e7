package server_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
)

// method is one RPC, as its descriptor has it.
type method struct{ protoreflect.MethodDescriptor }

// methods are all RPCs of watchword.v1, by "Service/Method".
func methods() map[string]method {
	all := map[string]method{}
	protoregistry.GlobalFiles.RangeFilesByPackage("watchword.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				all[string(service.Name())+"/"+string(m.Name())] = method{m}
			}
		}
		return true
	})
	return all
}

// eachMethod runs a subtest for every RPC, in the order of their names.
func eachMethod(t *testing.T, run func(t *testing.T, name string, m method)) {
	t.Helper()
	all := methods()
	if len(all) < 20 {
		t.Fatalf("only %d methods", len(all))
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) { run(t, name, all[name]) })
	}
}

func (m method) access() *watchwordv1.Access {
	access, _ := proto.GetExtension(m.Options(), watchwordv1.E_Access).(*watchwordv1.Access)
	return access
}

func (m method) path() string { return "/" + string(m.Parent().FullName()) + "/" + string(m.Name()) }

func (m method) empty() proto.Message { return dynamicpb.NewMessage(m.Input()) }

// raw is a request that is sent as it stands.
type raw []byte

// rawCodec sends raw requests and decodes answers as usual.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) { return v.(raw), nil }

func (rawCodec) Unmarshal(data []byte, v any) error { return proto.Unmarshal(data, v.(proto.Message)) }

// call calls the method with a proto.Message or raw bytes, and returns the
// answer; of a stream, the first message.
func (m method) call(ctx context.Context, conn *grpc.ClientConn, req any, opts ...grpc.CallOption) (proto.Message, error) {
	if _, ok := req.(raw); ok {
		opts = append(opts, grpc.ForceCodec(rawCodec{}))
	}
	answer := dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingServer() {
		return answer, conn.Invoke(ctx, m.path(), req, answer, opts...)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, m.path(), opts...)
	if err != nil {
		return nil, err
	}
	// If the stream ends before the request was sent, RecvMsg returns the reason.
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	_ = stream.CloseSend()
	return answer, stream.RecvMsg(answer)
}

// notUTF8 is a request whose first string is the byte 0xff; false, if none of
// its fields is a string.
func notUTF8(m protoreflect.MessageDescriptor) (raw, bool) {
	for i := range m.Fields().Len() {
		field := m.Fields().Get(i)
		content, ok := []byte("\xff"), field.Kind() == protoreflect.StringKind
		if field.Kind() == protoreflect.MessageKind {
			content, ok = notUTF8(field.Message())
		}
		if ok {
			return protowire.AppendBytes(protowire.AppendTag(nil, field.Number(), protowire.BytesType), content), true
		}
	}
	return nil, false
}

// credential is a value that a call can have in its metadata in place of an access token.
type credential struct {
	name   string
	values []string
	want   string
}

func (c credential) in(ctx context.Context) context.Context {
	for _, v := range c.values {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
	}
	return ctx
}

// badCredentials are everything that no guarded method may take.
func badCredentials(t *testing.T, h *harness) []credential {
	t.Helper()
	good := h.admin.GetAccessToken()
	bad := []credential{
		{"none", nil, "TOKEN_MISSING"},
		{"two", []string{"Bearer " + good, "Bearer " + good}, "TOKEN_INVALID"},
		{"two in one", []string{"Bearer " + good + ", Bearer " + good}, "TOKEN_INVALID"},
		{"another scheme", []string{"Basic " + good}, "TOKEN_INVALID"},
		{"no scheme", []string{good}, "TOKEN_INVALID"},
		{"no token", []string{"Bearer"}, "TOKEN_INVALID"},
		{"empty", []string{""}, "TOKEN_INVALID"},
		{"text after the token", []string{"Bearer " + good + " x"}, "TOKEN_INVALID"},
		{"garbage", []string{"Bearer garbage"}, "TOKEN_INVALID"},
		{"a refresh token", []string{"Bearer " + h.admin.GetRefreshToken()}, "TOKEN_INVALID"},
		{"tampered", []string{"Bearer " + tamper(good, len(good)-5)}, "TOKEN_INVALID"},
		{"too long", []string{"Bearer " + strings.Repeat("x", 9000)}, "TOKEN_INVALID"},
	}
	for _, token := range badTokens(t, h) {
		bad = append(bad, credential{token.name, []string{"Bearer " + token.raw}, token.want})
	}
	return bad
}

// tamper replaces the character at a position by another of the same alphabet.
func tamper(token string, at int) string {
	other := byte('A')
	if token[at] == other {
		other = 'B'
	}
	return token[:at] + string(other) + token[at+1:]
}

func TestGuardedMethodsNeedAToken(t *testing.T) {
	h := start(t)
	bad := badCredentials(t, h)
	before := h.dump(t)
	eachMethod(t, func(t *testing.T, name string, m method) {
		if m.access().GetPublic() {
			// Public methods ignore a bad access token: a client with an expired token
			// must be able to refresh.
			_, with := m.call(bad[8].in(t.Context()), h.conn, m.empty())
			_, without := m.call(t.Context(), h.conn, m.empty())
			wants(t, "with garbage for a token", outcome(with), outcome(without))
			return
		}
		for _, c := range bad {
			_, err := m.call(c.in(t.Context()), h.conn, m.empty())
			if outcome(err) != c.want {
				t.Errorf("%s: %v, want %s", c.name, err, c.want)
				continue
			}
			refusedBy(t, err, c.want, "")
			methodNamed(t, err, m.path())
		}
	})
	if h.dump(t) != before {
		t.Error("something was written")
	}
}

func TestAdminMethodsNeedTheRole(t *testing.T) {
	h := start(t)
	almost := h.make(t, "admins", "admin2", "reader")
	if err := h.login(almost, caller.AdminAudience); err != nil {
		t.Fatal(err)
	}
	before, n := h.dump(t), 0
	eachMethod(t, func(t *testing.T, _ string, m method) {
		if len(m.access().GetRoles()) == 0 {
			return
		}
		n++
		_, err := m.call(almost.as(t.Context()), h.conn, m.empty())
		refusedBy(t, err, "ROLE_REQUIRED", "")
		methodNamed(t, err, m.path())
	})
	if n != 20 {
		t.Errorf("%d methods ask for a role, want 20: users' 6, keys' 3, audit's 2, federation's 8, ListWatchers", n)
	}
	if h.dump(t) != before {
		t.Error("something was written")
	}
}

// Public methods do their work whatever token comes along.
func TestPublicMethodsIgnoreTokens(t *testing.T) {
	h := shared(t)
	a := h.make(t)
	for _, c := range badCredentials(t, h) {
		if strings.HasPrefix(c.name, "too long") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			ctx := c.in(t.Context())
			refreshed, err := h.auth.Refresh(ctx, &watchwordv1.RefreshRequest{RefreshToken: a.GetRefreshToken()})
			if err != nil {
				t.Fatal(err)
			}
			a.TokenPair = refreshed.GetTokens()
			if _, err := h.auth.Verify(ctx, &watchwordv1.VerifyRequest{AccessToken: a.GetAccessToken()}); err != nil {
				t.Error(err)
			}
			if _, err := h.trust.GetKeySet(ctx, &watchwordv1.GetKeySetRequest{}); err != nil {
				t.Error(err)
			}
			if _, err := methods()["TrustService/WatchBundle"].call(ctx, h.conn, &watchwordv1.WatchBundleRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
	expired := bearing(t.Context(), badTokens(t, h)[0].raw)
	if _, err := h.auth.Login(expired, &watchwordv1.LoginRequest{Username: a.name, Password: a.password}); err != nil {
		t.Error(err)
	}
	if _, err := h.auth.Logout(expired, &watchwordv1.LogoutRequest{RefreshToken: a.GetRefreshToken()}); err != nil {
		t.Error(err)
	}
}
