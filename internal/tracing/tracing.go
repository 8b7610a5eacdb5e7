// Package tracing exports the tracing spans of a server by OTLP over gRPC, if the standard
// variables of OpenTelemetry (OTEL_*) ask for the export, and puts the ids of traces into log
// lines. Without the OTEL_* variables nothing runs: no goroutine, no connection, no stats
// handler of gRPC.
//
// The other packages, such as store and rpc, start the spans by package spans.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// closeTime bounds the time in which Close sends the last spans. A collector that does not
// answer delays the stop of a server by closeTime at most.
const closeTime = 2 * time.Second

// closeLeast is the shortest time that Close gives to OpenTelemetry's Shutdown: with a context
// that has ended, Shutdown ends nothing.
const closeLeast = 10 * time.Millisecond

// Traces exports the spans of one server. A nil *Traces exports nothing.
type Traces struct{ provider *sdktrace.TracerProvider }

// Open starts the export of spans if the environment variables ask for the export, and returns
// nil otherwise. Open does not call the collector, so a collector that does not answer delays
// no start. A variable that cannot be used is logged, as the specification of OpenTelemetry
// demands, and stops no server.
//
// The spans wait for their export in a queue of bounded size (OTEL_BSP_MAX_QUEUE_SIZE). A span
// that finds the queue full is lost.
func Open(ctx context.Context, version string, logger *slog.Logger) *Traces {
	if !wanted(ctx, logger) {
		return nil
	}
	// OpenTelemetry's default logger and default error handler write to standard error, and one
	// of the lines contains the value of a malformed header of OTEL_EXPORTER_OTLP_HEADERS.
	otel.SetLogger(logr.New(&sink{logger}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logger.Warn("tracing", "error", err) }))
	client, err := otlptracegrpc.New(ctx)
	if err != nil {
		logger.WarnContext(ctx, "traces are off: the exporter cannot start; check the variables OTEL_EXPORTER_OTLP_*", "error", err)
		return nil
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "watchword"), attribute.String("service.version", version)),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithFromEnv()) // a later option replaces the values of an earlier option
	if err != nil {
		logger.WarnContext(ctx, "tracing: the description of this server is incomplete", "error", err)
	}
	logger.InfoContext(ctx, "traces are on")
	return &Traces{sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&exporter{SpanExporter: client, logger: logger}), // takes the settings in OTEL_BSP_*
		sdktrace.WithResource(about))}                                         // takes the settings in OTEL_TRACES_SAMPLER and OTEL_SPAN_*
}

// wanted reports whether the environment asks for traces: OTEL_TRACES_EXPORTER is otlp, or
// OTEL_TRACES_EXPORTER is not set and a variable with an endpoint is set.
func wanted(ctx context.Context, logger *slog.Logger) bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "otlp":
	case "":
		if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")+os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
			return false
		}
	case "none":
		return false
	default:
		logger.WarnContext(ctx, "traces are off: OTEL_TRACES_EXPORTER must be otlp or none", "value", exporter)
		return false
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if protocol := os.Getenv(name); protocol == "grpc" {
			break // the first variable that is set decides
		} else if protocol != "" {
			logger.WarnContext(ctx, "traces are off: "+name+" must be grpc, the one protocol that this server speaks", "value", protocol)
			return false
		}
	}
	return true
}

// ServerOptions returns the options with which a gRPC server makes a span for every call of
// Watchword's services. Calls of the health service and of reflection get no span, and neither
// do WatchBundle, ReportWatcher and WatchEvents: such a stream lasts long, and a span is
// exported at its end.
func (t *Traces) ServerOptions() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.provider),
		otelgrpc.WithPropagators(strangers{}),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // package telemetry counts the calls
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool {
			switch info.FullMethodName {
			case watchwordv1.TrustService_WatchBundle_FullMethodName, watchwordv1.TrustService_ReportWatcher_FullMethodName,
				watchwordv1.AuditService_WatchEvents_FullMethodName:
				return false
			}
			return strings.HasPrefix(info.FullMethodName, "/watchword.v1.")
		})))}
}

// longestState is the longest tracestate of a client that is accepted, in bytes. Each span of a
// call carries the tracestate, and the headers of a call can have 16 KiB: with a tracestate of
// 16 KiB, a batch of spans could be larger than a collector accepts (4 MiB), and the spans of
// other calls would be lost with the batch. W3C Trace Context section 3.3.1.5 demands at least
// 512 bytes.
const longestState = 512

// strangers reads the trace context of a call from the headers of the client, which can be
// hostile. strangers ignores a tracestate longer than longestState.
type strangers struct{ propagation.TraceContext }

// Extract implements [propagation.TextMapPropagator].
func (s strangers) Extract(ctx context.Context, headers propagation.TextMapCarrier) context.Context {
	ctx = s.TraceContext.Extract(ctx, headers)
	if len(headers.Get("tracestate")) <= longestState {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, trace.SpanContextFromContext(ctx).WithTraceState(trace.TraceState{}))
}

// Close sends the spans that still wait, within the time `within` and for closeTime at most,
// and ends the export, even if no time is left. A second Close does nothing.
func (t *Traces) Close(within time.Duration) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(max(within, closeLeast), closeTime))
	defer cancel()
	_ = t.provider.Shutdown(ctx) // the error is ignored: exporter has logged that the collector is away
}

// exporter logs once when the collector goes away, and once when the collector comes back.
type exporter struct {
	sdktrace.SpanExporter
	logger *slog.Logger
	away   atomic.Bool
}

// ExportSpans sends spans to the collector. If the collector does not accept the spans, the
// spans are lost.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	switch away := err != nil; {
	case away == e.away.Swap(away):
	case away:
		e.logger.WarnContext(ctx, "traces are lost until the collector takes them again", "error", described(err))
	default:
		e.logger.InfoContext(ctx, "the collector takes traces again")
	}
	return nil
}

// described returns the text of an export's error in at most 300 characters, since a collector
// may send a text of any length. gRPC's text about a header that cannot be sent repeats the
// name of the header, and the operator may have written a secret key in the place of the name.
// So described returns a fixed text for such an error.
func described(err error) string {
	if status.Code(err) == codes.Internal {
		return "INTERNAL: perhaps OTEL_EXPORTER_OTLP_HEADERS has a header that cannot be sent; write NAME=VALUE"
	}
	return fmt.Sprintf("%.300s", err)
}

// sink receives what OpenTelemetry's packages log. sink logs no values: a value may be a secret
// of OTEL_EXPORTER_OTLP_HEADERS. Only the error of a file contains no value, so sink logs the
// text of such an error.
type sink struct{ logger *slog.Logger }

func (s *sink) Init(logr.RuntimeInfo)          {}
func (s *sink) Enabled(int) bool               { return false }
func (s *sink) Info(int, string, ...any)       {}
func (s *sink) WithValues(...any) logr.LogSink { return s }
func (s *sink) WithName(string) logr.LogSink   { return s }

func (s *sink) Error(err error, message string, _ ...any) {
	var file *fs.PathError
	if errors.As(err, &file) {
		message += ": " + file.Error()
	}
	s.logger.Warn("a variable OTEL_* cannot be used", "problem", message)
}
