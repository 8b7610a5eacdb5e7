package server_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// outcome is "ok", a reason, or the code of an error without one.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	if reason := authn.Reason(err); reason != watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		return strings.TrimPrefix(reason.String(), "ERROR_REASON_")
	}
	return status.Code(err).String()
}

// wants checks an outcome.
func wants(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// codeOf is the status that the contract gives to each reason.
var codeOf = map[string]codes.Code{
	"INVALID_REQUEST": codes.InvalidArgument, "PASSWORD_TOO_WEAK": codes.InvalidArgument,
	"INVALID_CREDENTIALS": codes.Unauthenticated, "TOKEN_MISSING": codes.Unauthenticated, "TOKEN_INVALID": codes.Unauthenticated,
	"TOKEN_EXPIRED": codes.Unauthenticated, "TOKEN_REVOKED": codes.Unauthenticated, "TOKEN_STALE": codes.Unauthenticated,
	"AUDIENCE_MISMATCH": codes.Unauthenticated, "REFRESH_TOKEN_INVALID": codes.Unauthenticated,
	"REFRESH_TOKEN_EXPIRED": codes.Unauthenticated, "REFRESH_TOKEN_REUSED": codes.Unauthenticated,
	"SESSION_REVOKED": codes.Unauthenticated, "USER_DISABLED": codes.PermissionDenied, "DELEGATION_DENIED": codes.PermissionDenied, "SUBJECT_TOKEN_REFUSED": codes.PermissionDenied, "ROLE_REQUIRED": codes.PermissionDenied,
	"CLIENT_CERTIFICATE_REQUIRED": codes.PermissionDenied, "TOO_MANY_ATTEMPTS": codes.ResourceExhausted,
	"OVERLOADED": codes.ResourceExhausted, "USER_NOT_FOUND": codes.NotFound, "USER_EXISTS": codes.AlreadyExists, "LAST_ADMIN": codes.FailedPrecondition,
	"UPGRADE_UNFINISHED": codes.FailedPrecondition,
	"SESSION_NOT_FOUND":  codes.NotFound, "KEY_NOT_FOUND": codes.NotFound, "STORE_UNAVAILABLE": codes.Unavailable,
	"ISSUER_NOT_FOUND": codes.NotFound, "ISSUER_EXISTS": codes.AlreadyExists, "BINDING_NOT_FOUND": codes.NotFound,
	"ASSERTION_INVALID": codes.Unauthenticated, "ASSERTION_UNBOUND": codes.Unauthenticated, "ISSUER_UNAVAILABLE": codes.Unavailable,
	"BUNDLE_STALE": codes.Unavailable,
}

// refusedBy checks that every detail of a refusal is as the API's contract says. field is the
// field that BadRequest names.
func refusedBy(t *testing.T, err error, reason, field string) {
	t.Helper()
	if got := outcome(err); got != reason {
		t.Fatalf("%s, want %s: %v", got, reason, err)
	}
	st := status.Convert(err)
	if want, documented := codeOf[reason]; documented && st.Code() != want {
		t.Errorf("%s comes as %v, want %v", reason, st.Code(), want)
	} else if !documented {
		if len(st.Details()) != 0 {
			t.Errorf("%s has details: %v", reason, st.Details())
		}
		return
	}
	var info *errdetails.ErrorInfo
	var bad *errdetails.BadRequest
	var retry *errdetails.RetryInfo
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.BadRequest:
			bad = d
		case *errdetails.RetryInfo:
			retry = d
		}
	}
	if info.GetDomain() != "watchword" {
		t.Errorf("%s of the domain %q", reason, info.GetDomain())
	}
	if wantsRetry := codeOf[reason] == codes.ResourceExhausted || reason == "STORE_UNAVAILABLE"; wantsRetry != (retry != nil) {
		t.Errorf("%s with RetryInfo %v", reason, retry)
	} else if wantsRetry && retry.GetRetryDelay().AsDuration() <= 0 {
		t.Errorf("%s: come again in %v", reason, retry.GetRetryDelay().AsDuration())
	}
	if codeOf[reason] != codes.InvalidArgument {
		return
	}
	if v := bad.GetFieldViolations(); len(v) != 1 || v[0].GetField() != field || v[0].GetDescription() == "" {
		t.Errorf("%s names %v, want the field %q", reason, v, field)
	}
}

// logged is everything that any server of this package logs.
var logged lockedBuffer

type lockedBuffer struct {
	mu  sync.Mutex
	all strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// secrets holds every value that the tests of this package have sent or received in a field for a
// secret, such as password or access_token, over any connection.
var secrets = secretSet{passwords: map[string]bool{}, tokens: map[string]bool{}}

type secretSet struct {
	mu        sync.Mutex
	passwords map[string]bool
	tokens    map[string]bool // refresh tokens, and the parts of access tokens
}

var secretField = regexp.MustCompile(`(^|_)(password|access_token|refresh_token)$`)

func (s *secretSet) add(field, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasSuffix(field, "password") {
		s.passwords[secret] = true
		return
	}
	for part := range strings.SplitSeq(secret, ".") {
		s.tokens[part] = true
	}
}

func (s *secretSet) note(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Kind() == protoreflect.StringKind && !field.IsList() && secretField.MatchString(string(field.Name())):
			s.add(string(field.Name()), value.String())
		case field.Kind() == protoreflect.MessageKind && !field.IsList() && !field.IsMap():
			s.note(value.Message())
		}
		return true
	})
}

func noteSecrets(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	for _, m := range []any{req, reply} {
		if m, ok := m.(proto.Message); ok {
			secrets.note(m.ProtoReflect())
		}
	}
	return err
}

// word is as much of base64url as could be a part of a token.
var word = regexp.MustCompile(`[A-Za-z0-9_-]{20,}`)

// leaked returns which secrets a text holds, without repeating the secrets. A short secret is
// not searched for, since its text can stand anywhere by chance.
func leaked(text string) []string {
	secrets.mu.Lock()
	defer secrets.mu.Unlock()
	found := map[string]bool{}
	for password := range secrets.passwords {
		if len(password) >= 10 && strings.Contains(text, password) {
			found[fmt.Sprintf("a password of %d bytes that begins with %q", len(password), password[:4])] = true
		}
	}
	for _, w := range word.FindAllString(text, -1) {
		if secrets.tokens[w] || strings.HasPrefix(w, "wwrt_") || strings.HasPrefix(w, "eyJ") {
			found[fmt.Sprintf("a token, or a part of one, that begins with %q", w[:6])] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// The content of the master key file and of the rows of keys is secret, and must not be in the
// log.
func TestNoKeyInTheLog(t *testing.T) {
	h := shared(t)
	for key, content := range keyMaterial(t, h) {
		for _, form := range []string{
			string(content), base64.StdEncoding.EncodeToString(content), base64.RawURLEncoding.EncodeToString(content), fmt.Sprintf("%x", content),
		} {
			if strings.Contains(logged.String(), form) || strings.Contains(h.announced, form) {
				t.Errorf("the log or what was announced holds %s", key)
			}
		}
	}
}
