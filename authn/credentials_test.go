package authn_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
)

func TestOneRenewalForAllCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t, authn.WithCredentialsAudience("notes", "billing"))
		release := make(chan struct{})
		c.auth.when(func(context.Context) error { <-release; return nil }, nil)
		all := func(want string) {
			t.Helper()
			var calls sync.WaitGroup
			for range 200 {
				calls.Go(func() {
					if token, err := call(t.Context(), c.conn, unaryMethod, false); token != want || err != nil {
						t.Errorf("%q, %v", token, err)
					}
				})
			}
			synctest.Wait()
			release <- struct{}{}
			calls.Wait()
			synctest.Wait()
		}
		all("access-1")
		saw(t, c.auth, "login")
		if got := fmt.Sprint(c.auth.audience); got != "[notes billing]" {
			t.Errorf("audience %s", got)
		}

		// Expired, and then refused at once in the hands of all.
		time.Sleep(accessLife)
		all("access-2")
		saw(t, c.auth, "refresh-1")
		c.service.refuses(func(method, token string) error {
			if token == "access-2" {
				return refusal(codes.Unauthenticated, "TOKEN_STALE", method)
			}
			return nil
		})
		all("access-3")
		saw(t, c.auth, "refresh-2")
	})
}

func TestRenewalAheadOfExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withSession(t)
		c.auth.newest = 0
		c.goesWith(t, "access-1")
		saw(t, c.auth, "refresh-0")
		time.Sleep(accessLife * 74 / 100)
		c.goesWith(t, "access-1")
		saw(t, c.auth, "")

		// One renewal, which no call waits for.
		time.Sleep(accessLife * 12 / 100)
		saw(t, c.auth, "") // nothing runs without calls
		release := make(chan struct{})
		c.auth.when(func(context.Context) error { <-release; return nil }, nil)
		for range 3 {
			c.goesWith(t, "access-1")
		}
		saw(t, c.auth, "refresh-1")
		close(release)
		synctest.Wait()
		c.goesWith(t, "access-2")
		saw(t, c.auth, "")

		// Counted from before the question: an answer that took long is used for
		// less long, and no longer than a token lives.
		time.Sleep(accessLife)
		c.auth.when(func(context.Context) error { time.Sleep(9 * time.Second); return nil }, nil)
		c.goesWith(t, "access-3")
		saw(t, c.auth, "refresh-2")
		c.auth.when(always(status.Error(codes.Unavailable, "away")), nil)
		time.Sleep(accessLife - 9*time.Second - 2*time.Second)
		c.goesWith(t, "access-3")
		time.Sleep(2 * time.Second)
		c.failsWith(t, "Unavailable")
	})
}

func TestRefusedTokens(t *testing.T) {
	const again, next, never = "made again", "a new token for the next call", "the same token for the next call"
	for _, test := range []struct {
		reason, method string // the method that the refusal names, empty: the one called
		unary, stream  string
	}{
		{"TOKEN_STALE", "", again, next},
		{"TOKEN_EXPIRED", "", again, next},
		{"TOKEN_INVALID", "", again, next},
		{"TOKEN_REVOKED", "", next, next},
		{"TOKEN_MISSING", "", never, never},
		{"AUDIENCE_MISMATCH", "", never, never},
		{"ROLE_REQUIRED", "", never, never},
		{"TOKEN_STALE", "/other.v1.Other/Method", never, never},
		{"TOKEN_EXPIRED", "none", never, never},
		{"TOKEN_INVALID", unaryMethod + "s", never, never},
	} {
		for _, kind := range []struct {
			method, want string
			stream       bool
		}{{unaryMethod, test.unary, false}, {streamMethod, test.stream, true}} {
			t.Run(test.reason+" "+test.method+kind.method, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := withPassword(t)
					c.service.refuses(func(method, token string) error {
						switch {
						case token != "access-1":
							return nil
						case test.method == "none":
							method = ""
						case test.method != "":
							method = test.method
						}
						return refusal(codes.Unauthenticated, test.reason, method)
					})
					_, err := call(t.Context(), c.conn, kind.method, kind.stream)
					switch kind.want {
					case again:
						if err != nil {
							t.Error(err)
						}
						saw(t, c.service, "access-1 access-2")
						saw(t, c.auth, "login refresh-1")
					case next:
						if name(err) != test.reason {
							t.Error(err)
						}
						saw(t, c.service, "access-1")
						saw(t, c.auth, "login")
						c.goesWith(t, "access-2")
						saw(t, c.auth, "refresh-1")
					default:
						if name(err) != test.reason {
							t.Error(err)
						}
						c.failsWith(t, test.reason)
						saw(t, c.service, "access-1 access-1")
						saw(t, c.auth, "login")
					}
				})
			})
		}
	}
}

