package tokensource_test

import (
	"testing"
	"testing/synctest"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"google.golang.org/grpc/codes"

	"github.com/watchword-auth/watchword/authn/tokensource"
	"github.com/watchword-auth/watchword/internal/meter/metertest"
)

// The instruments show the renewals and the token of a Source.
func TestMeters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := sdk.NewManualReader()
		c := withPassword(t, tokensource.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
		want := func(when string, want map[string]float64) {
			t.Helper()
			values := metertest.Collect(t, reader)
			for name, value := range want {
				if got, ok := values[name]; !ok || got != value {
					t.Errorf("%s, %s: %v, want %v", when, name, got, value)
				}
			}
		}
		use := func() {
			_, _ = call(t.Context(), c.conn, unaryMethod, false)
			synctest.Wait()
		}
		if age, ok := metertest.Collect(t, reader)["watchword.tokensource.token.age"]; ok {
			t.Errorf("without a token, the age is %v", age)
		}
		use()
		time.Sleep(10 * time.Second)
		want("after a login", map[string]float64{
			"watchword.tokensource.renewals outcome=OK": 1, "watchword.tokensource.token.age": 10, "watchword.tokensource.failing": 0,
		})
		c.service.refuses(func(method, token string) error {
			if token == access(1) {
				return refusal(codes.Unauthenticated, "TOKEN_STALE", method)
			}
			return nil
		})
		use()
		c.auth.when(always(refusal(codes.ResourceExhausted, "OVERLOADED", "")), nil)
		time.Sleep(accessLife)
		use()
		want("after failures", map[string]float64{
			"watchword.tokensource.renewals outcome=OK": 2, "watchword.tokensource.renewals outcome=OVERLOADED": 1,
			"watchword.tokensource.tokens.refused reason=TOKEN_STALE": 1, "watchword.tokensource.failing": 1,
		})
		c.auth.when(nil, nil)
		time.Sleep(time.Minute)
		use()
		want("after all", map[string]float64{"watchword.tokensource.renewals outcome=OK": 3, "watchword.tokensource.failing": 0})
		c.Source.Close()
		if left := metertest.Collect(t, reader); len(left) > 0 {
			t.Errorf("after Close: %v", left)
		}
	})
}

// The instruments of a Source of Workload count its token for Watchword too, and the delegations.
// docs/monitoring.md has exactly the instruments of the package.
func TestMetersOfAWorkload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := sdk.NewManualReader()
		r := startRelay(t, false)
		conn := r.auth.dial(t, nil)
		source, err := tokensource.Workload(conn, assertion, tokensource.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
		check(t, err)
		defer source.Close()
		r.handler = passOn(r.next.dial(t, nil, tokensource.OnBehalfOf(source, conn, "search")...), false)
		r.next.refuses(func(method, token string) error {
			if token == "delegated-1" {
				return refusal(codes.Unauthenticated, "TOKEN_REVOKED", method)
			}
			return nil
		})
		_, err = source.Token(t.Context())
		check(t, err)
		_, err = r.call(t.Context(), r.issuer.Token(alice))
		check(t, err)
		values := metertest.Collect(t, reader)
		for name, want := range map[string]float64{
			"watchword.tokensource.renewals outcome=OK":                 2,
			"watchword.tokensource.delegations outcome=OK":              2,
			"watchword.tokensource.tokens.refused reason=TOKEN_REVOKED": 1,
			"watchword.tokensource.failing":                             0,
		} {
			if got, ok := values[name]; !ok || got != want {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		metertest.WantDocumented(t, "../../docs/monitoring.md", "watchword.tokensource.", values)
	})
}
