package authn

import (
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/watchword-auth/watchword/internal/meter"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// WithMeterProvider reports the state of the Verifier through OpenTelemetry, until Close.
// docs/monitoring.md lists the instruments, with names that begin with "watchword.verifier.".
// At each collection, the provider reads the values of [Verifier.Status]. A guarded call only
// adds one to a number in memory, which takes a few nanoseconds.
//
// The attributes are added to every value. In a program with several Verifiers, give each
// Verifier another attribute: otherwise the values of one Verifier replace the values of the
// others.
//
// Without WithMeterProvider, and for a nil provider, a Verifier registers no instrument. A
// program that reports metrics by another library can read Verifier.Status. To count cached
// tokens too, the program passes the provider of go.opentelemetry.io/otel/metric/noop.
//
// Errors of NewVerifier: INVALID_ARGUMENT if the provider refuses an instrument.
func WithMeterProvider(provider metric.MeterProvider, attributes ...attribute.KeyValue) Option {
	return func(c *config) { c.meters, c.attributes = provider, attributes }
}

// scope is the name by which OpenTelemetry shows that package authn has made an instrument.
const scope = "github.com/watchword-auth/watchword/authn"

// instruments lists the instruments of a Verifier. The program bounds the values of every
// attribute: no value comes from a caller.
var instruments = []meter.Row[Status]{
	meter.Gauge("watchword.verifier.ready", "", "1 if guarded calls can be admitted, and 0 if every guarded call is refused.",
		func(s Status, add meter.Adder) { add(truth(s.Ready)) }),
	meter.Gauge("watchword.verifier.stale", "", "1 if the trust bundle is older than WithMaxStaleness allows.",
		func(s Status, add meter.Adder) { add(truth(s.Stale)) }),
	meter.Gauge("watchword.verifier.bundle.age", "s", "Age of the trust bundle.",
		func(s Status, add meter.Adder) { add(s.Staleness.Seconds()) }),
	meter.Counter("watchword.verifier.streams.opened", "{stream}", "Streams of the trust bundle opened, the first included.",
		func(s Status, add meter.Adder) { add(float64(s.Streams)) }),
	meter.Counter("watchword.verifier.tokens.accepted", "{token}", "Access tokens accepted, found in the cache or after a check of the signature.",
		func(s Status, add meter.Adder) {
			add(float64(s.AcceptedCached), attribute.String("by", "cache"))
			add(float64(s.AcceptedChecked), attribute.String("by", "check"))
		}),
	meter.Counter("watchword.verifier.tokens.refused", "{token}", "Access tokens refused, and calls without a token, by the reason.",
		func(s Status, add meter.Adder) {
			for reason, n := range s.Refused {
				add(float64(n), attribute.String("reason", refusal.Name(reason)))
			}
		}),
	meter.Gauge("watchword.verifier.keys", "{key}", "Public keys in the trust bundle.",
		func(s Status, add meter.Adder) { add(float64(s.Keys)) }),
	meter.Gauge("watchword.verifier.revocations", "{revocation}", "Revocations in force: sessions ended, and users disabled or with changed rights.",
		func(s Status, add meter.Adder) {
			add(float64(s.EndedSessions), attribute.String("of", "session"))
			add(float64(s.RaisedUsers), attribute.String("of", "user"))
		}),
	meter.Gauge("watchword.verifier.cache.tokens", "{token}", "Access tokens in the cache.",
		func(s Status, add meter.Adder) { add(float64(s.CachedTokens)) }),
	meter.Gauge("watchword.verifier.cache.size", "By", "Memory of the cache.",
		func(s Status, add meter.Adder) { add(float64(s.CacheBytes)) }),
	meter.Gauge("watchword.verifier.clock.offset", "s", "By how much the server's token time is ahead of this machine's clock.",
		func(s Status, add meter.Adder) { add(s.ClockOffset.Seconds()) }),
	meter.Counter("watchword.verifier.clock.set", "{step}", "How often the server's token time was set.",
		func(s Status, add meter.Adder) { add(float64(s.ClockSet)) }),
	meter.Gauge("watchword.verifier.snapshot.failing", "", "1 if the last attempt to read or write the snapshot file failed.",
		func(s Status, add meter.Adder) { add(truth(s.SnapshotError != nil)) }),
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
