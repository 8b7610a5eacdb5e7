package tokensource_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn/tokensource"
)

func TestRefusedTokens(t *testing.T) {
	const again, next, never = "made again", "a new token for the next call", "the same token for the next call"
	for _, test := range []struct {
		reason, method string // the method named in the refusal; empty: the called method
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

// A service that refuses every token must not make its callers flood Watchword.
func TestServiceThatRefusesEveryToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		c.service.refuses(func(method, _ string) error { return refusal(codes.Unauthenticated, "TOKEN_INVALID", method) })
		c.failsWith(t, "TOKEN_INVALID")
		saw(t, c.service, "access-1 access-2") // the call is sent again once
		for range 60 * 10 {
			c.failsWith(t, "TOKEN_INVALID")
			time.Sleep(100 * time.Millisecond)
		}
		if asked := strings.Fields(c.auth.sinceLast()); len(asked) < 8 || len(asked) > 12 {
			t.Errorf("%d requests in a minute", len(asked))
		}
		time.Sleep(time.Minute)
		c.service.refuses(nil)
		if _, err := c.call(t); err != nil {
			t.Error(err)
		}
	})
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
		saw(t, c.auth, "login refresh-1 login-after-refresh-1")
	})
}

// Unary calls, streams, callers of Token and refusals run at once, and then Close: for the
// race detector.
func TestConcurrentUse(t *testing.T) {
	auth, service := startAuth(t), startService(t)
	source, err := tokensource.Password(auth.dial(t, nil), "alice", "secret")
	check(t, err)
	var refused sync.Map // the number of calls with each token
	service.refuses(func(method, token string) error {
		n, _ := refused.LoadOrStore(token, new(atomic.Int32))
		if n.(*atomic.Int32).Add(1) > 20 {
			return refusal(codes.Unauthenticated, "TOKEN_STALE", method)
		}
		return nil
	})
	conn := service.dial(t, nil, source.DialOptions()...)
	var callers sync.WaitGroup
	for n := range 8 {
		callers.Go(func() {
			for range 30 {
				_, err := call(t.Context(), conn, unaryMethod, n%2 == 0)
				if got := name(err); err != nil && got != "TOKEN_STALE" {
					t.Error(err)
				}
				if token, err := source.Token(t.Context()); token == "" || err != nil {
					t.Errorf("%q, %v", token, err)
				}
			}
		})
	}
	callers.Wait()
	for range 4 {
		callers.Go(func() { _, _ = call(t.Context(), conn, unaryMethod, false) })
		callers.Go(func() { source.Close() })
	}
	callers.Wait()
	if _, err := source.Token(t.Context()); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
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
			synctest.Wait() // the first call starts the login
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

func TestClose(t *testing.T) {
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
			t.Errorf("Close took %v", waited)
		}
		saw(t, c.auth, "login")
		saw(t, c.service, "")

		// After Close a good token is not used.
		c = withPassword(t)
		c.goesWith(t, "access-1")
		c.Close()
		c.failsWith(t, "Canceled")
	})
}

// A store function that ignores its context delays Close, and delays no call.
func TestCloseWhileTheStoreHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		c := withPassword(t, tokensource.WithStore(func(context.Context, string) error { <-release; return nil }))
		waits, closed := make(chan error, 1), make(chan struct{})
		go func() { waits <- last(call(t.Context(), c.conn, unaryMethod, false)) }()
		synctest.Wait()
		go func() {
			defer close(closed)
			c.Close()
		}()
		synctest.Wait()
		began := time.Now()
		c.failsWith(t, "Canceled")
		if waited := time.Since(began); waited > 0 {
			t.Errorf("a call waited %v", waited)
		}
		close(release)
		<-closed
		if err := <-waits; status.Code(err) != codes.Canceled {
			t.Error(err)
		}
		saw(t, c.service, "")
	})
}

func last(_ string, err error) error { return err }

