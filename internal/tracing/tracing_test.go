package tracing

import (
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Close ends the export also after the drain timeout, when no time is left for the spans.
func TestCloseWithoutTime(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "20") // ms: no attempt to send is longer
	traces := Open(t.Context(), "test", slog.New(slog.DiscardHandler))
	_, span := traces.provider.Tracer("test").Start(t.Context(), "span")
	span.End()
	traces.Close(-time.Second)
	goleak.VerifyNone(t, before)
}
