package spans_test

import (
	"context"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/watchword-auth/watchword/internal/spans"
)

// TestACallThatIsNotTraced checks that such a call allocates nothing: neither without a span,
// nor below a span of a remote client that the sampler has left out.
func TestACallThatIsNotTraced(t *testing.T) {
	left := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, Remote: true})
	for name, ctx := range map[string]context.Context{
		"no span": t.Context(), "left out": trace.ContextWithRemoteSpanContext(t.Context(), left),
	} {
		allocs := testing.AllocsPerRun(100, func() {
			below, span := spans.Start(ctx, "name")
			if below != ctx || span.IsRecording() {
				t.Errorf("%s: a span has started", name)
			}
			spans.End(span, true)
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations, want 0", name, allocs)
		}
	}
}

// TestStart checks that a span goes to the provider of the span above.
func TestStart(t *testing.T) {
	exported := tracetest.NewInMemoryExporter()
	ctx, root := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exported), sdktrace.WithSampler(sdktrace.AlwaysSample())).Tracer("test").Start(t.Context(), "root")
	_, below := spans.Start(ctx, "below")
	spans.Refused(trace.ContextWithSpan(ctx, below), "TOKEN_MISSING")
	spans.End(below, true)
	root.End()
	got := exported.GetSpans()[0]
	if got.Name != "below" || got.Parent.SpanID() != root.SpanContext().SpanID() || got.Status.Description != "" || len(got.Attributes) != 1 {
		t.Errorf("got the span %+v", got)
	}
}
