package session_test

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

// The rules of every world.
const (
	grace    = sessiontest.Grace
	idle     = sessiontest.Idle
	lifetime = sessiontest.Lifetime
)

// 64 callers, as many as a session may have at a time, refresh with one token at once, and all
// get the same new token.
func TestManyCallersSpendOneToken(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		first := w.Login(t)
		const callers = 64
		var tasks sync.WaitGroup
		answers := make([]*session.Tokens, callers)
		errs := make([]error, callers)
		for i := range callers {
			tasks.Go(func() { answers[i], errs[i] = w.Sessions.Refresh(context.Background(), first.Refresh, nil) })
		}
		tasks.Wait()
		for i := range callers {
			if errs[i] != nil {
				t.Fatalf("caller %d: %v", i, errs[i])
			}
			if answers[i].Refresh != answers[0].Refresh {
				t.Fatal("two different successors")
			}
			w.WantVerdict(t, answers[i].Access, sessiontest.Good)
		}
		var row *store.Session
		if err := w.Store.Read(t.Context(), func(tx *store.Tx) (err error) {
			row, err = tx.Session(first.SessionID)
			return err
		}); err != nil || row.Generations.Current != 2 {
			t.Fatalf("generation %d, %v", row.Generations.Current, err)
		}
		w.Refresh(t, answers[0].Refresh)
	})
}

func TestAnAnswerLostForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := sessiontest.Slow(t)
		first := w.Login(t)
		lost := w.Refresh(t, first.Refresh)
		time.Sleep(time.Hour)
		late := w.Refresh(t, first.Refresh)
		if late.Refresh == lost.Refresh {
			t.Fatal("the late retry got the lost successor")
		}
		w.WantVerdict(t, late.Access, sessiontest.Good)
		w.Refused(t, lost.Refresh, session.ErrRefreshReused)
		w.WantVerdict(t, late.Access, sessiontest.Revoked)
		w.Refused(t, late.Refresh, session.ErrRevoked)
	})
}

func TestLostAnswerWithinTheGraceIsTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := sessiontest.New(t)
		first := w.Login(t)
		lost := w.Refresh(t, first.Refresh)
		time.Sleep(grace - time.Second)
		if again := w.Refresh(t, first.Refresh); again.Refresh != lost.Refresh {
			t.Fatal("another successor within the grace")
		}
	})
}

func TestSessionsEndByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := sessiontest.Slow(t)
		began := time.Now()
		unused, untouched, used := w.Login(t), w.Login(t), w.Login(t)
		for range 3 { // 87 hours in all
			time.Sleep(29 * time.Hour)
			used = w.Refresh(t, used.Refresh)
		}
		w.Refused(t, unused.Refresh, session.ErrRefreshExpired)
		time.Sleep(lifetime - 87*time.Hour - time.Minute)
		last := w.Refresh(t, used.Refresh)
		if last.AccessExpiresIn > time.Minute || last.RefreshExpiresIn > time.Minute {
			t.Fatalf("tokens outlive the session: %v, %v", last.AccessExpiresIn, last.RefreshExpiresIn)
		}
		time.Sleep(time.Minute)
		w.Refused(t, last.Refresh, session.ErrRefreshExpired)
		prune := func() {
			t.Helper()
			if err := w.Sessions.Prune(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		prune()
		if err := w.Sessions.Logout(t.Context(), untouched.Refresh); err != nil {
			t.Fatalf("pruned by the clock alone, without a tick: %v", err)
		}
		tickSince(t, w.Store, began)
		prune()
		if err := w.Sessions.Logout(t.Context(), unused.Refresh); !errors.Is(err, session.ErrRefreshExpired) {
			t.Fatalf("a pruned session: %v", err)
		}
		w.Refused(t, last.Refresh, session.ErrRefreshExpired) // the row of the session is kept: a refresh used it a minute ago
	})
}

// tickSince makes an embedded database look as if a server had counted ticks since a time.
func tickSince(t *testing.T, s *store.Store, began time.Time) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+s.Path()+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const ticks = 60 // the number of ticks in ten minutes
	if _, err := db.Exec(`DELETE FROM ticks`); err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`WITH RECURSIVE p(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM p WHERE n < $1)
		INSERT INTO ticks (period, ticks, low, last) SELECT n, $2, $3 + (n - 1) * 600000000, $3 + n * 600000000 FROM p`,
		time.Since(began)/(10*time.Minute), ticks, began.UnixMicro())
	if err != nil {
		t.Fatal(err)
	}
}

