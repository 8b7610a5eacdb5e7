package tokensource_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	errs "github.com/watchword-auth/watchword/internal/refusal"
)

// Five services call each other for Alice. Each service is shown a token for its own audience
// alone, no other service accepts the token, and a logout takes all five tokens back.
func TestChainOfFive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := authntest.New()
		alices := issuer.Token(authntest.User{Name: "alice", Audience: []string{"s0"}})
		var verifiers []*authn.Verifier
		var shown []string // the tokens shown to each service, the last service first
		var next *grpc.ClientConn
		for i := 4; i >= 0; i-- {
			verifier := issuer.NewVerifier(t, authn.WithAudience(fmt.Sprint("s", i)), tokenNeeded(relayMethod), tokenNeeded(unaryMethod))
			verifiers = append(verifiers, verifier)
			handler, to := new(guardedService).handle, next
			if to != nil {
				handler = passOn(to, false)
			}
			service := serve(t, func(*grpc.Server) {}, append(verifier.ServerOptions(), grpc.UnknownServiceHandler(func(srv any, s grpc.ServerStream) error {
				shown = append([]string{tokenIn(s.Context())}, shown...)
				return handler(srv, s)
			}))...)
			if i == 0 {
				next = service.dial(t, nil)
				break
			}
			before := authntest.User{Name: fmt.Sprint("service", i-1), Kind: watchwordv1.UserKind_USER_KIND_SERVICE}
			auth := startAuth(t)
			auth.delegate = func(_ context.Context, _, subject string) (string, error) {
				if _, err := verifiers[len(verifiers)-1].VerifyFor(t.Context(), subject, fmt.Sprint("s", i-1)); err != nil {
					return "", errs.SubjectRefused(authn.Reason(err)).Err()
				}
				return issuer.Delegate(subject, before, fmt.Sprint("s", i)), nil
			}
			conn := auth.dial(t, nil)
			source, err := tokensource.Workload(conn, assertion)
			check(t, err)
			defer source.Close()
			next = service.dial(t, nil, tokensource.OnBehalfOf(source, conn, fmt.Sprint("s", i))...)
		}
		_, err := call(bearing(t.Context(), "Bearer "+alices), next, relayMethod, false)
		check(t, err)
		judge := func(want func(service, token int) string) {
			t.Helper()
			for v := range verifiers {
				for n, raw := range shown { // verifiers and shown both begin with the last service
					if _, err := verifiers[v].Verify(t.Context(), raw); name(err) != want(v, n) {
						t.Errorf("the token shown to s%d, at s%d: %v, want %s", 4-n, 4-v, err, want(v, n))
					}
				}
			}
		}
		judge(func(service, token int) string {
			if service == token {
				return "OK"
			}
			return "AUDIENCE_MISMATCH"
		})
		last, err := verifiers[0].Verify(t.Context(), shown[0])
		check(t, err)
		if got := fmt.Sprint(last.Username(), last.Actors()); !strings.HasPrefix(got, "alice[service3 ") || len(last.Actors()) != 4 {
			t.Errorf("the last service sees %s", got)
		}
		issuer.EndSession(alices)
		_, err = call(bearing(t.Context(), "Bearer "+alices), next, relayMethod, false)
		refusedBy(t, err, codes.Unauthenticated, "TOKEN_REVOKED", relayMethod)
		judge(func(service, token int) string {
			if service == token {
				return "TOKEN_REVOKED"
			}
			return "AUDIENCE_MISMATCH"
		})
	})
}
