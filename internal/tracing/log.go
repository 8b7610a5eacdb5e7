package tracing

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

// Handler returns a handler of log lines that adds the ids of the call to each line: trace_id
// and span_id if the call is traced, and request_id. The function requestID returns the
// request's id for the context of a call, and "" outside of a call.
func Handler(next slog.Handler, requestID func(context.Context) string) slog.Handler {
	return handler{next, requestID}
}

type handler struct {
	slog.Handler
	requestID func(context.Context) string
}

// Handle implements [slog.Handler].
func (h handler) Handle(ctx context.Context, line slog.Record) error {
	if id := h.requestID(ctx); id != "" {
		line.AddAttrs(slog.String("request_id", id))
	}
	if at := trace.SpanContextFromContext(ctx); at.IsValid() {
		line.AddAttrs(slog.String("trace_id", at.TraceID().String()), slog.String("span_id", at.SpanID().String()))
	}
	return h.Handler.Handle(ctx, line)
}

// WithAttrs implements [slog.Handler].
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.requestID}
}

// WithGroup implements [slog.Handler].
func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.requestID}
}
