package session_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/token"
	"github.com/watchword-auth/watchword/internal/user"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

const (
	grace    = 10 * time.Second
	idle     = 30 * 24 * time.Hour
	lifetime = 90 * 24 * time.Hour
	sesame   = "open sesame, please"
)

// world is everything below the gRPC edge, with a real database and a real
// verifier, and cheap passwords.
type world struct {
	store    *store.Store
	feed     *feed.Feed
	users    *user.Users
	audit    *audit.Log
	sessions *session.Sessions
	logins   *login.Service
	verifier *authn.Verifier
	alice    *store.User
}

func newWorld(t *testing.T) *world { return worldOn(t, storetest.SQLite(t)) }

func worldOn(t *testing.T, uri string) *world {
	t.Helper()
	return makeWorld(t, uri, func(*feed.Feed) {})
}

// eachEngine runs a test on both kinds of database.
func eachEngine(t *testing.T, test func(t *testing.T, w *world)) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) { test(t, worldOn(t, new(t))) })
}

// never is longer than any test.
const never = 100_000 * time.Hour

// slowWorld is for tests in which months pass: its feed moves when something
// happens, and hardly ever else.
func slowWorld(t *testing.T) *world {
	return makeWorld(t, storetest.SQLite(t), func(f *feed.Feed) { f.Pace(never, 55*time.Second) })
}

func makeWorld(t *testing.T, uri string, prepare func(*feed.Feed)) *world {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{}
	var err error
	check := func() {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.store, err = store.Open(ctx, uri)
	check()
	master, err := seal.Create(filepath.Join(dir, "master"))
	check()
	err = feed.Direct(w.store).Write(ctx, func(tx *feed.Tx) error {
		return errors.Join(issuer.Setup(tx.Tx, master, token.EdDSA), session.SetupMAC(tx.Tx, master), tx.RaiseMaxLifetime(5*time.Minute))
	})
	check()
	w.feed, err = feed.Open(ctx, w.store, "https://auth.test", "database", slog.New(slog.DiscardHandler))
	check()
	prepare(w.feed)
	var running sync.WaitGroup
	running.Go(func() { w.feed.Run(ctx) })
	tokens, err := issuer.Open(ctx, w.store, master, "https://auth.test", 5*time.Minute)
	check()
	pool := password.NewPool(password.Config{Params: password.Params{Memory: 64, Time: 1, Threads: 1}})
	w.audit = audit.New(w.store, slog.New(slog.DiscardHandler))
	w.users = user.New(w.store, w.feed, pool, w.audit)
	w.sessions, err = session.Open(ctx, session.Config{
		Audience: []string{"internal", "billing"}, Idle: session.IdleTTL(idle), Max: session.MaxTTL(lifetime), Grace: grace,
	}, session.Dependencies{Store: w.store, Feed: w.feed, Issuer: tokens, Users: w.users, Audit: w.audit, Master: master})
	check()
	w.logins = login.New(w.store, w.feed, w.sessions, pool)
	w.verifier, err = authn.NewVerifier(ctx, w.feed.Hub().Conn(), authn.WithAudience("internal", "billing"))
	check()
	t.Cleanup(func() {
		closed := w.verifier.Close()
		cancel()
		running.Wait()
		if err := errors.Join(closed, w.store.Close()); err != nil {
			t.Error(err)
		}
	})
	w.alice, err = user.New(w.store, feed.Direct(w.store), pool, w.audit).Create(ctx, caller.AtCommandLine, "alice", user.Roles{"writer"}, pw(t, sesame))
	check()
	return w
}

func pw(t *testing.T, s string) password.Password {
	t.Helper()
	p, err := password.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *world) login(t *testing.T) *session.Tokens {
	t.Helper()
	tokens, err := w.logins.Login(context.Background(), "alice", pw(t, sesame), nil)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func (w *world) refresh(t *testing.T, token string) *session.Tokens {
	t.Helper()
	tokens, err := w.sessions.Refresh(context.Background(), token, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func (w *world) refused(t *testing.T, refreshToken string, want error) {
	t.Helper()
	if _, err := w.sessions.Refresh(context.Background(), refreshToken, nil); !errors.Is(err, want) {
		t.Fatalf("Refresh: %v, want %v", err, want)
	}
}

// verdict is what the server's own verifier says of an access token.
func (w *world) verdict(access string) watchwordv1.ErrorReason {
	_, err := w.verifier.Verify(context.Background(), access)
	return authn.Reason(err)
}

func (w *world) wantVerdict(t *testing.T, access string, want watchwordv1.ErrorReason) {
	t.Helper()
	if got := w.verdict(access); got != want {
		t.Fatalf("Verify: %v, want %v", got, want)
	}
}

const (
	good    = watchwordv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	revoked = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED
)

func TestFiveHundredCallersSpendOneToken(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		first := w.login(t)
		const callers = 500
		var tasks sync.WaitGroup
		answers := make([]*session.Tokens, callers)
		errs := make([]error, callers)
		for i := range callers {
			tasks.Go(func() { answers[i], errs[i] = w.sessions.Refresh(context.Background(), first.Refresh, nil) })
		}
		tasks.Wait()
		for i := range callers {
			if errs[i] != nil {
				t.Fatalf("caller %d: %v", i, errs[i])
			}
			if answers[i].Refresh != answers[0].Refresh {
				t.Fatal("two different successors")
			}
			w.wantVerdict(t, answers[i].Access, good)
		}
		var row *store.Session
		if err := w.store.Read(t.Context(), func(tx *store.Tx) (err error) {
			row, err = tx.Session(first.SessionID)
			return err
		}); err != nil || row.Generations.Current != 2 {
			t.Fatalf("generation %d, %v", row.Generations.Current, err)
		}
		w.refresh(t, answers[0].Refresh)
	})
}

func TestAnAnswerLostForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := slowWorld(t)
		first := w.login(t)
		lost := w.refresh(t, first.Refresh)
		time.Sleep(time.Hour)
		late := w.refresh(t, first.Refresh)
		if late.Refresh == lost.Refresh {
			t.Fatal("the late retry got the lost successor")
		}
		w.wantVerdict(t, late.Access, good)
		w.refused(t, lost.Refresh, session.ErrRefreshReused)
		w.wantVerdict(t, late.Access, revoked)
		w.refused(t, late.Refresh, session.ErrRevoked)
	})
}

func TestLostAnswerWithinTheGraceIsTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.login(t)
		lost := w.refresh(t, first.Refresh)
		time.Sleep(grace - time.Second)
		if again := w.refresh(t, first.Refresh); again.Refresh != lost.Refresh {
			t.Fatal("another successor within the grace")
		}
	})
}

func TestSessionsEndByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := slowWorld(t)
		unused, used := w.login(t), w.login(t)
		for range 3 { // 87 days
			time.Sleep(29 * 24 * time.Hour)
			used = w.refresh(t, used.Refresh)
		}
		w.refused(t, unused.Refresh, session.ErrRefreshExpired)
		time.Sleep(lifetime - 87*24*time.Hour - time.Minute)
		last := w.refresh(t, used.Refresh)
		if last.AccessExpiresIn > time.Minute || last.RefreshExpiresIn > time.Minute {
			t.Fatalf("tokens outlive the session: %v, %v", last.AccessExpiresIn, last.RefreshExpiresIn)
		}
		time.Sleep(time.Minute)
		w.refused(t, last.Refresh, session.ErrRefreshExpired)
		if err := w.sessions.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.sessions.Logout(t.Context(), unused.Refresh); !errors.Is(err, session.ErrRefreshExpired) {
			t.Fatalf("a pruned session: %v", err)
		}
		w.refused(t, last.Refresh, session.ErrRefreshExpired) // kept: it was used a minute ago
	})
}

func TestLogoutBeatsEveryRefreshThatItRaces(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		for range 20 {
			first := w.login(t)
			var mu sync.Mutex
			minted := []*session.Tokens{first}
			var tasks sync.WaitGroup
			for range 8 {
				tasks.Go(func() {
					current := first
					for {
						next, err := w.sessions.Refresh(context.Background(), current.Refresh, nil)
						if err != nil {
							return
						}
						mu.Lock()
						minted = append(minted, next)
						mu.Unlock()
						current = next
					}
				})
			}
			if err := w.sessions.Logout(t.Context(), first.Refresh); err != nil {
				t.Fatal(err)
			}
			tasks.Wait()
			for _, tokens := range minted {
				w.wantVerdict(t, tokens.Access, revoked)
				w.refused(t, tokens.Refresh, session.ErrRevoked)
			}
			if err := w.sessions.Logout(t.Context(), minted[len(minted)-1].Refresh); err != nil {
				t.Fatalf("second logout: %v", err)
			}
		}
	})
}

