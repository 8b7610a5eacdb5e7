package store

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/watchword-auth/watchword/internal/spans"
)

// The names of the attributes are those of OpenTelemetry's conventions for databases. No span
// has a statement's arguments.
const (
	systemKey = attribute.Key("db.system.name")
	stateKey  = attribute.Key("db.response.status_code")
	batchKey  = attribute.Key("db.operation.batch.size")
)

var (
	onSQLite   = []trace.SpanStartOption{trace.WithAttributes(systemKey.String("sqlite"))}
	onPostgres = []trace.SpanStartOption{trace.WithAttributes(systemKey.String("postgresql"))}
	onTrip     = []trace.SpanStartOption{onPostgres[0], trace.WithSpanKind(trace.SpanKindClient)}
)

// startSpan starts the span of a call of the Store.
func (s *Store) startSpan(ctx context.Context, name string) (context.Context, trace.Span) {
	if s.Path() != "" {
		return spans.Start(ctx, name, onSQLite...)
	}
	return spans.Start(ctx, name, onPostgres...)
}

// startStatement starts the tracing span of a statement on SQLite, below the span in ctx. If ctx
// is nil, the statement has no span. A statement about a savepoint has no span: many writes of a
// group have savepoints, and the spans would only fill the trace.
func startStatement(ctx context.Context, query string) trace.Span {
	if ctx == nil || !spans.Recorded(ctx) || strings.HasSuffix(query, " member") {
		return spans.None
	}
	_, running := spans.Start(ctx, summary(query), onSQLite...)
	return running
}

// startShared starts the span of a transaction that the jobs of a batch share. The span is
// below the span of the first traced job, and has a link to each traced job; each further
// traced job has a link to the span. startShared also returns the context for the spans below
// the new span. The context has no deadline, since a worker must not stop when one caller of the
// batch stops waiting.
func startShared[T any](batch []*job[T]) (context.Context, trace.Span) {
	var first context.Context
	var further []trace.Span
	var links []trace.Link
	for _, j := range batch {
		caller := trace.SpanFromContext(j.ctx)
		if !caller.IsRecording() {
			continue
		}
		links = append(links, trace.Link{SpanContext: caller.SpanContext()})
		if first == nil {
			first = j.ctx
		} else {
			further = append(further, caller)
		}
	}
	if first == nil {
		return context.Background(), spans.None
	}
	_, shared := spans.Start(first, "store.transaction", trace.WithLinks(links...), trace.WithAttributes(batchKey.Int(len(batch))))
	for _, caller := range further {
		caller.AddLink(trace.Link{SpanContext: shared.SpanContext()})
	}
	return trace.ContextWithSpan(context.Background(), shared), shared
}

// summary returns the name of a statement's span: the statement's first word, and the first table
// that the statement names outside of parentheses.
func summary(query string) string {
	words := strings.Fields(query)
	depth, before := 0, ""
	for _, word := range words {
		switch before {
		case "FROM", "JOIN", "INTO", "UPDATE":
			if depth == 0 && word != "SET" && !strings.Contains(word, "(") {
				return words[0] + " " + strings.Trim(word, ",;")
			}
		}
		depth += strings.Count(word, "(") - strings.Count(word, ")")
		before = word
	}
	return strings.Join(words[:min(1, len(words))], "")
}

// pgTracer makes a span for each round trip to PostgreSQL. A round trip with several statements
// has one span, and the span's name lists every statement.
type pgTracer struct{}

// TraceQueryStart implements [pgx.QueryTracer].
func (pgTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if !spans.Recorded(ctx) {
		return ctx
	}
	ctx, _ = spans.Start(ctx, summary(data.SQL), onTrip...)
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (pgTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	endTrip(ctx, data.Err)
}

// TraceBatchStart implements [pgx.BatchTracer].
func (pgTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	if !spans.Recorded(ctx) {
		return ctx
	}
	var names []string
	for _, q := range data.Batch.QueuedQueries {
		names = append(names, summary(q.SQL))
	}
	ctx, _ = spans.Start(ctx, strings.Join(slices.Compact(names), "; "),
		append(slices.Clip(onTrip), trace.WithAttributes(batchKey.Int(len(names))))...)
	return ctx
}

// TraceBatchQuery implements [pgx.BatchTracer].
func (pgTracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd implements [pgx.BatchTracer].
func (pgTracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	endTrip(ctx, data.Err)
}

// endTrip ends the span of a round trip, which is the span of ctx if the call is traced. The
// span gets only the code of an error, since PostgreSQL's error text may repeat a value.
func endTrip(ctx context.Context, err error) {
	trip := trace.SpanFromContext(ctx)
	if state := sqlState(err); state != "" && trip.IsRecording() {
		trip.SetAttributes(stateKey.String(state))
	}
	spans.End(trip, err != nil)
}
