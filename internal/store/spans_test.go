package store_test

import (
	"context"
	"runtime"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// TestSpansOfASharedCommit checks that the span of a shared transaction has a link to each
// traced write, and that each write shows the wait in the queue and the statement.
func TestSpansOfASharedCommit(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	spans := tracetest.NewInMemoryExporter()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans), sdktrace.WithSampler(sdktrace.AlwaysSample())).Tracer("test")
	running, release := make(chan struct{}), make(chan struct{})
	answers := make(chan error, 4)
	write := func(ctx context.Context, name string, do func()) {
		answers <- s.Write(ctx, func(tx *store.Tx) error {
			do()
			return tx.SetSetting(name, "value-of-"+name)
		})
	}
	go write(t.Context(), "first", func() { close(running); <-release })
	<-running // the writer is busy, so the next writes wait, and share a transaction
	for _, name := range []string{"a", "b"} {
		ctx, _ := tracer.Start(t.Context(), name)
		go write(ctx, name, func() {})
	}
	go write(t.Context(), "untraced", func() {})
	for store.Queued(s) < 3 { // the queue has no event to await
		runtime.Gosched()
	}
	close(release)
	for range 4 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	s.Close() // the writer has ended every span
	names, linked := map[string]int{}, 0
	for _, span := range spans.GetSpans() {
		names[span.Name]++
		if span.Name == "store.write" {
			linked += len(span.Links)
		}
		if span.Name == "store.transaction" && len(span.Links) != 2 {
			t.Errorf("the shared transaction has %d links, want one for each traced write", len(span.Links))
		}
	}
	if linked != 1 {
		t.Errorf("%d links from writes to the shared transaction, want one: the other write is above the transaction", linked)
	}
	for name, want := range map[string]int{"store.write": 2, "store.queue": 2, "INSERT settings": 2, "store.transaction": 1, "COMMIT": 1} {
		if names[name] != want {
			t.Errorf("%d spans %s, want %d: %v", names[name], name, want, names)
		}
	}
}

// TestSummary checks that the name of a statement's span has the table outside of parentheses.
func TestSummary(t *testing.T) {
	for query, want := range map[string]string{
		"COMMIT": "COMMIT",
		"SELECT id, (SELECT value FROM settings WHERE name = 'x') FROM users WHERE id = $1": "SELECT users",
		"SELECT CAST(extract(epoch FROM clock_timestamp()) AS BIGINT)":                      "SELECT",
		"SELECT u.id FROM (SELECT 1 AS one) AS always LEFT JOIN users u ON u.username = $1": "SELECT users",
		"SELECT id FROM unnest($1) AS id":                                                   "SELECT",
		"":                                                                                  "",
		"UPDATE sessions AS s SET ended_at = $1":                                            "UPDATE sessions",
		"INSERT INTO audit (id) VALUES ($1)":                                                "INSERT audit",
	} {
		if got := store.Summary(query); got != want {
			t.Errorf("%q for %q, want %q", got, query, want)
		}
	}
}
