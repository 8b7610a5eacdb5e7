package authn_test

import (
	"context"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// result is everything that a call shows outside of the handler.
type result struct {
	caller  string // the principal in the handler's context
	err     error
	refused map[watchwordv1.ErrorReason]uint64 // counted by the verifier for this call
	span    []attribute.KeyValue
}

// observe makes a call below a recorded span of its own.
func observe(t *testing.T, w *world, do func(ctx context.Context) (handler context.Context, err error)) (r result) {
	t.Helper()
	exported := tracetest.NewInMemoryExporter()
	ctx, span := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exported), sdktrace.WithSampler(sdktrace.AlwaysSample())).Tracer("test").Start(t.Context(), "call")
	before := w.Status().Refused
	handler, err := do(ctx)
	span.End()
	r = result{err: err, refused: map[watchwordv1.ErrorReason]uint64{}, span: exported.GetSpans()[0].Attributes}
	for reason, n := range w.Status().Refused {
		if n != before[reason] {
			r.refused[reason] = n - before[reason]
		}
	}
	if err == nil {
		r.caller = caller(handler).GetValue()
	} else if handler != nil {
		t.Errorf("a context with the error %v", err)
	}
	return r
}

// Authorize and the interceptors give the same answer, the same error, the same counts and the
// same attributes of the span, for every kind of rule and every kind of header.
func TestAuthorizeIsTheInterceptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, authn.WithMethodRule(foreign+"Mine", &watchwordv1.Access{Delegated: watchwordv1.Access_REFUSE}))
		w.watch.tell(endedSession("session-2", time.Now().Add(time.Hour)))
		unary := w.UnaryServerInterceptor()
		methods := []string{foreign + "Mine", foreign + "List", "/other.v1.Other/Any", "/", "", "notes.v1.NotesService/List", notes + "List/", "/prefix" + notes + "List", notes + "list", notes + "List?q=1", notes + "\xff"}
		rules := map[string]*watchwordv1.Access{foreign + "Mine": {Delegated: watchwordv1.Access_REFUSE}}
		for _, m := range notesMethods {
			methods = append(methods, notes+m.name)
			rules[notes+m.name] = m.access
		}
		var headers [][]string
		for _, edits := range [][]func(*token.Claims){
			nil, {delegated}, {asService},
			{func(c *token.Claims) { c.Roles = []string{"writer"} }},
			{func(c *token.Claims) { c.Roles, c.Audience = []string{"writer"}, []string{"office"} }},
			{func(c *token.Claims) { c.SessionID = "session-2" }},
			{func(c *token.Claims) { c.ExpiresAt = time.Now(); c.IssuedAt = c.ExpiresAt.Add(-time.Minute) }},
		} {
			headers = append(headers, []string{"Bearer " + mint(t, w.key, edits...)})
		}
		good := headers[0][0]
		headers = append(headers, nil, []string{}, []string{""}, []string{good, good}, []string{"Basic eDp5"}, []string{"bearer  " + good[7:] + " "})
		outcomes, checked := map[string]bool{}, false
		for _, method := range methods {
			for i, values := range headers {
				authorize := func(ctx context.Context) (context.Context, error) { return w.Authorize(ctx, method, values) }
				fresh := observe(t, w, authorize) // the first call with a token checks the signature
				want := observe(t, w, func(ctx context.Context) (handler context.Context, err error) {
					ctx = metadata.NewIncomingContext(ctx, metadata.MD{"authorization": values})
					_, err = unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
						handler = ctx
						return nil, nil
					})
					return handler, err
				})
				got := observe(t, w, authorize)
				if access, ok := rules[method]; ok && i%2 == 0 {
					got = observe(t, w, func(ctx context.Context) (context.Context, error) {
						return w.AuthorizeByRule(ctx, access, method, values)
					})
				}
				if got.caller != want.caller || !proto.Equal(status.Convert(got.err).Proto(), status.Convert(want.err).Proto()) ||
					!maps.Equal(got.refused, want.refused) || !slices.Equal(got.span, want.span) {
					t.Errorf("%q, header %d: Authorize %+v, the interceptor %+v", method, i, got, want)
				}
				checked = checked || slices.Contains(fresh.span, attribute.String("watchword.token", "check"))
				outcomes[name(got.err)] = true
			}
		}
		for _, outcome := range []string{"ok", "TOKEN_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED", "AUDIENCE_MISMATCH", "ROLE_REQUIRED", "DELEGATION_DENIED", "PermissionDenied", "Unimplemented"} {
			if !outcomes[outcome] {
				t.Errorf("no call was %s: %v", outcome, outcomes)
			}
		}
		if !checked {
			t.Error("no span says that the signature was checked")
		}
		_, err := w.Authorize(t.Context(), notes+"Add", []string{good})
		if refused, ok := err.(interface{ Principal() *authn.Principal }); !ok || refused.Principal().Username() != "alice" {
			t.Errorf("%T %v has no principal", err, err)
		}
	})
}

// A rule that no caller can meet is an error, and not a rule that admits every caller.
func TestAuthorizeByAWrongRule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		good := []string{"Bearer " + mint(t, w.key)}
		for _, access := range []*watchwordv1.Access{
			{Public: true, Roles: []string{"admin"}}, {Roles: []string{""}}, {Roles: []string{"a b"}}, {Audience: []string{""}}, {Delegated: 7},
		} {
			if ctx, err := w.AuthorizeByRule(t.Context(), access, "", good); status.Code(err) != codes.InvalidArgument || ctx != nil {
				t.Errorf("%v: %v", access, err)
			}
		}
		_, err := w.AuthorizeByRule(t.Context(), nil, "", nil)
		refusedBy(t, err, codes.Unauthenticated, "TOKEN_MISSING", "")
	})
}

// The context from Authorize carries the token that Authorize has verified, and no other token:
// also in a handler that grpc-go has called with another token. The other metadata of the
// handler stays.
func TestAuthorizePutsItsOwnTokenIntoTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		given := []string{"Bearer " + mint(t, w.key)}
		outer := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer outer", "x-request-id", "7"))
		ctx, err := w.Authorize(outer, notes+"Mine", given)
		check(t, err)
		want := given[0]
		given[0] = "Bearer changed by the caller"
		if got := metadata.ValueFromIncomingContext(ctx, "authorization"); !slices.Equal(got, []string{want}) {
			t.Errorf("%q", got)
		}
		if got := metadata.ValueFromIncomingContext(ctx, "x-request-id"); !slices.Equal(got, []string{"7"}) {
			t.Errorf("%q", got)
		}
		if got := metadata.ValueFromIncomingContext(outer, "authorization"); !slices.Equal(got, []string{"Bearer outer"}) {
			t.Errorf("Authorize has changed the context of its caller: %q", got)
		}
	})
}
