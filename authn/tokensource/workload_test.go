package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// ExchangeToken stands in for Watchword's method, and accepts any assertion. The token for the
// audience watchword is own-3, any other access-3.
func (s *authServer) ExchangeToken(ctx context.Context, req *watchwordv1.ExchangeTokenRequest) (*watchwordv1.ExchangeTokenResponse, error) {
	asked := "exchange:" + req.GetSubjectToken()
	own := fmt.Sprint(req.GetAudience()) == "[watchword]"
	if own {
		asked += ":watchword"
	}
	pair, err := s.answer(ctx, asked, req.GetAudience(), func() error {
		if req.GetSubjectToken() == "" {
			return refusal(codes.InvalidArgument, "INVALID_REQUEST", "")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	answer := &watchwordv1.ExchangeTokenResponse{AccessToken: pair.GetAccessToken(), TokenType: "Bearer", ExpiresIn: pair.GetExpiresIn()}
	if own {
		answer.AccessToken = strings.Replace(pair.GetRefreshToken(), "refresh", "own", 1)
	}
	return answer, nil
}

// DelegateToken stands in for Watchword's method, and calls s.delegate with the call's own
// token. By default, delegated-3 is the third token.
func (s *authServer) DelegateToken(ctx context.Context, req *watchwordv1.DelegateTokenRequest) (*watchwordv1.DelegateTokenResponse, error) {
	own := tokenIn(ctx)
	s.mu.Lock()
	s.asked = append(s.asked, "delegate:"+own+":"+req.GetAudience())
	s.delegations++
	n, delegate := s.delegations, s.delegate
	s.mu.Unlock()
	raw, err := fmt.Sprintf("delegated-%d", n), error(nil)
	if delegate != nil {
		raw, err = delegate(ctx, own, req.GetSubjectToken())
	}
	if err != nil {
		return nil, err
	}
	return &watchwordv1.DelegateTokenResponse{AccessToken: raw, TokenType: "Bearer", ExpiresIn: durationpb.New(s.life)}, nil
}

// assertionFile returns a file in the place of a platform's projected token.
func assertionFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	check(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// assertion stands in for the token of a platform.
func assertion(context.Context) (string, error) { return "a.b.c", nil }

// withWorkload makes a client that signs in with an assertion, in a synctest bubble.
func withWorkload(t *testing.T, assertion tokensource.Assertion, opts ...tokensource.Option) *calling {
	t.Helper()
	return startCalling(t, func(conn grpc.ClientConnInterface) (*tokensource.Source, error) {
		return tokensource.Workload(conn, assertion, opts...)
	})
}

// A workload exchanges the newest assertion ahead of the token's expiry, and again after a
// service has refused the token.
func TestWorkload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := assertionFile(t, "\n a.b.1 \n")
		c := withWorkload(t, tokensource.File(path), tokensource.WithAudience("notes", "billing"))
		saw(t, c.auth, "")
		c.goesWith(t, "access-1")
		saw(t, c.auth, "exchange:a.b.1")
		if got := fmt.Sprint(c.auth.audience); got != "[notes billing]" {
			t.Errorf("audience %s", got)
		}
		check(t, os.WriteFile(path, []byte("a.b.2"), 0o600))
		time.Sleep(accessLife * 74 / 100)
		c.goesWith(t, "access-1")
		saw(t, c.auth, "")
		time.Sleep(accessLife * 12 / 100)
		c.goesWith(t, "access-1") // starts the renewal, and does not wait
		saw(t, c.auth, "exchange:a.b.2")
		c.service.refuses(func(method, token string) error {
			if token == "access-2" {
				return refusal(codes.Unauthenticated, "TOKEN_STALE", method)
			}
			return nil
		})
		c.goesWith(t, "access-3")
		saw(t, c.auth, "exchange:a.b.2")
	})
}

// The error of a refused assertion reaches the calls at once, with what to check. The next
// assertion is tried after a pause, even if the platform replaces the file only after a day.
func TestRefusedAssertions(t *testing.T) {
	for reason, test := range map[string]struct {
		code codes.Code
		hint string
	}{
		"ASSERTION_INVALID": {codes.Unauthenticated, "aud"},
		"ASSERTION_UNBOUND": {codes.Unauthenticated, "watchword service bind"},
		"USER_DISABLED":     {codes.PermissionDenied, "watchword service enable"},
	} {
		t.Run(reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := withWorkload(t, assertion)
				c.auth.when(always(refusal(test.code, reason, "")), nil)
				_, err := c.call(t)
				refusedBy(t, err, test.code, reason, "")
				if !strings.Contains(err.Error(), test.hint) {
					t.Errorf("%v does not say %q", err, test.hint)
				}
				c.failsWith(t, reason)
				saw(t, c.auth, "exchange:a.b.c") // the second call came in the pause
				for range 10 {
					time.Sleep(time.Hour)
					c.failsWith(t, reason)
				}
				c.auth.when(nil, nil)
				time.Sleep(time.Minute)
				c.goesWith(t, "access-1")
			})
		})
	}
}

