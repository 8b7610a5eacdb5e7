package tokensource_test

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	errs "github.com/watchword-auth/watchword/internal/refusal"
)

// A relay is a guarded service that calls another one on behalf of its callers.
type relay struct {
	issuer  *authntest.Issuer
	auth    *authServer
	source  *tokensource.Source // the source of the relay's own account
	next    *guardedService
	caller  *grpc.ClientConn // a connection to the relay
	handler grpc.StreamHandler
}

const relayMethod = "/any.v1.Any/Method"

// startRelay starts a relay in a synctest bubble. stream tells how the relay calls the next
// service. opts are of the connection that calls the relay.
func startRelay(t *testing.T, stream bool, opts ...grpc.DialOption) *relay {
	t.Helper()
	r := &relay{issuer: authntest.New(), auth: startAuth(t), next: startService(t)}
	conn := r.auth.dial(t, nil)
	source, err := tokensource.Workload(conn, assertion)
	check(t, err)
	t.Cleanup(func() { source.Close() })
	r.source = source
	r.handler = passOn(r.next.dial(t, nil, tokensource.OnBehalfOf(source, conn, "search")...), stream)
	verifier := r.issuer.NewVerifier(t, authn.WithAudience("test"), authn.WithPublicMethods("/open.v1.Open/*"), tokenNeeded("/any.v1.Any/*"))
	r.caller = serve(t, func(*grpc.Server) {}, append(verifier.ServerOptions(), grpc.UnknownServiceHandler(func(srv any, s grpc.ServerStream) error {
		return r.handler(srv, s)
	}))...).dial(t, nil, opts...)
	return r
}

// call calls the relay with a token, and returns the token that the next service has seen.
func (r *relay) call(ctx context.Context, token string) (string, error) {
	return call(bearing(ctx, "Bearer "+token), r.caller, relayMethod, false)
}

// A token is delegated once for each token of a caller, with the relay's token for Watchword. The
// next service sees the delegated token alone.
func TestOnBehalfOf(t *testing.T) {
	for _, stream := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := startRelay(t, stream)
			alices, bobs := r.issuer.Token(alice), r.issuer.Token(authntest.User{Name: "bob"})
			subjects := map[string]string{} // for each delegated token its subject token, guarded by r.auth.mu
			subjectOf := func(raw string) string {
				r.auth.mu.Lock()
				defer r.auth.mu.Unlock()
				return subjects[raw]
			}
			r.auth.delegate = func(_ context.Context, _, subject string) (string, error) {
				raw := r.issuer.Delegate(subject, notesAccount, "search")
				r.auth.mu.Lock()
				subjects[raw] = subject
				r.auth.mu.Unlock()
				return raw, nil
			}
			var calls sync.WaitGroup
			for range 100 {
				for _, raw := range []string{alices, bobs} {
					calls.Go(func() {
						if seen, err := r.call(t.Context(), raw); err != nil || subjectOf(seen) != raw {
							t.Errorf("%q, %v", seen, err)
						}
					})
				}
			}
			calls.Wait()
			saw(t, r.auth, "exchange:a.b.c:watchword delegate:own-1:search delegate:own-1:search")

			// The service's own token for the next service is a separate token, and the calls
			// above have not carried this token.
			own, err := r.source.Token(t.Context())
			if check(t, err); own != "access-2" || strings.Contains(r.next.sinceLast(), "own") {
				t.Errorf("the source's token is %q", own)
			}
			saw(t, r.auth, "exchange:a.b.c")

			// The Source uses a delegated token for the token's whole lifetime.
			time.Sleep(accessLife - 2*time.Second)
			_, err = r.call(t.Context(), alices)
			check(t, err)
			saw(t, r.auth, "")
			time.Sleep(2 * time.Second)
			_, err = r.call(t.Context(), alices)
			check(t, err)
			saw(t, r.auth, "exchange:a.b.c:watchword delegate:own-3:search")
		})
	}
}

// Without a caller, nothing is sent: neither a token of the service itself nor a call without a
// token.
func TestOnBehalfOfNoCaller(t *testing.T) {
	for _, stream := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := startRelay(t, stream)
			_, err := call(bearing(t.Context(), "Bearer "+r.issuer.Token(alice)), r.caller, "/open.v1.Open/Method", false)
			wantMisuse(t, err, "this context has no caller")
			r.handler = func(_ any, s grpc.ServerStream) error {
				conn := r.next.dial(t, nil, tokensource.OnBehalfOf(r.source, r.auth.dial(t, nil), "search")...)
				_, err := call(context.Background(), conn, unaryMethod, stream)
				return err
			}
			_, err = r.call(t.Context(), r.issuer.Token(alice))
			wantMisuse(t, err, "this context has no caller")
			saw(t, r.auth, "")
			saw(t, r.next, "")
		})
	}
}