// A service that likes no token must not make its callers flood Watchword.
func TestServiceThatRefusesEveryToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		c.service.refuses(func(method, _ string) error { return refusal(codes.Unauthenticated, "TOKEN_INVALID", method) })
		c.failsWith(t, "TOKEN_INVALID")
		saw(t, c.service, "access-1 access-2") // once more and no more
		for range 60 * 10 {
			c.failsWith(t, "TOKEN_INVALID")
			time.Sleep(100 * time.Millisecond)
		}
		if asked := strings.Fields(c.auth.took()); len(asked) < 8 || len(asked) > 12 {
			t.Errorf("asked %d times in a minute", len(asked))
		}
		time.Sleep(time.Minute)
		c.service.refuses(nil)
		if _, err := c.call(t); err != nil {
			t.Error(err)
		}
	})
}

func TestLostAnswers(t *testing.T) {
	for name, lost := range map[string]func(context.Context) error{
		"cut off": always(status.Error(codes.Unavailable, "cut off")),
		"silence": hang,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := withPassword(t)
				c.goesWith(t, "access-1")
				time.Sleep(accessLife * 9 / 10)
				c.auth.when(nil, lost)
				c.goesWith(t, "access-1") // begins what gets lost
				time.Sleep(11 * time.Second)
				c.auth.when(nil, nil)
				saw(t, c.auth, "login refresh-1")
				c.goesWith(t, "access-1") // begins it again
				c.goesWith(t, "access-2")
				saw(t, c.auth, "refresh-1")
				time.Sleep(accessLife)
				c.goesWith(t, "access-3")
				saw(t, c.auth, "refresh-2")
			})
		})
	}
}

func TestServerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		c.goesWith(t, "access-1")
		c.auth.when(always(status.Error(codes.Unavailable, "away")), nil)
		time.Sleep(accessLife * 3 / 4)
		for range 70 * 10 { // until just before its end
			c.goesWith(t, "access-1")
			time.Sleep(100 * time.Millisecond)
		}
		if asked := strings.Fields(c.auth.took()); len(asked) < 8 || len(asked) > 25 {
			t.Errorf("asked %d times in 70 seconds", len(asked))
		}
		time.Sleep(10 * time.Second)
		for range 60 * 10 {
			began := time.Now()
			c.failsWith(t, "Unavailable")
			if waited := time.Since(began); waited > time.Millisecond {
				t.Fatalf("a call waited %v for nothing", waited)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if asked := strings.Fields(c.auth.took()); len(asked) < 6 || len(asked) > 15 {
			t.Errorf("asked %d times in a minute", len(asked))
		}
		c.auth.when(nil, nil)
		time.Sleep(10 * time.Second)
		c.goesWith(t, "access-2")
	})
}

// Nobody is guessing, so nobody shall be taken for one who is.
func TestRefusedLogins(t *testing.T) {
	for _, test := range []struct {
		refused error
		most    int // logins in an hour
	}{
		{refusal(codes.Unauthenticated, "INVALID_CREDENTIALS", ""), 30},
		{refusal(codes.PermissionDenied, "USER_DISABLED", ""), 30},
		{refusal(codes.InvalidArgument, "INVALID_REQUEST", ""), 30},
		{refusal(codes.ResourceExhausted, "TOO_MANY_ATTEMPTS", "", &errdetails.RetryInfo{RetryDelay: durationpb.New(2 * time.Minute)}), 30},
		{refusal(codes.ResourceExhausted, "OVERLOADED", "", &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Hour)}), 13},
	} {
		t.Run(name(test.refused), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := withPassword(t)
				c.auth.when(always(test.refused), nil)
				for range 3600 {
					c.failsWith(t, name(test.refused))
					time.Sleep(time.Second)
				}
				if asked := strings.Fields(c.auth.took()); len(asked) < 10 || len(asked) > test.most {
					t.Errorf("%d logins in an hour", len(asked))
				}
				c.auth.when(nil, nil)
				time.Sleep(8 * time.Minute)
				c.goesWith(t, "access-1")
			})
		})
	}
}

