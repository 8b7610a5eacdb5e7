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
// The attributes are added to every value. A program with several Sources gives each Source another
// attribute: otherwise the values of one Source replace the values of the others.
//
// Without WithMeterProvider, and for a nil provider, a Source registers no instrument. If the
// provider refuses an instrument, the function that makes the Source returns INVALID_ARGUMENT.
func WithMeterProvider(provider metric.MeterProvider, attributes ...attribute.KeyValue) Option {
	return func(c *config) { c.meters, c.attributes = provider, attributes }
}

// scope is the name of the package for OpenTelemetry.
const scope = "github.com/watchword-auth/watchword/authn/tokensource"

// numbers holds what a Source reports.
type numbers struct {
	renewed, refused, delegated map[string]uint64
	failing                     bool          // the last renewal has failed
	good                        bool          // the Source has a token that can still be sent
	age                         time.Duration // the age of the Source's token
}

// numbers returns what the Source reports now. Renewals of the token for Watchword itself (see
// [Workload]) are counted, too.
func (s *Source) numbers() numbers {
	var own numbers
	if s.own != nil {
		own = s.own.numbers()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	n := numbers{
		renewed: maps.Clone(s.renewed), refused: maps.Clone(s.refused), delegated: maps.Clone(s.delegated),
		failing: s.lastErr != nil || own.failing,
		good:    s.access != "" && now.Before(s.goodUntil), age: now.Sub(s.askedAt),
	}
	for outcome, count := range own.renewed {
		n.renewed[outcome] += count
	}
	for reason, count := range own.refused {
		n.refused[reason] += count
	}
	return n
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
	meter.Counter("watchword.tokensource.delegations", "{delegation}", "Tokens delegated by OnBehalfOf, by outcome.",
		func(n numbers, add meter.Adder) { addAll(n.delegated, "outcome", add) }),
}

func addAll(counts map[string]uint64, label string, add meter.Adder) {
	for value, n := range counts {
		add(float64(n), attribute.String(label, value))
	}
}
