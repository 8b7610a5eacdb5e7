package server_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// wholeRequests are good requests, one for each method with a text in its request. A test
// breaks one field of a request, so that nothing else can be why it is refused.
func wholeRequests(h *harness, a *account) map[string]proto.Message {
	const fine = "some fine password"
	return map[string]proto.Message{
		"AuthService/DelegateToken":         &watchwordv1.DelegateTokenRequest{SubjectToken: "x", Audience: "internal"},
		"AuthService/Login":                 &watchwordv1.LoginRequest{Username: a.name, Password: a.password},
		"AuthService/Refresh":               &watchwordv1.RefreshRequest{RefreshToken: a.GetRefreshToken()},
		"AuthService/Verify":                &watchwordv1.VerifyRequest{AccessToken: a.GetAccessToken()},
		"AuthService/ExchangeToken":         &watchwordv1.ExchangeTokenRequest{SubjectToken: "x"},
		"AuthService/Logout":                &watchwordv1.LogoutRequest{},
		"AuthService/ChangePassword":        &watchwordv1.ChangePasswordRequest{CurrentPassword: h.admin.password, NewPassword: fine},
		"TrustService/WatchBundle":          &watchwordv1.WatchBundleRequest{},
		"TrustService/ReportWatcher":        identify("orders"),
		"TrustService/ListWatchers":         &watchwordv1.ListWatchersRequest{PageSize: 1},
		"TrustService/GetTime":              &watchwordv1.GetTimeRequest{},
		"UserService/CreateUser":            &watchwordv1.CreateUserRequest{Username: "new", Password: fine},
		"UserService/GetUser":               &watchwordv1.GetUserRequest{},
		"UserService/ListUsers":             &watchwordv1.ListUsersRequest{PageSize: 1},
		"UserService/UpdateUser":            &watchwordv1.UpdateUserRequest{User: &watchwordv1.User{Id: a.id, Disabled: true}},
		"UserService/DeleteUser":            &watchwordv1.DeleteUserRequest{},
		"UserService/SetPassword":           &watchwordv1.SetPasswordRequest{Id: a.id, Password: fine},
		"SessionService/ListSessions":       &watchwordv1.ListSessionsRequest{UserId: a.id, PageSize: 1},
		"SessionService/RevokeSession":      &watchwordv1.RevokeSessionRequest{},
		"SessionService/RevokeUserSessions": &watchwordv1.RevokeUserSessionsRequest{},
		"KeyService/RotateKey":              &watchwordv1.RotateKeyRequest{},
		"KeyService/RevokeKey":              &watchwordv1.RevokeKeyRequest{},
		"AuditService/ListEvents":           &watchwordv1.ListEventsRequest{PageSize: 1},
		"AuditService/WatchEvents":          &watchwordv1.WatchEventsRequest{},
		"FederationService/CreateIssuer":    &watchwordv1.CreateIssuerRequest{Issuer: discovered("new")},
		"FederationService/GetIssuer":       &watchwordv1.GetIssuerRequest{},
		"FederationService/ListIssuers":     &watchwordv1.ListIssuersRequest{PageSize: 1},
		"FederationService/UpdateIssuer":    &watchwordv1.UpdateIssuerRequest{Issuer: discovered("one")},
		"FederationService/DeleteIssuer":    &watchwordv1.DeleteIssuerRequest{},
		"FederationService/CreateBinding":   &watchwordv1.CreateBindingRequest{Binding: &watchwordv1.Binding{Issuer: "one", Subject: "s", UserId: a.id}},
		"FederationService/ListBindings":    &watchwordv1.ListBindingsRequest{PageSize: 1},
		"FederationService/DeleteBinding":   &watchwordv1.DeleteBindingRequest{},
	}
}

// texts returns the path of every field of a message, and of the messages in it, that
// holds text or bytes.
func texts(m protoreflect.MessageDescriptor) (paths [][]protoreflect.FieldDescriptor) {
	for i := range m.Fields().Len() {
		field := m.Fields().Get(i)
		switch field.Kind() {
		case protoreflect.StringKind, protoreflect.BytesKind:
			paths = append(paths, []protoreflect.FieldDescriptor{field})
		case protoreflect.MessageKind:
			for _, rest := range texts(field.Message()) {
				paths = append(paths, append([]protoreflect.FieldDescriptor{field}, rest...))
			}
		}
	}
	return paths
}

