// Package spans starts the tracing spans of a traced call, by OpenTelemetry's API alone. A span
// starts only below a span that is recorded: in a call that is not traced, [Start] looks up one
// value of the context, and allocates nothing. A new span goes to the OpenTelemetry provider of
// the span above, so no package needs a provider of its own.
//
// No attribute of a span has a secret, a username or an argument of an SQL statement: a
// collector of traces shows spans to the operators of every service.
package spans

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// scope is the name that OpenTelemetry shows as the origin (instrumentation scope) of every
// span of Watchword.
const scope = "github.com/watchword-auth/watchword"

// refusedKey is the attribute with the reason of a refused call.
const refusedKey = attribute.Key("watchword.refused")

// None is a span that is not recorded, for a call that is not traced.
var None = trace.SpanFromContext(context.Background())

// Recorded reports whether the call with the context ctx is traced.
func Recorded(ctx context.Context) bool { return trace.SpanFromContext(ctx).IsRecording() }

// Start starts a span below the span of ctx, and returns the context of the new span. If the
// span of ctx is not recorded, Start returns ctx and [None]. The caller ends the span.
func Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	above := trace.SpanFromContext(ctx)
	if !above.IsRecording() {
		return ctx, None
	}
	return above.TracerProvider().Tracer(scope).Start(ctx, name, opts...)
}

// End ends a span. If failed is true, the span has the status Error. The status has no text:
// an error may name a user.
func End(s trace.Span, failed bool) {
	if failed {
		s.SetStatus(codes.Error, "")
	}
	s.End()
}

// Refused notes on the span of ctx the reason for which the call was refused.
func Refused(ctx context.Context, reason string) {
	trace.SpanFromContext(ctx).SetAttributes(refusedKey.String(reason))
}
