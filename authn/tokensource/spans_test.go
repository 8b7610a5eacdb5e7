package tokensource_test

import (
	"context"
	"testing"
	"testing/synctest"

	otel "go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/watchword-auth/watchword/authn/tokensource"
)

// inSpan is a stream of a handler, with a context that has a span.
type inSpan struct {
	grpc.ServerStream
	ctx context.Context
}

func (s inSpan) Context() context.Context { return s.ctx }

// A delegation is a span below the traced call that caused it, and the exchange of the source is a
// span below the delegation. A call with a remembered token has no such span. The span of a
// delegation that failed has the status Error.
func TestSpansOfADelegation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exported := tracetest.NewInMemoryExporter()
		provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exported), sdktrace.WithSampler(sdktrace.AlwaysSample()))
		r := startRelay(t, false)
		conn := r.auth.dial(t, nil)
		source, err := tokensource.Workload(conn, assertion)
		check(t, err)
		defer source.Close()
		handler := passOn(r.next.dial(t, nil, tokensource.OnBehalfOf(source, conn, "search")...), false)
		r.handler = func(srv any, s grpc.ServerStream) error {
			ctx, root := provider.Tracer("test").Start(s.Context(), "handler")
			defer root.End()
			return handler(srv, inSpan{s, ctx})
		}
		delegations := func(token string) (found []tracetest.SpanStub) {
			t.Helper()
			exported.Reset()
			_, _ = r.call(t.Context(), token)
			synctest.Wait()
			handlers := exported.GetSpans().Snapshots()
			above := handlers[len(handlers)-1].SpanContext().SpanID()
			for _, span := range exported.GetSpans() {
				switch {
				case span.Name == "tokensource.delegate" && span.Parent.SpanID() != above:
					t.Errorf("%s is not below the handler's span", span.Name)
				case span.Name == "tokensource.delegate":
					found = append(found, span)
				}
			}
			return found
		}
		first := r.issuer.Token(alice)
		of := delegations(first)
		if len(of) != 1 || of[0].Status.Code == otel.Error {
			t.Fatalf("the spans of the first delegation: %v", of)
		}
		for _, span := range exported.GetSpans() {
			if span.Name == "tokensource.renew" && span.Parent.SpanID() != of[0].SpanContext.SpanID() {
				t.Error("the exchange is not below the delegation")
			}
		}
		if of := delegations(first); len(of) != 0 {
			t.Errorf("a remembered token has the spans %v", of)
		}
		r.auth.delegate = func(context.Context, string, string) (string, error) {
			return "", refusal(codes.PermissionDenied, "DELEGATION_DENIED", "")
		}
		if of := delegations(r.issuer.Token(alice)); len(of) != 1 || of[0].Status.Code != otel.Error {
			t.Errorf("the spans of a refused delegation: %v", of)
		}
	})
}
