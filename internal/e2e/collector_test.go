package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	otelpropagation "go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
)

// collector receives spans by OTLP.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	addr        string
	connections atomic.Int64
	exports     atomic.Int64
	away        atomic.Bool // refuse every export
	says        string      // the message of each answer; empty: everything is well

	mu    sync.Mutex
	spans []exported
	key   string // the metadata authorization of the latest export
}

// exported is a span with the name of the service that made the span.
type exported struct {
	*tracev1.Span
	service string
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{addr: lis.Addr().String()}
	s := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(s, c)
	go func() { _ = s.Serve(countedListener{lis, &c.connections}) }()
	t.Cleanup(s.Stop)
	return c
}

type countedListener struct {
	net.Listener
	accepted *atomic.Int64
}

func (l countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return conn, err
}

// Export keeps the spans.
func (c *collector) Export(ctx context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.exports.Add(1)
	if c.away.Load() {
		return nil, status.Error(codes.Unavailable, "away")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key = strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), ",")
	for _, r := range req.GetResourceSpans() {
		service := ""
		for _, a := range r.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, s := range r.GetScopeSpans() {
			for _, span := range s.GetSpans() {
				c.spans = append(c.spans, exported{span, service})
			}
		}
	}
	answer := &collectorv1.ExportTraceServiceResponse{}
	if c.says != "" {
		answer.PartialSuccess = &collectorv1.ExportTracePartialSuccess{ErrorMessage: c.says}
	}
	return answer, nil
}

// variables returns the environment of a server that exports to the collector at once.
func (c *collector) variables() []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.addr, "OTEL_BSP_SCHEDULE_DELAY=20"}
}

// of returns the spans of a trace.
func (c *collector) of(id trace.TraceID) (spans []exported) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if hex.EncodeToString(s.GetTraceId()) == id.String() {
			spans = append(spans, s)
		}
	}
	return spans
}

// await waits for a span with this path of names in a trace. The path begins at the root, and
// each name is that of a span below the span before, at any depth. A name may begin with
// "SERVICE/ " for a span of one service.
func (c *collector) await(t *testing.T, id trace.TraceID, path ...string) exported {
	t.Helper()
	var found exported
	eventually(t, propagation*2, "spans", func() error {
		spans := c.of(id)
		for _, s := range spans {
			if fits(spans, s, path) {
				found = s
				return nil
			}
		}
		return fmt.Errorf("no span %s in\n%s", strings.Join(path, " → "), tree(spans))
	})
	return found
}

// fits reports whether a span and the spans above it have the names of the path.
func fits(spans []exported, s exported, path []string) bool {
	if !named(s, path[len(path)-1]) {
		return false
	}
	rest := path[:len(path)-1]
	for above, ok := parent(spans, s); ok && len(rest) > 0; above, ok = parent(spans, above) {
		if named(above, rest[len(rest)-1]) {
			rest = rest[:len(rest)-1]
		}
	}
	return len(rest) == 0
}

func named(s exported, name string) bool {
	if service, only, ok := strings.Cut(name, "/ "); ok {
		return s.service == service && s.GetName() == only
	}
	return s.GetName() == name
}

func parent(spans []exported, s exported) (exported, bool) {
	i := slices.IndexFunc(spans, func(p exported) bool { return string(p.GetSpanId()) == string(s.GetParentSpanId()) })
	if i < 0 {
		return exported{}, false
	}
	return spans[i], true
}

// tree prints spans, each with the name of the span above.
func tree(spans []exported) string {
	var text strings.Builder
	for _, s := range spans {
		above, _ := parent(spans, s)
		fmt.Fprintf(&text, "%s/ %q below %q\n", s.service, s.GetName(), above.GetName())
	}
	return text.String()
}

// attributeOf returns the text of a span's attribute.
func attributeOf(s exported, key string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == key {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// text prints everything that the collector has.
func (c *collector) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var text strings.Builder
	for _, s := range c.spans {
		text.WriteString(prototext.Format(s.Span))
	}
	return text.String()
}

// traced is a program in this process that makes spans, as a client or a guarded service does.
type traced struct{ provider *sdktrace.TracerProvider }

func (c *collector) traced(t *testing.T, service string) traced {
	t.Helper()
	exporter, err := otlptracegrpc.New(t.Context(), otlptracegrpc.WithEndpoint(c.addr), otlptracegrpc.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter), sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", service))))
	t.Cleanup(func() { _ = provider.Shutdown(context.WithoutCancel(t.Context())) })
	return traced{provider}
}

func (p traced) options() []otelgrpc.Option {
	return []otelgrpc.Option{otelgrpc.WithTracerProvider(p.provider), otelgrpc.WithPropagators(otelpropagation.TraceContext{})}
}

// root starts a trace.
func (p traced) root(ctx context.Context, name string) (context.Context, trace.TraceID, func()) {
	ctx, span := p.provider.Tracer("e2e").Start(ctx, name)
	return ctx, span.SpanContext().TraceID(), func() { span.End() }
}
