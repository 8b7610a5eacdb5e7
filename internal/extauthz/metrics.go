package extauthz

import (
	"go.opentelemetry.io/otel/attribute"

	"github.com/watchword-auth/watchword/internal/meter"
	"github.com/watchword-auth/watchword/internal/share"
)

// numbers holds what /metrics shows, beside the series of the verifier.
type numbers struct {
	*checker
	bounds map[string]share.Stats
}

// instruments lists the series of /metrics, beside those of the verifier. The series of the bounds
// are named as those of the Watchword server, so that one alarm watches both programs. No value of
// an attribute comes from a client.
var instruments = []meter.Row[numbers]{
	meter.Counter("watchword.ext_authz.requests", "{request}", "Requests that Envoy has asked about, by the answer.",
		func(n numbers, add meter.Adder) {
			add(float64(n.allowed.Load()), attribute.String("answer", "allowed"))
			add(float64(n.denied.Load()), attribute.String("answer", "denied"))
		}),
	meter.Counter("watchword.ext_authz.undecided", "{request}", "Denied requests of routes with a rule that cannot be used.",
		func(n numbers, add meter.Adder) { add(float64(n.undecided.Load())) }),
	meter.Gauge("watchword.places.taken", "{place}", "Places taken now within each bound: connections, and questions at a time.",
		eachBound(func(s share.Stats) float64 { return float64(s.Held) })),
	meter.Gauge("watchword.places.limit", "{place}", "Places within each bound.",
		eachBound(func(s share.Stats) float64 { return float64(s.Places) })),
	meter.Counter("watchword.places.refused", "{client}", "Clients that got no place within a bound.",
		eachBound(func(s share.Stats) float64 { return float64(s.Refused) })),
}

// eachBound returns the values of a row with one value for each bound.
func eachBound(value func(share.Stats) float64) func(numbers, meter.Adder) {
	return func(n numbers, add meter.Adder) {
		for bound, stats := range n.bounds {
			add(value(stats), attribute.String("bound", bound))
		}
	}
}

// report adds the numbers of the server to the page /metrics, until the program ends.
func (s *server) report(bounds map[string]*share.Pool) error {
	read := func() numbers {
		n := numbers{s.checker, map[string]share.Stats{}}
		for bound, places := range bounds {
			n.bounds[bound] = places.Stats()
		}
		return n
	}
	_, err := meter.Register(s.page, "github.com/watchword-auth/watchword/internal/extauthz", nil, read, instruments)
	return err
}