func TestWhatEndsEverySession(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		disabled, enabled := true, false
		for name, end := range map[string]func() error{
			"SetPassword": func() error {
				_, err := w.users.SetPassword(t.Context(), caller.AtCommandLine, w.alice.ID, pw(t, sesame))
				return err
			},
			"RevokeSessions": func() error { return w.users.RevokeSessions(t.Context(), caller.AtCommandLine, w.alice.ID) },
			"disabling and enabling": func() error {
				_, err := w.users.Update(t.Context(), caller.AtCommandLine, w.alice.ID, user.Change{Disabled: &disabled})
				if err == nil {
					_, err = w.users.Update(t.Context(), caller.AtCommandLine, w.alice.ID, user.Change{Disabled: &enabled})
				}
				return err
			},
		} {
			a, b := w.login(t), w.login(t)
			if err := end(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, tokens := range []*session.Tokens{a, b} {
				w.wantVerdict(t, tokens.Access, revoked)
				w.refused(t, tokens.Refresh, session.ErrRevoked)
			}
			w.wantVerdict(t, w.login(t).Access, good)
		}
	})
}

func TestAChangeOfRightsIsStaleAndRefreshed(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		before := w.login(t)
		roles := user.Roles{"reader"}
		if _, err := w.users.Update(t.Context(), caller.AtCommandLine, w.alice.ID, user.Change{Roles: &roles}); err != nil {
			t.Fatal(err)
		}
		w.wantVerdict(t, before.Access, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE)
		p, err := w.verifier.Verify(t.Context(), w.refresh(t, before.Refresh).Access)
		if err != nil || !p.HasRole("reader") || p.HasRole("writer") {
			t.Fatalf("after the refresh: %v, %v", p, err)
		}
	})
}

func TestAudience(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		if _, err := w.logins.Login(t.Context(), "alice", pw(t, sesame), []string{"elsewhere"}); !errors.Is(err, session.ErrAudience) {
			t.Fatalf("login for elsewhere: %v", err)
		}
		narrow, err := w.logins.Login(t.Context(), "alice", pw(t, sesame), []string{"billing", "billing"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.sessions.Refresh(t.Context(), narrow.Refresh, []string{"internal"}); !errors.Is(err, session.ErrAudience) {
			t.Fatalf("wider than the login: %v", err)
		}
		again := w.refresh(t, narrow.Refresh) // the refusal spent nothing
		p, err := w.verifier.Verify(t.Context(), again.Access)
		if err != nil || len(p.Audience()) != 1 || p.Audience()[0] != "billing" {
			t.Fatalf("audience %v, %v", p.Audience(), err)
		}
	})
}

func TestACallerWhoseRightsAreGoneChangesNothing(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		tokens := w.login(t)
		p, err := w.verifier.Verify(t.Context(), tokens.Access)
		if err != nil {
			t.Fatal(err)
		}
		by := caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: p.Subject()}, SessionID: p.SessionID(), Version: p.TokenVersion(), Roles: p.Roles()}
		roles := user.Roles{"admin"}
		change := user.Change{Roles: &roles}
		if _, err := w.users.Update(t.Context(), by, w.alice.ID, change); err != nil {
			t.Fatalf("while they hold: %v", err)
		}
		roles = user.Roles{"nothing"}
		if _, err := w.users.Update(t.Context(), by, w.alice.ID, change); !errors.Is(err, caller.ErrStale) {
			t.Fatalf("with rights of before: %v", err)
		}
		if err := w.sessions.Logout(t.Context(), tokens.Refresh); err != nil {
			t.Fatal(err)
		}
		if _, err := w.users.Update(t.Context(), by, w.alice.ID, change); !errors.Is(err, caller.ErrRevoked) {
			t.Fatalf("after the logout: %v", err)
		}
		if _, err := w.users.Update(t.Context(), caller.Caller{}, w.alice.ID, change); !errors.Is(err, caller.ErrRevoked) {
			t.Fatalf("nobody: %v", err)
		}
		row, err := w.users.Get(t.Context(), w.alice.ID)
		if err != nil || row.Roles[0] != "admin" {
			t.Fatalf("roles %v, %v", row.Roles, err)
		}
	})
}