func TestLogoutBeatsEveryRefreshThatItRaces(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		for range 20 {
			first := w.Login(t)
			var mu sync.Mutex
			minted := []*session.Tokens{first}
			var tasks sync.WaitGroup
			for range 8 {
				tasks.Go(func() {
					current := first
					for {
						next, err := w.Sessions.Refresh(context.Background(), current.Refresh, nil)
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
			if err := w.Sessions.Logout(t.Context(), first.Refresh); err != nil {
				t.Fatal(err)
			}
			tasks.Wait()
			for _, tokens := range minted {
				w.WantVerdict(t, tokens.Access, sessiontest.Revoked)
				w.Refused(t, tokens.Refresh, session.ErrRevoked)
			}
			if err := w.Sessions.Logout(t.Context(), minted[len(minted)-1].Refresh); err != nil {
				t.Fatalf("second logout: %v", err)
			}
		}
	}, sessiontest.Repeats(math.MaxInt))
}

func TestWhatEndsEverySession(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		disabled, enabled := true, false
		for name, end := range map[string]func() error{
			"SetPassword": func() error {
				_, err := w.Users.SetPassword(t.Context(), caller.AtCommandLine, w.Alice.ID, sessiontest.Parse(t, sessiontest.Password))
				return err
			},
			"RevokeSessions": func() error { return w.Users.RevokeSessions(t.Context(), caller.AtCommandLine, w.Alice.ID) },
			"disabling and enabling": func() error {
				_, err := w.Users.Update(t.Context(), caller.AtCommandLine, w.Alice.ID, user.Change{Disabled: &disabled})
				if err == nil {
					_, err = w.Users.Update(t.Context(), caller.AtCommandLine, w.Alice.ID, user.Change{Disabled: &enabled})
				}
				return err
			},
		} {
			a, b := w.Login(t), w.Login(t)
			if err := end(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, tokens := range []*session.Tokens{a, b} {
				w.WantVerdict(t, tokens.Access, sessiontest.Revoked)
				w.Refused(t, tokens.Refresh, session.ErrRevoked)
			}
			w.WantVerdict(t, w.Login(t).Access, sessiontest.Good)
		}
	})
}

// asCaller returns the caller behind an access token.
func asCaller(t *testing.T, w *sessiontest.World, access string) caller.Caller {
	t.Helper()
	p, err := w.Verifier.Verify(t.Context(), access)
	if err != nil {
		t.Fatal(err)
	}
	return caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: p.Subject()}, SessionID: p.SessionID(), Name: p.Username(), Version: p.TokenVersion(), Roles: p.Roles()}
}

func TestAChangeOfRightsIsStaleAndRefreshed(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		before := w.Login(t)
		roles := user.Roles{"reader"}
		if _, err := w.Users.Update(t.Context(), caller.AtCommandLine, w.Alice.ID, user.Change{Roles: &roles}); err != nil {
			t.Fatal(err)
		}
		w.WantVerdict(t, before.Access, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE)
		p, err := w.Verifier.Verify(t.Context(), w.Refresh(t, before.Refresh).Access)
		if err != nil || !p.HasRole("reader") || p.HasRole("writer") {
			t.Fatalf("after the refresh: %v, %v", p, err)
		}
	})
}

func TestAudience(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		narrow, err := w.Logins.Login(t.Context(), "alice", sessiontest.Parse(t, sessiontest.Password), []string{"billing", "billing"}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Sessions.Refresh(t.Context(), narrow.Refresh, []string{"internal"}); !errors.Is(err, session.ErrAudience) {
			t.Fatalf("wider than the login: %v", err)
		}
		again := w.Refresh(t, narrow.Refresh) // the refused refresh has not spent the token
		p, err := w.Verifier.Verify(t.Context(), again.Access)
		if err != nil || len(p.Audience()) != 1 || p.Audience()[0] != "billing" {
			t.Fatalf("audience %v, %v", p.Audience(), err)
		}
	})
}

func TestACallerWhoseRightsAreGoneChangesNothing(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		tokens := w.Login(t)
		by := asCaller(t, w, tokens.Access)
		roles := user.Roles{"admin"}
		change := user.Change{Roles: &roles}
		if _, err := w.Users.Update(t.Context(), by, w.Alice.ID, change); err != nil {
			t.Fatalf("while they hold: %v", err)
		}
		roles = user.Roles{"nothing"}
		if _, err := w.Users.Update(t.Context(), by, w.Alice.ID, change); !errors.Is(err, caller.ErrStale) {
			t.Fatalf("with rights of before: %v", err)
		}
		if err := w.Sessions.Logout(t.Context(), tokens.Refresh); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Users.Update(t.Context(), by, w.Alice.ID, change); !errors.Is(err, caller.ErrRevoked) {
			t.Fatalf("after the logout: %v", err)
		}
		if _, err := w.Users.Update(t.Context(), caller.Caller{}, w.Alice.ID, change); !errors.Is(err, caller.ErrRevoked) {
			t.Fatalf("nobody: %v", err)
		}
		row, err := w.Users.Get(t.Context(), w.Alice.ID)
		if err != nil || row.Roles[0] != "admin" {
			t.Fatalf("roles %v, %v", row.Roles, err)
		}
	})
}
