// Package sessiontest gives tests a server without gRPC: a real database with the user alice, a
// feed of events, sessions, logins, and the server's own verifier. Passwords are cheap to hash.
// Only tests import the package.
package sessiontest

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/throttle"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/user"
)

// Every [World] uses these settings of sessions.
const (
	Grace    = 10 * time.Second
	Idle     = 30 * time.Hour // the default of a server is 30 days; in a synctest bubble each hour takes work
	Lifetime = 90 * time.Hour
	PerUser  = 1000 // the largest number of sessions of one user
)

// Password is the password of the user alice.
const Password = "open sesame, please"

// [World.Verdict] returns Good for a valid token, and Revoked for a token of an ended session.
const (
	Good    = watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	Revoked = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED
)

// Never is a duration longer than any test.
const Never = 100_000 * time.Hour

// World is a server without gRPC. The feed of a World runs, and everything is closed at the end
// of the test. A World issues tokens for the services "internal" and "billing", and for
// caller.AdminAudience.
type World struct {
	Store    *store.Store
	Feed     *feed.Feed
	Users    *user.Users
	Audit    *audit.Log
	Sessions *session.Sessions
	Logins   *login.Service
	Verifier *authn.Verifier
	Tokens   *issuer.Issuer
	Keyring  *issuer.Keyring
	// Elsewhere changes keys as another process does: Feed and Verifier learn of the change later.
	Elsewhere *issuer.Keyring
	Alice     *store.User // the user alice, with the role writer

	uri   string
	pool  *password.Pool
	parts session.Dependencies
}

// New makes a World, a server without gRPC, on a SQLite database.
func New(t *testing.T) *World { return On(t, storetest.SQLite(t), func(*feed.Feed) {}) }

// Slow makes a world for a synctest bubble in which days pass. The feed reads the
// database only after a change, and sends one heartbeat a minute, so that a day takes
// little work.
func Slow(t *testing.T, settings ...Setting) *World {
	return On(t, storetest.SQLite(t), func(f *feed.Feed) { f.Pace(Never, 55*time.Second) }, settings...)
}

// EachEngine runs a test in a world on each kind of database.
func EachEngine(t *testing.T, test func(t *testing.T, w *World), settings ...Setting) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		test(t, On(t, new(t), func(*feed.Feed) {}, settings...))
	})
}

// A Setting changes a rule of a world's sessions.
type Setting func(*session.Config)

// Repeats sets in how many successive generations a client can repeat a refresh token.
func Repeats(n int) Setting { return func(c *session.Config) { c.Repeats = n } }