// While the issuer's keys are away, the Source waits for as long as Watchword asks for.
func TestIssuerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := withWorkload(t, assertion)
		again := &errdetails.RetryInfo{RetryDelay: durationpb.New(40 * time.Second)}
		c.auth.when(always(refusal(codes.Unavailable, "ISSUER_UNAVAILABLE", "", again)), nil)
		c.failsWith(t, "ISSUER_UNAVAILABLE")
		c.auth.when(nil, nil)
		time.Sleep(39 * time.Second)
		c.failsWith(t, "ISSUER_UNAVAILABLE")
		saw(t, c.auth, "exchange:a.b.c")
		time.Sleep(7 * time.Second)
		c.goesWith(t, "access-1")
	})
}

// If the function that returns the assertion fails, the call gets the error, and the Source
// sends nothing.
func TestAssertionsThatFail(t *testing.T) {
	broken := errors.New("the agent is away")
	for want, assertion := range map[string]tokensource.Assertion{
		"the agent is away": func(context.Context) (string, error) { return "", broken },
		"is empty":          func(context.Context) (string, error) { return "", nil },
		"no such file":      tokensource.File(filepath.Join(t.TempDir(), "token")),
	} {
		synctest.Test(t, func(t *testing.T) {
			c := withWorkload(t, assertion)
			_, err := c.call(t)
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not say %q", err, want)
			}
			saw(t, c.auth, "")
		})
	}
}

// File reads the file each time, and returns a token or an error with the path: never a part of
// another content.
func TestFile(t *testing.T) {
	folder := t.TempDir()
	path := func(name string) string { return filepath.Join(folder, name) }
	for name, test := range map[string]struct{ content, want string }{
		"token":   {"abc.d-e.f_g", ""},
		"spaces":  {"\r\n abc.d-e.f_g\t\n\n", ""},
		"empty":   {" \n", "is empty"},
		"a key":   {"-----BEGIN PRIVATE KEY-----\nMC4CAQAw\n-----END PRIVATE KEY-----\n", "holds no JWT"},
		"two":     {"a.b.c\nd.e.f", "holds no JWT"},
		"longest": {"a.b." + strings.Repeat("c", 16<<10-4), ""},
		"longer":  {"a.b." + strings.Repeat("c", 16<<10-3), "larger than 16384 bytes"},
	} {
		check(t, os.WriteFile(path(name), []byte(test.content), 0o600))
		raw, err := tokensource.File(path(name))(t.Context())
		switch {
		case test.want == "":
			if err != nil || raw != strings.TrimSpace(test.content) {
				t.Errorf("%s: %q, %v", name, raw, err)
			}
		case err == nil || raw != "" || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path(name)) || !strings.Contains(err.Error(), "check that"):
			t.Errorf("%s: %q, %v", name, raw, err)
		case strings.Contains(err.Error(), "MC4") || strings.Contains(err.Error(), "a.b"):
			t.Errorf("the error has a part of the file: %v", err)
		}
	}
	for name, want := range map[string]string{".": "not a regular file", "missing": "no such file"} {
		if _, err := tokensource.File(path(name))(t.Context()); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path(name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMisuseOfWorkload(t *testing.T) {
	conn := new(grpc.ClientConn)
	open := filepath.Join(t.TempDir(), "open")
	check(t, os.Mkdir(open, 0o700))
	check(t, os.Chmod(open, 0o777))
	for name, make := range map[string]func() (*tokensource.Source, error){
		"no connection": func() (*tokensource.Source, error) { return tokensource.Workload(nil, assertion) },
		"no assertion":  func() (*tokensource.Source, error) { return tokensource.Workload(conn, nil) },
		"an empty audience": func() (*tokensource.Source, error) {
			return tokensource.Workload(conn, assertion, tokensource.WithAudience(""))
		},
		"a store": func() (*tokensource.Source, error) {
			return tokensource.Workload(conn, assertion, tokensource.WithStore(new(keep).store))
		},
		"no path of the token file": func() (*tokensource.Source, error) {
			return tokensource.Workload(conn, assertion, tokensource.WithTokenFile(""))
		},
		"a token file that anybody may replace": func() (*tokensource.Source, error) {
			return tokensource.Workload(conn, assertion, tokensource.WithTokenFile(filepath.Join(open, "token")))
		},
		"a token file of a user": func() (*tokensource.Source, error) {
			return tokensource.Password(conn, "alice", "secret", tokensource.WithTokenFile("token"))
		},
	} {
		if source, err := make(); status.Code(err) != codes.InvalidArgument || source != nil || authn.Reason(err) != 0 {
			t.Errorf("%s: %v, %v", name, source, err)
		}
	}
}