func wantMisuse(t *testing.T, err error, text string) {
	t.Helper()
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), text) {
		t.Errorf("%v does not say %q", err, text)
	}
}

func TestMisuseOfOnBehalfOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRelay(t, false)
		password, err := tokensource.Password(r.auth.dial(t, nil), "alice", "secret")
		check(t, err)
		defer password.Close()
		conn := r.auth.dial(t, nil)
		for text, opts := range map[string][]grpc.DialOption{
			"needs a source of Workload":         tokensource.OnBehalfOf(password, conn, "search"),
			"only a service account":             tokensource.OnBehalfOf(nil, conn, "search"),
			"needs a connection to Watchword":    tokensource.OnBehalfOf(r.source, nil, "search"),
			"needs the audience":                 tokensource.OnBehalfOf(r.source, conn, ""),
			"no option but":                      tokensource.OnBehalfOf(r.source, conn, "search", tokensource.WithAudience("search")),
			"takes no option but WithPlaintext":  tokensource.OnBehalfOf(r.source, conn, "search", tokensource.WithLogger(slog.Default())),
			"the source's own connection":        tokensource.OnBehalfOf(r.source, r.auth.dial(t, nil, r.source.DialOptions()...), "search"),
			"has no caller: pass on the context": tokensource.OnBehalfOf(r.source, r.auth.dial(t, nil, tokensource.OnBehalfOf(r.source, conn, "search")...), "search"),
		} {
			r.handler = passOn(r.next.dial(t, nil, opts...), false)
			_, err := r.call(t.Context(), r.issuer.Token(alice))
			wantMisuse(t, err, text)
		}
		saw(t, r.next, "")
	})
}

// If the next service refuses the delegated token, a unary call is sent once more with a token
// that is delegated anew, also after TOKEN_REVOKED; a stream is not opened again. A refusal that
// names another method changes nothing.
func TestADelegatedTokenIsRefused(t *testing.T) {
	for _, reason := range []string{"TOKEN_STALE", "TOKEN_REVOKED", "TOKEN_INVALID", "TOKEN_EXPIRED"} {
		for _, stream := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				r := startRelay(t, stream)
				raw := r.issuer.Token(alice)
				by := "" // the method that the refusal names; empty: the called one
				r.next.refuses(func(method, token string) error {
					if by != "" {
						method = by
					}
					if token == "delegated-1" {
						return refusal(codes.Unauthenticated, reason, method)
					}
					return nil
				})
				by = "/further.v1.Down/Method"
				for range 2 {
					_, err := r.call(t.Context(), raw)
					refusedBy(t, err, codes.Unauthenticated, reason, by)
				}
				saw(t, r.next, "delegated-1 delegated-1")
				by = ""
				seen, err := r.call(t.Context(), raw)
				if stream {
					refusedBy(t, err, codes.Unauthenticated, reason, streamMethod)
					saw(t, r.next, "delegated-1")
					seen, err = r.call(t.Context(), raw)
				}
				if check(t, err); seen != "delegated-2" {
					t.Errorf("%s: %q", reason, seen)
				}
				saw(t, r.auth, "exchange:a.b.c:watchword delegate:own-1:search delegate:own-1:search")
			})
		}
	}
}

// A service that refuses every delegated token causes few delegations.
func TestServiceThatRefusesEveryDelegatedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRelay(t, false)
		r.next.refuses(func(method, _ string) error { return refusal(codes.Unauthenticated, "TOKEN_REVOKED", method) })
		raw := r.issuer.Token(alice)
		for range 100 {
			_, err := r.call(t.Context(), raw)
			refusedBy(t, err, codes.Unauthenticated, "TOKEN_REVOKED", unaryMethod)
		}
		if r.auth.delegations != 6 {
			t.Errorf("%d delegations", r.auth.delegations)
		}
	})
}

