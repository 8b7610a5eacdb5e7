package tokensource

import (
	"maps"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/watchword-auth/watchword/internal/meter"
)

// WithMeterProvider reports the renewals of the Source and the age of its token through
// OpenTelemetry, until Close. docs/monitoring.md lists the instruments, with names that begin
// with "watchword.tokensource.". No value names a user.
//
// attributes go with every value. A program with several Sources gives each Source another
// attribute: otherwise the values of one Source replace the values of the others.
//
// The default, and nil, registers nothing. Errors of [Password] and [Refresh]:
// INVALID_ARGUMENT if the provider refuses an instrument.
func WithMeterProvider(provider metric.MeterProvider, attributes ...attribute.KeyValue) Option {
	return func(c *config) { c.meters, c.attributes = provider, attributes }
}

// scope is the name of the package for OpenTelemetry.
const scope = "github.com/watchword-auth/watchword/authn/tokensource"

// numbers holds what a Source reports.
type numbers struct {
	renewed, refused map[string]uint64
	failing          bool          // the last renewal has failed
	good             bool          // the Source has a token that may be sent
	age              time.Duration // of that token
}

// numbers returns the numbers of the moment.
func (s *Source) numbers() numbers {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	return numbers{
		renewed: maps.Clone(s.renewed), refused: maps.Clone(s.refused), failing: s.lastErr != nil,
		good: s.access != "" && now.Before(s.goodUntil), age: now.Sub(s.askedAt),
	}
}

var instruments = []meter.Row[numbers]{
	meter.Counter("watchword.tokensource.renewals", "{renewal}", "Renewals of the access token, by outcome.",
		func(n numbers, add meter.Adder) { addAll(n.renewed, "outcome", add) }),
	meter.Gauge("watchword.tokensource.failing", "", "1 if the last renewal failed.",
		func(n numbers, add meter.Adder) {
			if n.failing {
				add(1)
			} else {
				add(0)
			}
		}),
	meter.Gauge("watchword.tokensource.token.age", "s", "Age of the access token; missing without a token that may be sent.",
		func(n numbers, add meter.Adder) {
			if n.good {
				add(n.age.Seconds())
			}
		}),
	meter.Counter("watchword.tokensource.tokens.refused", "{token}", "Access tokens that services have refused before the expiry, by reason.",
		func(n numbers, add meter.Adder) { addAll(n.refused, "reason", add) }),
}

func addAll(counts map[string]uint64, label string, add meter.Adder) {
	for value, n := range counts {
		add(float64(n), attribute.String(label, value))
	}
}
