package session_test

import (
	"context"
	"testing"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store"
)

// A refresh whose outcome was unknown is answered by the grace rule: the token is spent
// once, whether the database got the statement or not, and the session goes on.
func TestARefreshThatIsCutIsNoLogout(t *testing.T) {
	w, proxy := sessiontest.Wired(t)
	for _, fate := range []pgtest.Fate{pgtest.CutBefore, pgtest.CutAfter} {
		for name, cuts := range map[string][]string{
			"the statement":                 {"UPDATE sessions"},
			"and the transaction behind it": {"UPDATE sessions", "COMMIT"},
			"and its read":                  {"UPDATE sessions", "SELECT s.id"},
		} {
			tokens := w.Login(t)
			var judges []func(pgtest.Trip) pgtest.Fate
			for _, begins := range cuts {
				judges = append(judges, sessiontest.CutOnce(begins, fate))
			}
			proxy.Judge(func(trip pgtest.Trip) (fate pgtest.Fate) {
				for _, judge := range judges {
					fate = max(fate, judge(trip))
				}
				return fate
			})
			next, err := w.Sessions.Refresh(t.Context(), tokens.Refresh, nil)
			proxy.Judge(nil)
			if err != nil {
				t.Errorf("fate %v, %s: %v", fate, name, err)
				continue
			}
			if n := generation(t, w.Store, tokens.SessionID); n != 2 {
				t.Errorf("fate %v, %s: it is generation %d", fate, name, n)
			}
			w.WantVerdict(t, next.Access, sessiontest.Good)
			if again := w.Refresh(t, tokens.Refresh); again.Refresh != next.Refresh {
				t.Errorf("fate %v, %s: a retry got another successor", fate, name)
			}
			w.Refresh(t, next.Refresh)
		}
	}
}

// generation returns the generation of a session's current refresh token.
func generation(t *testing.T, s *store.Store, sessionID string) (n int64) {
	t.Helper()
	err := s.Read(context.Background(), func(tx *store.Tx) error {
		row, err := tx.Session(sessionID)
		if err == nil {
			n = row.Generations.Current
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A logout whose outcome was unknown ends the session, and is recorded once.
func TestALogoutThatIsCutIsDone(t *testing.T) {
	w, proxy := sessiontest.Wired(t)
	for _, fate := range []pgtest.Fate{pgtest.CutBefore, pgtest.CutAfter} {
		tokens := w.Login(t)
		proxy.Judge(sessiontest.CutOnce("UPDATE sessions", fate)) // cuts the round trip of the COMMIT
		err := w.Sessions.Logout(t.Context(), tokens.Refresh)
		proxy.Judge(nil)
		if err != nil {
			t.Errorf("fate %v: %v", fate, err)
		}
		w.WantEnded(t, "logged out", tokens)
		err = w.Store.Read(t.Context(), func(tx *store.Tx) error {
			records, _, err := tx.Audit(store.AuditFilter{Type: "logout", SessionID: tokens.SessionID}, 10, 100)
			if len(records) != 1 {
				t.Errorf("fate %v: recorded %d times", fate, len(records))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestStatementsAndRoundTrips lists the statements and round trips that a refresh and a logout
// send to the database.
func TestStatementsAndRoundTrips(t *testing.T) {
	w, proxy := sessiontest.Wired(t)
	count := sessiontest.Count(proxy)
	var tokens *session.Tokens
	refresh := func() { tokens = w.Refresh(t, tokens.Refresh) }
	logout := func() {
		if err := w.Sessions.Logout(t.Context(), tokens.Refresh); err != nil {
			t.Fatal(err)
		}
	}
	// The first call on a connection prepares its statements there.
	for range 20 {
		tokens = w.Login(t)
		refresh()
		logout()
	}
	tokens = w.Login(t)
	count.Want(t, "Refresh", 1, 1, refresh)
	// BEGIN, settings, session | COMMIT | BEGIN, settings, session, time | end, the user's
	// records | record, number, event, newest number, hint, COMMIT.
	count.Want(t, "Logout", 16, 5, logout)
	// BEGIN, settings, session | COMMIT | BEGIN, settings, newest number, COMMIT.
	count.Want(t, "Logout of an ended session", 8, 3, logout)
}