func TestMisuse(t *testing.T) {
	conn := startAuth(t).dial(t, nil)
	for name, err := range map[string]error{
		"no connection":     second(tokensource.Password(nil, "alice", "secret")),
		"no username":       second(tokensource.Password(conn, "", "secret")),
		"no password":       second(tokensource.Password(conn, "alice", "")),
		"no refresh token":  second(tokensource.Refresh(conn, "")),
		"refresh, no conn":  second(tokensource.Refresh(nil, "refresh-0")),
		"an empty audience": second(tokensource.Refresh(conn, "refresh-0", tokensource.WithAudience("a", ""))),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second(_ *tokensource.Source, err error) error { return err }

// Token returns the same token that a call carries.
func TestToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withPassword(t)
		wants := func(want string) {
			t.Helper()
			if token, err := c.Token(t.Context()); token != want || err != nil {
				t.Fatalf("%q, %v; want %s", token, err, want)
			}
		}
		wants("access-1")
		c.goesWith(t, "access-1")
		time.Sleep(accessLife)
		wants("access-2")
		saw(t, c.auth, "login refresh-1")
		time.Sleep(accessLife)
		c.auth.when(hang, nil)
		if _, err := c.Token(timeout(t, time.Second)); status.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		c.Close()
		if token, err := c.Token(t.Context()); token != "" || status.Code(err) != codes.Canceled {
			t.Errorf("%q, %v", token, err)
		}
	})
}

// A store function that calls Token gets an error, and no deadlock.
func TestStoreThatAsksForAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var source *tokensource.Source
		var got error
		c := withPassword(t, tokensource.WithStore(func(ctx context.Context, _ string) error {
			_, got = source.Token(ctx)
			return nil
		}))
		source = c.Source
		c.goesWith(t, "access-1")
		if status.Code(got) != codes.Internal {
			t.Error(got)
		}
	})
}

// A call fails with an error if the connection to Watchword itself waits for a token of the
// Source, or if the call has two tokens.
func TestMisusedConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth, service := startAuth(t), startService(t)
		through := new(laterConn)
		source, err := tokensource.Password(through, "alice", "secret")
		check(t, err)
		defer source.Close()
		through.ClientConnInterface = auth.dial(t, nil, source.DialOptions()...)
		_, err = call(t.Context(), service.dial(t, nil, source.DialOptions()...), unaryMethod, false)
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "own connection") {
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

// laterConn is a connection made after its source.
type laterConn struct{ grpc.ClientConnInterface }

func TestNothingPrintsASecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		log := slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c := withPassword(t, tokensource.WithLogger(log))
		s := withSession(t, tokensource.WithLogger(log), tokensource.WithStore(func(context.Context, string) error { return errors.New("broken") }))
		w := withWorkload(t, tokensource.File(assertionFile(t, "assertion.b.c")), tokensource.WithLogger(log),
			tokensource.WithTokenFile(filepath.Join(t.TempDir(), "missing", "token")))
		for _, c := range []*calling{c, s, w} {
			c.goesWith(t, "access-1")
		}
		var shown strings.Builder
		for _, creds := range []*tokensource.Source{c.Source, s.Source, w.Source} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%t"} {
				fmt.Fprintf(&shown, verb+" "+verb+"\n", creds, struct{ *tokensource.Source }{creds})
			}
			//lint:ignore SA9005 the test is that the output is empty
			raw, err := json.Marshal(creds)
			shown.Write(raw)
			if err != nil {
				t.Error(err)
			}
			log.Info("shown", "it", creds, "in", struct{ C *tokensource.Source }{creds})
		}
		time.Sleep(accessLife)
		refused := always(refusal(codes.Unauthenticated, "SESSION_REVOKED", ""))
		c.auth.when(refused, nil)
		c.failsWith(t, "SESSION_REVOKED")
		w.auth.when(always(refusal(codes.Unauthenticated, "ASSERTION_INVALID", "")), nil)
		time.Sleep(accessLife)
		w.failsWith(t, "ASSERTION_INVALID")
		for _, secret := range []string{"secret", "access-", "refresh-", "assertion."} {
			if strings.Contains(shown.String(), secret) || strings.Contains(logged.String(), secret) {
				t.Errorf("the secret %q appears in:\n%s\n%s", secret, shown.String(), logged.String())
			}
		}
		if !strings.Contains(shown.String(), `credentials of "alice"`) || !strings.Contains(logged.String(), "no new access token") {
			t.Errorf("%s\n%s", shown.String(), logged.String())
		}
	})
}