// On makes a World on a database that has its schema and nothing else. On calls prepare before
// the feed runs.
func On(t *testing.T, uri string, prepare func(*feed.Feed), settings ...Setting) *World {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &World{uri: uri}
	var err error
	check := func() {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.Store, err = store.Open(ctx, uri)
	check()
	master, err := seal.Create(filepath.Join(t.TempDir(), "master"))
	check()
	err = feed.Direct(w.Store).Write(ctx, func(tx *feed.Tx) error {
		return errors.Join(issuer.Setup(tx.Tx, master, token.EdDSA), session.SetupMAC(tx.Tx, master), tx.RaiseMaxLifetime(5*time.Minute))
	})
	check()
	keys := issuer.NewKeySet(master, slog.New(slog.DiscardHandler))
	w.Feed, err = feed.Open(ctx, w.Store, feed.Origin{Issuer: "https://auth.test", DatabaseID: "database", Keys: keys.Read}, slog.New(slog.DiscardHandler))
	check()
	prepare(w.Feed)
	var running sync.WaitGroup
	running.Go(func() { w.Feed.Run(ctx) })
	tokens := issuer.New(w.Store, keys, "https://auth.test", "", 5*time.Minute)
	pool := password.NewPool(password.Config{Params: password.Params{Memory: 64, Time: 1, Threads: 1}})
	w.Audit = audit.New(w.Store, slog.New(slog.DiscardHandler))
	w.Users = user.New(w.Store, w.Feed, pool, w.Audit)
	w.Tokens, w.Keyring = tokens, issuer.NewKeyring(w.Store, w.Feed, keys, w.Audit)
	w.Elsewhere = issuer.NewKeyring(w.Store, feed.Direct(w.Store), issuer.NewKeySet(master, slog.New(slog.DiscardHandler)), w.Audit)
	w.pool, w.parts = pool, session.Dependencies{Store: w.Store, Feed: w.Feed, Issuer: tokens, Users: w.Users, Audit: w.Audit, Master: master}
	w.Sessions, w.Logins = w.open(t, settings)
	w.Verifier, err = authn.NewVerifier(ctx, w.Feed.Hub().Conn(), authn.WithAudience("internal", "billing", caller.AdminAudience),
		authn.WithLogger(slog.New(slog.DiscardHandler)))
	check()
	t.Cleanup(func() {
		closed := w.Verifier.Close()
		cancel()
		running.Wait()
		if err := errors.Join(closed, w.Store.Close()); err != nil {
			t.Error(err)
		}
	})
	w.Alice, err = user.New(w.Store, feed.Direct(w.Store), pool, w.Audit).Create(ctx, caller.AtCommandLine, "alice", user.Roles{"writer"}, Parse(t, Password))
	check()
	return w
}

// Service makes a service account with the given name.
func (w *World) Service(t *testing.T, name user.Name) *store.User {
	t.Helper()
	if err := store.Finish(t.Context(), w.uri, ""); err != nil {
		t.Fatal(err)
	}
	row, err := w.Users.CreateService(t.Context(), caller.AtCommandLine, user.Service{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// Bounded returns the sessions and logins of a server that gives one user at most
// perUser sessions.
func (w *World) Bounded(t *testing.T, perUser int) (*session.Sessions, *login.Service) {
	t.Helper()
	return w.open(t, []Setting{func(c *session.Config) { c.PerUser = perUser }})
}

// open returns the sessions and logins of a server with the given settings.
func (w *World) open(t *testing.T, settings []Setting) (*session.Sessions, *login.Service) {
	t.Helper()
	rules := session.Config{
		Audience: []string{"internal", "billing"}, Lifetimes: session.Lifetimes{Idle: session.IdleTTL(Idle), Max: session.MaxTTL(Lifetime)}, Grace: Grace,
		PerUser: PerUser, Repeats: session.DefaultRepeats,
	}
	for _, set := range settings {
		set(&rules)
	}
	sessions, err := session.Open(context.Background(), rules, w.parts)
	if err != nil {
		t.Fatal(err)
	}
	return sessions, w.NewLogins(t, sessions, w.pool)
}

// NewLogins returns a login service that delays no test: 1000 tries are free.
func (w *World) NewLogins(t *testing.T, sessions *session.Sessions, pool *password.Pool) *login.Service {
	t.Helper()
	logins, err := login.New(w.Store, w.Feed, sessions, pool, login.Limits{Limits: throttle.Limits{FreeTries: 1000, LongestDelay: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	return logins
}

// Parse returns a text as a password.
func Parse(t *testing.T, text string) password.Password {
	t.Helper()
	p, err := password.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Login logs the user alice in, and returns the tokens of the session.
func (w *World) Login(t *testing.T) *session.Tokens {
	t.Helper()
	tokens, err := w.Logins.Login(context.Background(), "alice", Parse(t, Password), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// Refresh spends a refresh token, and returns the new tokens.
func (w *World) Refresh(t *testing.T, refreshToken string) *session.Tokens {
	t.Helper()
	tokens, err := w.Sessions.Refresh(context.Background(), refreshToken, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// Refused calls Refresh with a refresh token, and fails the test unless Refresh returns
// the error want.
func (w *World) Refused(t *testing.T, refreshToken string, want error) {
	t.Helper()
	if _, err := w.Sessions.Refresh(context.Background(), refreshToken, nil); !errors.Is(err, want) {
		t.Fatalf("Refresh: %v, want %v", err, want)
	}
}

// Verdict returns why the server's own verifier refuses an access token, or [Good].
func (w *World) Verdict(access string) watchwordv1.ErrorReason {
	_, err := w.Verifier.Verify(context.Background(), access)
	return authn.Reason(err)
}

// WantVerdict fails the test unless the server's own verifier returns want for an
// access token: the reason of a refusal, or [Good].
func (w *World) WantVerdict(t *testing.T, access string, want watchwordv1.ErrorReason) {
	t.Helper()
	if got := w.Verdict(access); got != want {
		t.Fatalf("Verify: %v, want %v", got, want)
	}
}

// WantEnded fails the test unless a session has ended: the verifier refuses its access
// token, and Refresh refuses its refresh token. what names the session in failures.
func (w *World) WantEnded(t *testing.T, what string, tokens *session.Tokens) {
	t.Helper()
	if got := w.Verdict(tokens.Access); got != Revoked {
		t.Errorf("%s: Verify: %v", what, got)
	}
	if _, err := w.Sessions.Refresh(context.Background(), tokens.Refresh, nil); !errors.Is(err, session.ErrRevoked) {
		t.Errorf("%s: Refresh: %v", what, err)
	}
}
