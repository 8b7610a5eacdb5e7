package meter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/embedded"
	"go.opentelemetry.io/otel/metric/noop"
)

// A Page is a MeterProvider for a program without OpenTelemetry's SDK. A Page collects the
// instruments that [Register] makes until the program ends, and drops all other instruments. The
// zero value is ready for use, and is safe for concurrent use.
//
// The SDK with its exporter for Prometheus would make the program larger and its start slower, for
// a page of some twenty lines.
type Page struct {
	noop.MeterProvider

	mu     sync.Mutex // guards the fields below
	series []*series
	reads  []metric.Callback
}

// series is one instrument of a Page. For the units "s" and "By" and for units in braces, name is
// the name that OpenTelemetry's exporter for Prometheus would give the instrument; for every other
// unit, the exporter adds the unit to the name.
type series struct {
	metric.Float64Observable
	embedded.Float64ObservableCounter
	embedded.Float64ObservableGauge
	name, kind, text string
}

// Meter returns a meter that makes instruments of the page.
func (p *Page) Meter(string, ...metric.MeterOption) metric.Meter { return pageMeter{page: p} }

type pageMeter struct {
	noop.Meter
	page *Page
}

func (m pageMeter) Float64ObservableCounter(name string, options ...metric.Float64ObservableCounterOption) (metric.Float64ObservableCounter, error) {
	c := metric.NewFloat64ObservableCounterConfig(options...)
	return m.page.add(name, "counter", c.Unit(), c.Description()), nil
}

func (m pageMeter) Float64ObservableGauge(name string, options ...metric.Float64ObservableGaugeOption) (metric.Float64ObservableGauge, error) {
	c := metric.NewFloat64ObservableGaugeConfig(options...)
	return m.page.add(name, "gauge", c.Unit(), c.Description()), nil
}

func (p *Page) add(name, kind, unit, text string) *series {
	name = strings.ReplaceAll(name, ".", "_") + map[string]string{"s": "_seconds", "By": "_bytes"}[unit]
	if kind == "counter" {
		name += "_total"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.series = append(p.series, &series{name: name, kind: kind, text: text})
	return p.series[len(p.series)-1]
}

// RegisterCallback adds a function that reads values. The method Unregister of the registration does
// nothing: the page reads the values until the program ends.
func (m pageMeter) RegisterCallback(read metric.Callback, _ ...metric.Observable) (metric.Registration, error) {
	m.page.mu.Lock()
	defer m.page.mu.Unlock()
	m.page.reads = append(m.page.reads, read)
	return noop.Registration{}, nil
}

// Text returns the values of all instruments in the text form of Prometheus. Errors: those of
// reading a value.
func (p *Page) Text(ctx context.Context) ([]byte, error) {
	p.mu.Lock()
	all, reads := slices.Clone(p.series), slices.Clone(p.reads)
	p.mu.Unlock()
	values := pageValues{of: map[metric.Float64Observable]map[string]float64{}}
	var errs []error
	for _, read := range reads {
		errs = append(errs, read(ctx, values))
	}
	var text bytes.Buffer
	for _, s := range all {
		fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s %s\n", s.name, inHelp.Replace(s.text), s.name, s.kind)
		for _, labels := range slices.Sorted(maps.Keys(values.of[s])) {
			fmt.Fprintf(&text, "%s%s %g\n", s.name, labels, values.of[s][labels])
		}
	}
	return text.Bytes(), errors.Join(errs...)
}

// inHelp and inLabel escape a text in the text form of Prometheus: in the description of a series,
// and in the value of a label.
var (
	inHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	inLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// pageValues holds the values of instruments, by the labels.
type pageValues struct {
	noop.Observer
	of map[metric.Float64Observable]map[string]float64
}

// ObserveFloat64 notes a value of an instrument.
func (v pageValues) ObserveFloat64(instrument metric.Float64Observable, value float64, options ...metric.ObserveOption) {
	attributes := metric.NewObserveConfig(options).Attributes()
	var labels []string
	for _, a := range attributes.ToSlice() {
		labels = append(labels, fmt.Sprintf(`%s="%s"`, a.Key, inLabel.Replace(a.Value.String())))
	}
	key := ""
	if len(labels) > 0 {
		key = "{" + strings.Join(labels, ",") + "}"
	}
	if v.of[instrument] == nil {
		v.of[instrument] = map[string]float64{}
	}
	v.of[instrument][key] = value
}
