package main

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	meternoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"github.com/watchword-auth/watchword/authn"
)

// ended is a processor of spans that keeps nothing.
type ended struct{}

func (ended) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (ended) OnEnd(sdktrace.ReadOnlySpan)                     {}
func (ended) Shutdown(context.Context) error                  { return nil }
func (ended) ForceFlush(context.Context) error                { return nil }

func providerOf(sampler sdktrace.Sampler) *sdktrace.TracerProvider {
	return sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithSpanProcessor(ended{}))
}

// below returns a call with a span of the provider.
func below(call context.Context, provider *sdktrace.TracerProvider) context.Context {
	ctx, _ := provider.Tracer("bench").Start(call, "span")
	return ctx
}

// within makes a call within a new span, by a function that gets the context of the span.
func within(provider *sdktrace.TracerProvider, call context.Context, do func(context.Context) error) func(worker, i int) error {
	tracer := provider.Tracer("bench")
	return func(_, _ int) error {
		ctx, span := tracer.Start(call, "span")
		err := do(ctx)
		span.End()
		return err
	}
}

// handled makes a call through otelgrpc's handler, as a gRPC server does.
func handled(handler stats.Handler, call context.Context, do func(context.Context) error) func(worker, i int) error {
	return func(_, _ int) error {
		ctx := handler.TagRPC(call, &stats.RPCTagInfo{FullMethodName: guarded.FullMethod})
		began := time.Now()
		handler.HandleRPC(ctx, &stats.Begin{BeginTime: began})
		err := do(ctx)
		handler.HandleRPC(ctx, &stats.End{BeginTime: began, EndTime: time.Now()})
		return err
	}
}

// telemetry measures what metrics and traces add to the interceptor.
func telemetry(b *bench) error {
	issuer, err := newIssuer()
	if err != nil {
		return err
	}
	defer issuer.close()
	tokens, err := issuer.mint(1)
	if err != nil {
		return err
	}
	var intercept [2]grpc.UnaryServerInterceptor // without metrics, and with
	for i, opts := range [][]authn.Option{nil, {authn.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(metric.NewManualReader())))}} {
		verifier, err := issuer.verifier(0, opts...)
		if err != nil {
			return err
		}
		defer verifier.Close()
		intercept[i] = verifier.UnaryServerInterceptor()
	}
	good, bad := incoming(tokens)[0], metadata.NewIncomingContext(context.Background(), metadata.Pairs(":authority", "echo"))
	sampled, leftOut := providerOf(sdktrace.AlwaysSample()), providerOf(sdktrace.NeverSample())
	handler := otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(sampled), otelgrpc.WithMeterProvider(meternoop.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{}))
	nothing := func(context.Context) error { return nil }
	admit := func(ctx context.Context) error {
		_, err := intercept[0](ctx, nil, guarded, noop)
		return err
	}
	refuse := func(ctx context.Context) error {
		if admit(ctx) == nil {
			return errors.New("a call without a token was admitted")
		}
		return nil
	}
	sides := []side{
		{"off", through(intercept[0], []context.Context{good})},
		{"metrics", through(intercept[1], []context.Context{good})},
		{"sampled", through(intercept[0], []context.Context{below(good, sampled)})},
		{"left out", through(intercept[0], []context.Context{below(good, leftOut)})},
		{"refused", func(_, _ int) error { return refuse(bad) }},
		{"span", within(sampled, bad, nothing)},
		{"span, refused", within(sampled, bad, refuse)},
		{"span, attribute", within(sampled, bad, func(ctx context.Context) error {
			trace.SpanFromContext(ctx).SetAttributes(attribute.String("watchword.token", "check")) // the interceptor sets the same attribute for a new token
			return nil
		})},
		{"otelgrpc", handled(handler, good, nothing)},
		{"otelgrpc, sampled", handled(handler, good, admit)},
	}
	all, err := race{turns: b.of(9, 101), stint: 20 * time.Millisecond, workers: 1, batch: 32}.run(sides...)
	if err != nil {
		return err
	}
	reportTelemetry(b, all, allocations(sides[2])-allocations(sides[0]))
	return nil
}

// reportTelemetry reports the rates of the sides, and the allocations that a span adds.
func reportTelemetry(b *bench, all []rates, allocations float64) {
	b.report("telemetry/off", all[0].nanos(), "ns", limit{})
	b.report("telemetry/metrics/added", added(all[1], all[0]), "ns", under(100))
	b.report("telemetry/traced/sampled/added", added(all[2], all[0]), "ns", under(100))
	b.report("telemetry/traced/sampled/allocations-added", allocations, "allocs", atMost(0))
	b.report("telemetry/traced/left-out/added", added(all[3], all[0]), "ns", under(100))
	b.report("telemetry/traced/new-token/added", added(all[7], all[5]), "ns", limit{})
	b.report("telemetry/refused/off", all[4].nanos(), "ns", limit{})
	b.report("telemetry/traced/refused/added", added(all[6], all[5], all[4]), "ns", limit{})
	b.report("telemetry/otelgrpc/alone", all[8].nanos(), "ns", limit{})
	b.report("telemetry/otelgrpc/with-interceptor", all[9].nanos(), "ns", limit{})
}

// added returns the time that a whole call takes beyond the sum of its parts: the median over
// the turns, in which whole and parts were measured one after the other.
func added(whole rates, parts ...rates) float64 {
	beyond := make([]float64, len(whole))
	for i := range whole {
		beyond[i] = 1e9 / whole[i]
		for _, part := range parts {
			beyond[i] -= 1e9 / part[i]
		}
	}
	return median(beyond)
}