// While Watchword is away or overloaded, a call for a new caller fails at once, and a call for a
// caller with a remembered delegated token goes out.
func TestDelegationsWhileWatchwordIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRelay(t, false)
		alices, bobs := r.issuer.Token(alice), r.issuer.Token(authntest.User{Name: "bob"})
		_, err := r.call(t.Context(), alices)
		check(t, err)
		r.auth.sinceLast()
		again := &errdetails.RetryInfo{RetryDelay: durationpb.New(20 * time.Second)}
		r.auth.delegate = func(context.Context, string, string) (string, error) {
			return "", refusal(codes.Unavailable, "STORE_UNAVAILABLE", "", again)
		}
		for range 3 {
			_, err = r.call(t.Context(), bobs)
			refusedBy(t, err, codes.Unavailable, "STORE_UNAVAILABLE", "")
			_, err = r.call(t.Context(), alices)
			check(t, err)
		}
		saw(t, r.auth, "delegate:own-1:search")
		r.auth.delegate = nil
		time.Sleep(21 * time.Second)
		_, err = r.call(t.Context(), bobs)
		check(t, err)

		// A request without an answer is sent twice, and a caller that gives up leaves at once.
		r.auth.delegate = func(ctx context.Context, _, _ string) (string, error) { return "", hang(ctx) }
		carols := r.issuer.Token(authntest.User{Name: "carol"})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := r.call(ctx, carols); status.Code(err) != codes.DeadlineExceeded || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		_, err = r.call(t.Context(), carols)
		if status.Code(err) != codes.Unavailable || time.Since(start) != 20*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// A service calls Watchword to delegate the token of its caller, and Watchword refuses the
// token. The caller learns the reason for the method that it called, renews its token, and the
// call succeeds. The call is not repeated if the service had called another service before.
func TestTheCallersTokenIsRefused(t *testing.T) {
	for _, test := range []struct {
		reason  watchwordv1.ErrorReason
		earlier bool // the relay calls another service first
		wrapped bool // the relay returns another error
		handled int
		want    string
	}{
		{reasonOf("TOKEN_STALE"), false, false, 2, "OK"},
		{reasonOf("TOKEN_EXPIRED"), false, false, 2, "OK"},
		{reasonOf("TOKEN_REVOKED"), false, false, 1, "TOKEN_REVOKED of " + relayMethod},
		{reasonOf("TOKEN_STALE"), true, false, 1, "TOKEN_STALE of "},
		{reasonOf("TOKEN_STALE"), false, true, 1, "Aborted of "},
	} {
		synctest.Test(t, func(t *testing.T) {
			users := startAuth(t)
			user, err := tokensource.Password(users.dial(t, nil), "alice", "secret")
			check(t, err)
			defer user.Close()
			r := startRelay(t, false, user.DialOptions()...)
			users.mint = func(int) string { return r.issuer.Token(alice) }
			other := startService(t).dial(t, nil, tokensource.Forward()...)
			handled, onBehalf := 0, r.handler
			r.handler = func(srv any, s grpc.ServerStream) error {
				handled++
				if test.earlier {
					if _, err := call(s.Context(), other, unaryMethod, false); err != nil {
						return err
					}
				}
				err := onBehalf(srv, s)
				if err != nil && test.wrapped {
					return status.Error(codes.Aborted, err.Error())
				}
				return err
			}
			first := ""
			r.auth.delegate = func(_ context.Context, _, subject string) (string, error) {
				if first == "" || first == subject {
					first = subject
					return "", errs.SubjectRefused(test.reason).Err()
				}
				return "delegated", nil
			}
			_, err = call(t.Context(), r.caller, relayMethod, false)
			got := name(err)
			if err != nil {
				got += " of " + errs.Method(err)
			}
			if got != test.want || handled != test.handled {
				t.Errorf("%+v: %s, with %d calls of the handler", test, got, handled)
			}
		})
	}
}

// reasonOf returns the reason with a name, such as TOKEN_STALE.
func reasonOf(name string) watchwordv1.ErrorReason {
	return watchwordv1.ErrorReason(watchwordv1.ErrorReason_value["ERROR_REASON_"+name])
}

// An error about another token, in the form in which DelegateToken or the next service sends
// such errors, never names the handler's method, so the caller does not repeat its call.
func TestOnlyTheCallersTokenRepeatsACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRelay(t, false)
		r.auth.delegate = func(context.Context, string, string) (string, error) {
			return "", refusal(codes.Unauthenticated, "TOKEN_STALE", relayMethod)
		}
		_, err := r.call(t.Context(), r.issuer.Token(alice))
		refusedBy(t, err, codes.Unauthenticated, "TOKEN_STALE", "")
		if text := status.Convert(err).Message(); !strings.Contains(text, "the service's own access token was refused") {
			t.Errorf("the message does not say whose token was refused: %q", text)
		}
		r.auth.delegate = nil
		r.next.refuses(func(string, string) error { return refusal(codes.Unauthenticated, "TOKEN_STALE", relayMethod) })
		_, err = r.call(t.Context(), r.issuer.Token(authntest.User{Name: "bob"}))
		refusedBy(t, err, codes.Unauthenticated, "TOKEN_STALE", "")
	})
}

