package meter_test

import (
	"testing"

	"go.opentelemetry.io/otel/attribute"

	"github.com/watchword-auth/watchword/internal/meter"
)

// A page has each value under the name that OpenTelemetry's exporter for Prometheus would give it,
// and escapes texts as Prometheus reads texts.
func TestPage(t *testing.T) {
	var page meter.Page
	n := 0.0
	rows := []meter.Row[float64]{
		meter.Counter("a.calls", "{call}", "Calls.", func(n float64, add meter.Adder) {
			add(n, attribute.String("outcome", "OK"), attribute.String("method", "Get"))
			add(0.5, attribute.String("method", "List"))
		}),
		meter.Gauge("a.bundle.age", "s", "Age.", func(n float64, add meter.Adder) { add(-n) }),
		meter.Gauge("a.text", "{place}", "A \\ and\na line.", func(_ float64, add meter.Adder) {
			add(1, attribute.String("says", "a \\, a \" and\na line, ä"), attribute.Int("shard", 7), attribute.Bool("whole", true))
		}),
		meter.Gauge("a.size", "By", "Size.", func(float64, meter.Adder) {}),
	}
	if _, err := meter.Register(&page, "here", nil, func() float64 { n += 1e6; return n }, rows); err != nil {
		t.Fatal(err)
	}
	for _, age := range []string{"1e+06", "2e+06"} { // each page reads the numbers again
		want := `# HELP a_calls_total Calls.
# TYPE a_calls_total counter
a_calls_total{method="Get",outcome="OK"} ` + age + `
a_calls_total{method="List"} 0.5
# HELP a_bundle_age_seconds Age.
# TYPE a_bundle_age_seconds gauge
a_bundle_age_seconds -` + age + `
# HELP a_text A \\ and\na line.
# TYPE a_text gauge
a_text{says="a \\, a \" and\na line, ä",shard="7",whole="true"} 1
# HELP a_size_bytes Size.
# TYPE a_size_bytes gauge
`
		if got, err := page.Text(t.Context()); err != nil || string(got) != want {
			t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
		}
	}
}
