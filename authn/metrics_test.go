package authn_test

import (
	"context"
	"fmt"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/internal/meter/metertest"
)

// The instruments count the calls, refusals and streams of a Verifier, and docs/monitoring.md
// has exactly these instruments.
func TestMeters(t *testing.T) {
	issuer, reader := authntest.New(), sdk.NewManualReader()
	verifier := issuer.NewVerifier(t, authn.WithAudience("test"),
		authn.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader)), attribute.String("verifier", "one")))
	plain := issuer.NewVerifier(t, authn.WithAudience("test"))
	call := func(method, authorization string) {
		for _, v := range []*authn.Verifier{verifier, plain} {
			ctx := t.Context()
			if authorization != "" {
				ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+authorization))
			}
			_, _ = v.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method},
				func(context.Context, any) (any, error) { return nil, nil })
		}
	}
	good, ended := issuer.Token(authntest.User{}), issuer.Token(authntest.User{})
	for range 5 {
		call(notes+"Mine", good)
	}
	call(notes+"Mine", ended)
	issuer.EndSession(ended)
	issuer.EndUser(authntest.User{Name: "another"})
	call(notes+"Mine", ended)
	call(notes+"Mine", "garbage")
	call(notes+"Mine", "")
	issuer.Advance(authntest.MaxLifetime) // sets the clock of the issuer ahead
	call(notes+"Mine", good)

	values := metertest.Collect(t, reader)
	for name, want := range map[string]float64{
		"watchword.verifier.ready verifier=one":                               1,
		"watchword.verifier.stale verifier=one":                               0,
		"watchword.verifier.streams.opened verifier=one":                      1,
		"watchword.verifier.tokens.accepted by=cache verifier=one":            4,
		"watchword.verifier.tokens.accepted by=check verifier=one":            2,
		"watchword.verifier.tokens.refused reason=TOKEN_REVOKED verifier=one": 1,
		"watchword.verifier.tokens.refused reason=TOKEN_INVALID verifier=one": 1,
		"watchword.verifier.tokens.refused reason=TOKEN_MISSING verifier=one": 1,
		"watchword.verifier.tokens.refused reason=TOKEN_EXPIRED verifier=one": 1,
		"watchword.verifier.keys verifier=one":                                1,
		"watchword.verifier.revocations of=session verifier=one":              1,
		"watchword.verifier.revocations of=user verifier=one":                 1,
		"watchword.verifier.cache.tokens verifier=one":                        2,
		"watchword.verifier.clock.set verifier=one":                           1,
		"watchword.verifier.snapshot.failing verifier=one":                    0,
	} {
		if got, ok := values[name]; !ok || got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if offset := values["watchword.verifier.clock.offset verifier=one"]; offset < authntest.MaxLifetime.Seconds()-60 || offset > authntest.MaxLifetime.Seconds()+60 {
		t.Errorf("the clock was set ahead by %v, and the offset is %v s", authntest.MaxLifetime, offset)
	}
	for range 1000 { // invented method names add no values to the page
		call(fmt.Sprintf("/notes.v1.NotesService/%p", new(int)), "garbage")
		call(notes+"Mine", fmt.Sprintf("%p", new(int)))
	}
	after := metertest.Collect(t, reader)
	if len(after) != len(values) {
		t.Errorf("%d values, and %d before a storm of made-up names", len(after), len(values))
	}
	metertest.WantDocumented(t, "../docs/monitoring.md", "watchword.verifier.", after)
	if s := plain.Status(); s.AcceptedCached != 0 || s.AcceptedChecked != 2 {
		t.Errorf("without a provider: %+v", s)
	}
	verifier.Close()
	if left := metertest.Collect(t, reader); len(left) > 0 {
		t.Errorf("after Close: %v", left)
	}
}