// with returns a request with another value in the field at a path.
func with(t *testing.T, request proto.Message, path []protoreflect.FieldDescriptor, text string) proto.Message {
	t.Helper()
	encoded, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	all := dynamicpb.NewMessage(request.ProtoReflect().Descriptor())
	if err := proto.Unmarshal(encoded, all); err != nil {
		t.Fatal(err)
	}
	m := protoreflect.Message(all)
	for _, field := range path[:len(path)-1] {
		if field.IsList() {
			m = m.Mutable(field).List().AppendMutable().Message()
		} else {
			m = m.Mutable(field).Message()
		}
	}
	field := path[len(path)-1]
	value := protoreflect.ValueOfString(text)
	if field.Kind() == protoreflect.BytesKind {
		value = protoreflect.ValueOfBytes([]byte(text))
	}
	if field.IsList() {
		list := m.NewField(field).List()
		list.Append(value)
		value = protoreflect.ValueOfList(list)
	}
	m.Set(field, value)
	return all
}

// pageTokens are page tokens of a list, made of a good one, that hold a text which
// PostgreSQL cannot hold.
func pageTokens(t *testing.T, answer proto.Message) (tokens []string) {
	t.Helper()
	m := answer.ProtoReflect()
	good := m.Get(m.Descriptor().Fields().ByName("next_page_token")).String()
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil || len(raw) < 7 {
		t.Fatalf("the list has no next page, and its page token is %q", good)
	}
	for _, after := range []string{"\x00", "a\x00b", "\xff", "a\xc3", string(raw[6:]) + "\x00"} {
		tokens = append(tokens, base64.RawURLEncoding.EncodeToString([]byte(string(raw[:6])+after)))
	}
	return tokens
}

// A text that PostgreSQL cannot hold is refused as the field's fault, in every field of
// every method, and on both engines alike. It is never an outage.
func TestNoTextIsAnOutage(t *testing.T) {
	eachEngine(t, func(t *testing.T, on func(*server.Config)) {
		h := start(t, on)
		a := h.make(t)
		h.relogin(t, a)
		logs := len(logged.String())
		h.federate(t)
		whole := wholeRequests(h, a)
		watchFrom(t, h.conn, nil)
		watchFrom(t, h.conn, nil) // the first page of ListWatchers is not the last
		eachMethod(t, func(t *testing.T, name string, m method) {
			ctx := t.Context()
			if !m.access().GetPublic() {
				ctx = h.admin.as(ctx)
			}
			for _, path := range texts(m.Input()) {
				request, ok := whole[name]
				if !ok {
					t.Fatal("there is no whole request for this method, which has a text in its request")
				}
				field := path[len(path)-1]
				values := []string{"\x00", "a\x00b"}
				if field.Name() == "page_token" {
					answer, err := m.call(ctx, h.conn, request)
					if err != nil {
						t.Fatal(err)
					}
					values = append(values, pageTokens(t, answer)...)
				}
				for _, value := range values {
					_, err := m.call(ctx, h.conn, with(t, request, path, value))
					refusesText(t, path, value, err)
				}
			}
		})
		if resp, body := h.get(t, "GET", "/readyz"); resp.StatusCode != http.StatusOK {
			t.Errorf("/readyz: %s %s", resp.Status, body)
		}
		for _, line := range []string{"panic", `"msg":"internal error"`, "the database is not available"} {
			if strings.Contains(logged.String()[logs:], line) {
				t.Errorf("the log holds %s", line)
			}
		}
	})
}

// refusesText checks the answer to a request with a bad text in the field at a path.
func refusesText(t *testing.T, path []protoreflect.FieldDescriptor, value string, err error) {
	t.Helper()
	var names []string
	for _, field := range path {
		names = append(names, string(field.Name()))
	}
	name, got := strings.Join(names, "."), outcome(err)
	switch field := path[len(path)-1]; {
	case field.Kind() == protoreflect.BytesKind: // opaque, and never text in the database
		if code := status.Code(err); code == codes.Unavailable || code == codes.Internal {
			t.Errorf("%s of %q: %v", name, value, err)
		}
	case strings.Contains(name, ".fetched."): // only answers have the field fetched
		if code := status.Code(err); code == codes.Unavailable || code == codes.Internal {
			t.Errorf("%s of %q: %v", name, value, err)
		}
	case field.Name() == "previous_refresh_token": // in this field, any text that is no refresh token is ignored
		wants(t, name, got, "ok")
	case field.ContainingMessage().Name() == "DelegateTokenRequest" && field.Name() == "subject_token": // the caller is a user
		wants(t, name, got, "DELEGATION_DENIED")
	case field.Name() == "subject_token":
		wants(t, name, got, "ASSERTION_INVALID")
	case field.Name() == "access_token":
		wants(t, name, got, "TOKEN_INVALID")
	case field.Name() == "refresh_token":
		wants(t, name, got, "REFRESH_TOKEN_INVALID")
	case got != invalid:
		t.Errorf("%s of %q: %v", name, value, err)
	default:
		for _, detail := range status.Convert(err).Details() {
			bad, ok := detail.(*errdetails.BadRequest)
			if ok && !strings.HasPrefix(name+".", bad.GetFieldViolations()[0].GetField()+".") {
				t.Errorf("%s of %q is refused as %v", name, value, bad)
			}
		}
	}
}