// The relay's own token is renewed if Watchword refuses it, and the renewal needs no delegation.
func TestOwnTokenIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRelay(t, false)
		r.auth.delegate = func(_ context.Context, own, _ string) (string, error) {
			if own == "own-1" {
				return "", refusal(codes.Unauthenticated, "TOKEN_STALE", watchwordv1.AuthService_DelegateToken_FullMethodName)
			}
			return "delegated", nil
		}
		seen, err := r.call(t.Context(), r.issuer.Token(alice))
		if check(t, err); seen != "delegated" {
			t.Errorf("%q", seen)
		}
		saw(t, r.auth, "exchange:a.b.c:watchword delegate:own-1:search exchange:a.b.c:watchword delegate:own-2:search")
	})
}

// Neither the caller's token, nor the service's own token, nor a delegated token leaves the
// machine in plaintext.
func TestDelegationOverPlaintext(t *testing.T) {
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 443}
	for name, test := range map[string]struct {
		auth, next net.Addr
		source, on []tokensource.Option
		ok         bool
	}{
		"within the machine":             {nil, nil, nil, nil, true},
		"Watchword elsewhere":            {remote, nil, nil, []tokensource.Option{tokensource.WithPlaintextToOtherHosts()}, false},
		"Watchword elsewhere, allowed":   {remote, nil, []tokensource.Option{tokensource.WithPlaintextToOtherHosts()}, nil, true},
		"the service elsewhere":          {nil, remote, []tokensource.Option{tokensource.WithPlaintextToOtherHosts()}, nil, false},
		"the service elsewhere, allowed": {nil, remote, nil, []tokensource.Option{tokensource.WithPlaintextToOtherHosts()}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startRelay(t, false)
				conn := r.auth.dial(t, test.auth)
				source, err := tokensource.Workload(conn, assertion, test.source...)
				check(t, err)
				defer source.Close()
				r.handler = passOn(r.next.dial(t, test.next, tokensource.OnBehalfOf(source, conn, "search", test.on...)...), false)
				_, err = r.call(t.Context(), r.issuer.Token(alice))
				if wantsPlaintext(t, err, test.ok); !test.ok {
					saw(t, r.auth, "")
					saw(t, r.next, "")
				}
			})
		})
	}
}

// A connection to Watchword that drops call options gets neither the relay's own token nor the
// caller's.
func TestDelegationOverAConnectionThatDropsOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startRelay(t, false)
		var shown []string
		r.auth.delegate = func(_ context.Context, own, subject string) (string, error) {
			shown = append(shown, own, subject)
			return "", refusal(codes.Unauthenticated, "TOKEN_MISSING", "")
		}
		r.handler = passOn(r.next.dial(t, nil, tokensource.OnBehalfOf(r.source, deafConn{r.auth.dial(t, nil)}, "search")...), false)
		_, err := r.call(t.Context(), r.issuer.Token(alice))
		if refusedBy(t, err, codes.Unauthenticated, "TOKEN_MISSING", ""); !slices.Equal(shown, []string{"none", ""}) {
			t.Errorf("Watchword saw %q", shown)
		}
	})
}

// Close ends a delegation that waits for Watchword, and the renewal of the own token that a
// delegation waits for.
func TestCloseEndsDelegations(t *testing.T) {
	for _, renewing := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := startRelay(t, false)
			left := make(chan struct{})
			wait := func(ctx context.Context) error { defer close(left); return hang(ctx) }
			if renewing {
				r.auth.when(wait, nil)
			} else {
				r.auth.delegate = func(ctx context.Context, _, _ string) (string, error) { return "", wait(ctx) }
			}
			done := make(chan error, 1)
			go func() {
				_, err := r.call(t.Context(), r.issuer.Token(alice))
				done <- err
			}()
			synctest.Wait()
			check(t, r.source.Close())
			synctest.Wait()
			select {
			case <-left:
			default:
				t.Error("a request runs after Close")
			}
			_, err := r.call(t.Context(), r.issuer.Token(alice))
			for _, err := range []error{<-done, err} {
				if status.Code(err) != codes.Canceled {
					t.Error(err)
				}
			}
		})
	}
}
