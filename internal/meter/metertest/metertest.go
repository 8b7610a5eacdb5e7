// Package metertest reads instruments in tests, by OpenTelemetry's own SDK.
package metertest

import (
	"context"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// Collect returns the values of all instruments. A key is the name of the instrument, and then
// the attributes in the order of their names, such as "renewals outcome=OK".
func Collect(tb testing.TB, reader sdk.Reader) map[string]float64 {
	tb.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		tb.Fatal(err)
	}
	values := map[string]float64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			var points []metricdata.DataPoint[float64]
			switch data := m.Data.(type) {
			case metricdata.Sum[float64]:
				points = data.DataPoints
			case metricdata.Gauge[float64]:
				points = data.DataPoints
			default:
				tb.Errorf("%s is a %T", m.Name, data)
			}
			for _, p := range points {
				key := m.Name
				for kv := p.Attributes.Iter(); kv.Next(); {
					key += " " + string(kv.Attribute().Key) + "=" + kv.Attribute().Value.AsString()
				}
				values[key] = p.Value
			}
		}
	}
	return values
}

// WantDocumented checks that a page names exactly the instruments of values: the page has
// the names with a prefix between backquotes.
func WantDocumented(tb testing.TB, page, prefix string, values map[string]float64) {
	tb.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		tb.Fatal(err)
	}
	want, got := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile("`("+regexp.QuoteMeta(prefix)+"[a-z.]+)`").FindAllStringSubmatch(string(text), -1) {
		want[m[1]] = true
	}
	for key := range values {
		name, _, _ := strings.Cut(key, " ")
		got[name] = true
	}
	if !maps.Equal(want, got) {
		tb.Errorf("%s names\n%v\nand the instruments are\n%v", page, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	}
}
