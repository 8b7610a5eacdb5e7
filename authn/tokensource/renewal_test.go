package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn/tokensource"
)

func TestOneRenewalForAllCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t, tokensource.WithAudience("notes", "billing"))
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

		// The token expires; the next token is refused in many calls at once.
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

		// One renewal runs, and no call waits for the renewal.
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

		// A token's life counts from the start of the request, so after a slow answer the
		// token is used for a shorter time.
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

func TestLostAnswers(t *testing.T) {
	for asked, lost := range map[string]func(context.Context) error{
		"login refresh-1":           always(status.Error(codes.Unavailable, "cut off")),
		"login refresh-1 refresh-1": hang,
	} {
		t.Run(asked, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := withPassword(t)
				c.goesWith(t, "access-1")
				time.Sleep(accessLife * 9 / 10)
				c.auth.when(nil, lost)
				c.goesWith(t, "access-1") // starts the renewal with the lost answer
				time.Sleep(21 * time.Second)
				c.auth.when(nil, nil)
				saw(t, c.auth, asked)
				c.goesWith(t, "access-1") // starts the renewal again
				c.goesWith(t, "access-2")
				saw(t, c.auth, "refresh-1")
				time.Sleep(accessLife)
				c.goesWith(t, "access-3")
				saw(t, c.auth, "refresh-2")
			})
		})
	}
}

// If the stream of a renewal hangs, the renewal goes on by another stream. If the other stream
// hangs too, every waiting call gets an error that says what the call was waiting for.
func TestRenewalsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		c.auth.when(func(ctx context.Context) error {
			c.auth.when(nil, nil)
			return hang(ctx)
		}, nil)
		began := time.Now()
		c.goesWith(t, "access-1")
		saw(t, c.auth, "login login")
		if waited := time.Since(began); waited != 10*time.Second {
			t.Errorf("the call waited for %v", waited)
		}

		c.auth.when(hang, nil)
		time.Sleep(accessLife)
		for _, want := range []struct {
			within time.Duration
			code   codes.Code
			text   string
		}{
			{time.Second, codes.DeadlineExceeded, "waiting for an access token from Watchword"},
			{time.Minute, codes.Unavailable, "no answer from Watchword"},
		} {
			_, err := call(timeout(t, want.within), c.conn, unaryMethod, false)
			if status.Code(err) != want.code || !strings.Contains(err.Error(), want.text) {
				t.Errorf("within %v: %v", want.within, err)
			}
		}
	})
}

func TestServerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		c.goesWith(t, "access-1")
		c.auth.when(always(status.Error(codes.Unavailable, "away")), nil)
		time.Sleep(accessLife * 3 / 4)
		for range 70 * 10 { // until just before the access token expires
			c.goesWith(t, "access-1")
			time.Sleep(100 * time.Millisecond)
		}
		if asked := strings.Fields(c.auth.sinceLast()); len(asked) < 8 || len(asked) > 25 {
			t.Errorf("%d requests in 70 seconds", len(asked))
		}
		time.Sleep(10 * time.Second)
		for range 60 * 10 {
			began := time.Now()
			c.failsWith(t, "Unavailable")
			if waited := time.Since(began); waited > time.Millisecond {
				t.Fatalf("a call waited %v, want no wait", waited)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if asked := strings.Fields(c.auth.sinceLast()); len(asked) < 6 || len(asked) > 15 {
			t.Errorf("%d requests in a minute", len(asked))
		}
		c.auth.when(nil, nil)
		time.Sleep(10 * time.Second)
		c.goesWith(t, "access-2")
	})
}

// After a refused password the source waits longer each time: a program with an old
// password must not look like an attacker that guesses passwords.
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
				if asked := strings.Fields(c.auth.sinceLast()); len(asked) < 10 || len(asked) > test.most {
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
				saw(t, c.auth, "login refresh-1 login-after-refresh-1")
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

// While the source logs in again, calls use the old session's token, unless Watchword's
// error shows that the token is revoked with its session.
func TestCallsWhileTheSessionBeginsAnew(t *testing.T) {
	for reason, during := range map[string]string{
		"REFRESH_TOKEN_INVALID": "access-1",
		"REFRESH_TOKEN_EXPIRED": "access-1",
		"REFRESH_TOKEN_REUSED":  "access-2",
		"SESSION_REVOKED":       "access-2",
	} {
		t.Run(reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := withPassword(t)
				c.goesWith(t, "access-1")
				time.Sleep(accessLife * 9 / 10)
				release := make(chan struct{})
				c.auth.when(func(context.Context) error {
					c.auth.when(func(context.Context) error { <-release; return nil }, nil)
					return refusal(codes.Unauthenticated, reason, "")
				}, nil)
				c.goesWith(t, "access-1") // starts the renewal
				saw(t, c.auth, "login refresh-1 login-after-refresh-1")
				var calls sync.WaitGroup
				calls.Go(func() {
					if token, err := call(t.Context(), c.conn, unaryMethod, false); token != during || err != nil {
						t.Errorf("%q, %v; want %s", token, err, during)
					}
				})
				synctest.Wait()
				close(release)
				calls.Wait()
				synctest.Wait()
				c.goesWith(t, "access-2")
			})
		})
	}
}

func TestTokenStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := new(keep)
		c := withSession(t, tokensource.WithStore(k.store))
		c.service.refuses(func(_, token string) error { // runs before any call with the new access token
			if got := k.sinceLast(); got != strings.Replace(token, "access", "refresh", 1) {
				t.Errorf("the call has %s, and the store has %q", token, got)
			}
			return nil
		})
		for n := range 3 {
			c.goesWith(t, access(n+1))
			time.Sleep(accessLife)
		}
		c.service.refuses(nil)
		saw(t, c.auth, "refresh-0 refresh-1 refresh-2")

		// A refresh token that the store has not saved is not sent.
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

// An incomplete answer of the server is an error.
func TestIncompleteAnswers(t *testing.T) {
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
