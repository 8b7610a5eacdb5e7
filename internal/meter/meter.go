// Package meter reports plain numbers through OpenTelemetry's metric API. A table of [Row]
// lists the instruments of a value, and [Register] makes the instruments. Package meter counts
// nothing: at each collection, OpenTelemetry calls the function that reads the numbers. A program
// without OpenTelemetry's SDK collects the numbers by a [Page].
package meter

import (
	"context"
	"errors"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// A Row describes one instrument (a counter or a gauge of OpenTelemetry) over numbers of the
// type N. [Counter] and [Gauge] make rows.
type Row[N any] struct {
	name, unit, text string
	counter          bool
	values           func(N, Adder)
}

// An Adder adds one value to an instrument. The values of one instrument differ in their
// attributes.
type Adder = func(value float64, attributes ...attribute.KeyValue)

// Counter describes an instrument with values that only grow. The unit is in the notation of
// UCUM, such as "s" or "{token}". The unit of a plain number is empty, not "1", since
// OpenTelemetry's exporter for Prometheus adds _ratio to the name of a gauge in "1". The text
// describes the instrument for people. The function values calls the Adder for each value.
func Counter[N any](name, unit, text string, values func(N, Adder)) Row[N] {
	return Row[N]{name, unit, text, true, values}
}

// Gauge describes an instrument as [Counter] does, for values that rise and fall.
func Gauge[N any](name, unit, text string, values func(N, Adder)) Row[N] {
	return Row[N]{name, unit, text, false, values}
}

// Register makes an instrument for each row, and reports the values of the instruments until
// unregister is called. The function read returns the present numbers. Each value gets the
// attributes in common. If provider is nil, Register does nothing. Later calls of unregister do
// nothing.
//
// Errors: if the provider refuses an instrument.
func Register[N any](provider metric.MeterProvider, scope string, common []attribute.KeyValue, read func() N, rows []Row[N]) (unregister func(), err error) {
	if provider == nil {
		return func() {}, nil
	}
	meter := provider.Meter(scope)
	all := make([]metric.Float64Observable, len(rows))
	observed := make([]metric.Observable, len(rows))
	var errs []error
	for i, row := range rows {
		if row.counter {
			all[i], err = meter.Float64ObservableCounter(row.name, metric.WithUnit(row.unit), metric.WithDescription(row.text))
		} else {
			all[i], err = meter.Float64ObservableGauge(row.name, metric.WithUnit(row.unit), metric.WithDescription(row.text))
		}
		observed[i] = all[i]
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		numbers := read()
		for i, row := range rows {
			row.values(numbers, func(value float64, attributes ...attribute.KeyValue) {
				o.ObserveFloat64(all[i], value, metric.WithAttributes(slices.Concat(common, attributes)...))
			})
		}
		return nil
	}, observed...)
	if err != nil {
		return nil, err
	}
	return func() { _ = registration.Unregister() }, nil // fails only for a provider that has ended
}