func TestSessionIsOver(t *testing.T) {
	for _, reason := range []string{"REFRESH_TOKEN_INVALID", "REFRESH_TOKEN_EXPIRED", "REFRESH_TOKEN_REUSED", "SESSION_REVOKED"} {
		refused := always(refusal(codes.Unauthenticated, reason, ""))
		t.Run("password "+reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := withPassword(t)
				c.goesWith(t, "access-1")
				time.Sleep(accessLife)
				c.auth.when(func(ctx context.Context) error {
					c.auth.when(nil, nil)
					return refused(ctx)
				}, nil)
				c.goesWith(t, "access-2")
				saw(t, c.auth, "login refresh-1 login")
				time.Sleep(accessLife)
				c.goesWith(t, "access-3")
				saw(t, c.auth, "refresh-2")
			})
		})
		t.Run("refresh token "+reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := withSession(t)
				c.goesWith(t, "access-1")
				time.Sleep(accessLife * 9 / 10)
				c.auth.when(refused, nil)
				c.goesWith(t, "access-1")
				for range 10 {
					c.failsWith(t, reason)
					time.Sleep(time.Hour)
				}
				saw(t, c.auth, "refresh-0 refresh-1")
				c.Close()
				c.failsWith(t, "Canceled")
			})
		})
	}
}

func TestTokenRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		c.service.refuses(func(method, token string) error {
			if token == "access-1" {
				return refusal(codes.Unauthenticated, "TOKEN_REVOKED", method)
			}
			return nil
		})
		c.failsWith(t, "TOKEN_REVOKED")
		c.auth.when(func(context.Context) error {
			c.auth.when(nil, nil)
			return refusal(codes.Unauthenticated, "SESSION_REVOKED", "")
		}, nil)
		c.goesWith(t, "access-2")
		saw(t, c.auth, "login refresh-1 login")
	})
}

func TestTokenStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := new(keep)
		c := withSession(t, authn.WithTokenStore(k.store))
		c.service.refuses(func(_, token string) error { // before any call goes out with what came along
			if got := k.took(); got != strings.Replace(token, "access", "refresh", 1) {
				t.Errorf("%s is used, and stored is %q", token, got)
			}
			return nil
		})
		for n := range 3 {
			c.goesWith(t, access(n+1))
			time.Sleep(accessLife)
		}
		c.service.refuses(nil)
		saw(t, c.auth, "refresh-0 refresh-1 refresh-2")

		// What could not be stored is not spent.
		broken := errors.New("the disk is full")
		k.fails(broken)
		c.goesWith(t, "access-4")
		saw(t, k, "refresh-4")
		saw(t, c.auth, "refresh-3")
		time.Sleep(accessLife)
		_, err := c.call(t)
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the disk is full") {
			t.Error(err)
		}
		saw(t, k, "refresh-4")
		saw(t, c.auth, "")
		k.fails(nil)
		time.Sleep(time.Second)
		c.goesWith(t, "access-5")
		saw(t, k, "refresh-4 refresh-5")
		saw(t, c.auth, "refresh-4")
	})
}

func TestCallersThatGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		release := make(chan struct{})
		c.auth.when(func(context.Context) error { <-release; return nil }, nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 3)
		for _, ctx := range []context.Context{ctx, timeout(t, time.Second), t.Context()} {
			go func() {
				_, err := call(ctx, c.conn, unaryMethod, false)
				ended <- err
			}()
			synctest.Wait() // the one that will give up begins the login
		}
		cancel()
		if err := <-ended; status.Code(err) != codes.Canceled {
			t.Error(err)
		}
		if err := <-ended; status.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		release <- struct{}{}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		saw(t, c.auth, "login")
		saw(t, c.service, "access-1")
	})
}

func timeout(t *testing.T, after time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), after)
	t.Cleanup(cancel)
	return ctx
}

func TestCloseOfCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		c.auth.when(hang, nil)
		waits := make(chan error)
		go func() {
			_, err := call(t.Context(), c.conn, unaryMethod, false)
			waits <- err
		}()
		synctest.Wait()
		began := time.Now()
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, err := range []error{<-waits, last(c.call(t)), last(call(t.Context(), c.conn, streamMethod, true))} {
			if status.Code(err) != codes.Canceled || !strings.Contains(err.Error(), "closed") {
				t.Error(err)
			}
		}
		if waited := time.Since(began); waited > time.Second {
			t.Errorf("it took %v", waited)
		}
		saw(t, c.auth, "login")
		saw(t, c.service, "")

		// A token that is good is not used any more either.
		c = withPassword(t)
		c.goesWith(t, "access-1")
		c.Close()
		c.failsWith(t, "Canceled")
	})
}

func last(_ string, err error) error { return err }

func TestMisusedCredentials(t *testing.T) {
	conn := startAuth(t).dial(t, nil)
	for name, err := range map[string]error{
		"no connection":       second(authn.NewPasswordCredentials(nil, "alice", "secret")),
		"no username":         second(authn.NewPasswordCredentials(conn, "", "secret")),
		"no password":         second(authn.NewPasswordCredentials(conn, "alice", "")),
		"no refresh token":    second(authn.NewRefreshCredentials(conn, "")),
		"refresh, no conn":    second(authn.NewRefreshCredentials(nil, "refresh-0")),
		"an audience is lost": second(authn.NewRefreshCredentials(conn, "refresh-0", authn.WithCredentialsAudience("a", ""))),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second(_ *authn.Credentials, err error) error { return err }

// Mistakes that would end in a deadlock, or in a call of two minds, are told.
func TestMisusedConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth, service := startAuth(t), startService(t)
		through := new(laterConn)
		creds, err := authn.NewPasswordCredentials(through, "alice", "secret")
		check(t, err)
		defer creds.Close()
		through.ClientConnInterface = auth.dial(t, nil, creds.DialOptions()...)
		_, err = call(t.Context(), service.dial(t, nil, creds.DialOptions()...), unaryMethod, false)
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "very credentials") {
			t.Error(err)
		}
		saw(t, auth, "")
		saw(t, service, "")

		c := withPassword(t)
		_, err = call(bearing(t.Context(), "Bearer of-its-own"), c.conn, unaryMethod, false)
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "of its own") {
			t.Error(err)
		}
		saw(t, c.service, "")
		saw(t, c.auth, "")
	})
}

// laterConn is a connection that is made after who uses it.
type laterConn struct{ grpc.ClientConnInterface }

// What the server answers must be whole to be used.
func TestAnswersThatLackSomething(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		c.auth.life = 0
		c.failsWith(t, "Internal")
		c.auth.life = accessLife
		time.Sleep(time.Second)
		if _, err := c.call(t); err != nil {
			t.Error(err)
		}
	})
}

func TestNothingPrintsASecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		log := slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c := withPassword(t, authn.WithCredentialsLogger(log))
		s := withSession(t, authn.WithCredentialsLogger(log), authn.WithTokenStore(func(context.Context, string) error { return errors.New("broken") }))
		c.goesWith(t, "access-1")
		s.goesWith(t, "access-1")
		var shown strings.Builder
		for _, creds := range []*authn.Credentials{c.Credentials, s.Credentials} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%t"} {
				fmt.Fprintf(&shown, verb+" "+verb+"\n", creds, struct{ *authn.Credentials }{creds})
			}
			//lint:ignore SA9005 that nothing comes out is what is tested
			raw, err := json.Marshal(creds)
			shown.Write(raw)
			if err != nil {
				t.Error(err)
			}
			log.Info("shown", "it", creds, "in", struct{ C *authn.Credentials }{creds})
		}
		time.Sleep(accessLife)
		refused := always(refusal(codes.Unauthenticated, "SESSION_REVOKED", ""))
		c.auth.when(refused, nil)
		c.failsWith(t, "SESSION_REVOKED")
		for _, secret := range []string{"secret", "access-", "refresh-"} {
			if strings.Contains(shown.String(), secret) || strings.Contains(logged.String(), secret) {
				t.Errorf("%q in:\n%s\n%s", secret, shown.String(), logged.String())
			}
		}
		if !strings.Contains(shown.String(), `credentials of "alice"`) || !strings.Contains(logged.String(), "no new access token") {
			t.Errorf("%s\n%s", shown.String(), logged.String())
		}
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
