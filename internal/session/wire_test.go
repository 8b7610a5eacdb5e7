package session_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// wired is a world whose database is behind a proxy, and whose feed polls hardly
// ever, so that what is sent is what was asked for.
func wired(t *testing.T) (*world, *pgtest.Proxy) {
	t.Helper()
	proxy := pgtest.NewProxy(t, storetest.Postgres(t))
	return makeWorld(t, proxy.URI(), func(f *feed.Feed) { f.Pace(never, never) }), proxy
}

// cutOnce cuts the connection at a statement that begins so.
func cutOnce(begins string, fate pgtest.Fate) func(pgtest.Trip) pgtest.Fate {
	var done atomic.Bool
	return func(trip pgtest.Trip) pgtest.Fate {
		for _, s := range trip.Statements {
			if strings.HasPrefix(s.SQL, begins) && done.CompareAndSwap(false, true) {
				return fate
			}
		}
		return pgtest.Pass
	}
}

// A refresh whose outcome was unknown is answered by the grace rule: it was spent
// once, whether the database had heard of it or not, and nobody is logged out.
func TestARefreshThatIsCutIsNoLogout(t *testing.T) {
	w, proxy := wired(t)
	for _, fate := range []pgtest.Fate{pgtest.CutBefore, pgtest.CutAfter} {
		for name, cuts := range map[string][]string{
			"the statement":                 {"UPDATE sessions"},
			"and the transaction behind it": {"UPDATE sessions", "COMMIT"},
			"and its read":                  {"UPDATE sessions", "SELECT s.id"},
		} {
			tokens := w.login(t)
			var judges []func(pgtest.Trip) pgtest.Fate
			for _, begins := range cuts {
				judges = append(judges, cutOnce(begins, fate))
			}
			proxy.Judge(func(trip pgtest.Trip) (fate pgtest.Fate) {
				for _, judge := range judges {
					fate = max(fate, judge(trip))
				}
				return fate
			})
			next, err := w.sessions.Refresh(t.Context(), tokens.Refresh, nil)
			proxy.Judge(nil)
			if err != nil {
				t.Errorf("fate %v, %s: %v", fate, name, err)
				continue
			}
			if n := w.generation(t, tokens.SessionID); n != 2 {
				t.Errorf("fate %v, %s: it is generation %d", fate, name, n)
			}
			w.wantVerdict(t, next.Access, good)
			if again := w.refresh(t, tokens.Refresh); again.Refresh != next.Refresh {
				t.Errorf("fate %v, %s: a retry got another successor", fate, name)
			}
			w.refresh(t, next.Refresh)
		}
	}
}

func (w *world) generation(t *testing.T, sessionID string) (n int64) {
	t.Helper()
	err := w.store.Read(context.Background(), func(tx *store.Tx) error {
		row, err := tx.Session(sessionID)
		n = row.Generations.Current
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A logout whose outcome was unknown is one, and is recorded once.
func TestALogoutThatIsCutIsDone(t *testing.T) {
	w, proxy := wired(t)
	for _, fate := range []pgtest.Fate{pgtest.CutBefore, pgtest.CutAfter} {
		tokens := w.login(t)
		proxy.Judge(cutOnce("COMMIT", fate))
		err := w.sessions.Logout(t.Context(), tokens.Refresh)
		proxy.Judge(nil)
		if err != nil {
			t.Errorf("fate %v: %v", fate, err)
		}
		w.dead(t, "logged out", tokens)
		err = w.store.Read(t.Context(), func(tx *store.Tx) error {
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

// What is not safe to do twice is not: the caller is told that nobody knows.
func TestALoginThatIsCutIsUncertain(t *testing.T) {
	w, proxy := wired(t)
	proxy.Judge(cutOnce("INSERT INTO sessions", pgtest.CutAfter))
	_, err := w.logins.Login(t.Context(), "alice", pw(t, sesame), nil)
	proxy.Judge(nil)
	if !errors.Is(err, store.ErrUncertain) {
		t.Errorf("Login: %v", err)
	}
	err = w.store.Read(t.Context(), func(tx *store.Tx) error {
		sessions, err := tx.Sessions(w.alice.ID, "", 10)
		if len(sessions) != 1 {
			t.Errorf("%d sessions were made", len(sessions))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sent counts what is sent on each connection, but for the tails that the feed
// reads, of which nobody knows how many there are: a nudge and a hint ask for them.
type sent struct {
	proxy *pgtest.Proxy
	tails map[int]bool // connections in such a transaction
}

func (s *sent) count() (statements, trips int, text string) {
	for _, trip := range s.proxy.Trips() {
		last := ""
		for _, statement := range trip.Statements {
			if last = statement.SQL; strings.HasPrefix(last, "SELECT seq FROM head") && strings.HasSuffix(trip.Statements[0].SQL, "READ ONLY") {
				s.tails[trip.Conn] = true
			}
		}
		if s.tails[trip.Conn] {
			s.tails[trip.Conn] = last != "COMMIT"
			continue
		}
		trips++
		statements += len(trip.Statements)
		for _, statement := range trip.Statements {
			text += statement.SQL + "\n"
		}
		text += "--\n"
	}
	return statements, trips, text
}

// What each call costs of the database. BEGIN, its settings and COMMIT are
// statements; what is sent together is one round trip.
func TestStatementsAndRoundTrips(t *testing.T) {
	w, proxy := wired(t)
	s := sent{proxy, map[int]bool{}}
	var tokens *session.Tokens
	login := func() { tokens = w.login(t) }
	refresh := func() { tokens = w.refresh(t, tokens.Refresh) }
	logout := func() {
		if err := w.sessions.Logout(t.Context(), tokens.Refresh); err != nil {
			t.Fatal(err)
		}
	}
	// Whoever comes first on a connection prepares its statements there.
	for range 20 {
		login()
		refresh()
		logout()
	}
	for _, c := range []struct {
		name              string
		call              func()
		statements, trips int
	}{
		// BEGIN, settings, user | COMMIT, and BEGIN, settings, user, time | session,
		// record, COMMIT.
		{"Login", login, 11, 4},
		{"Refresh", refresh, 1, 1},
		// BEGIN, settings, session, time | end, record, number, event, newest number,
		// hint, COMMIT.
		{"Logout", logout, 11, 2},
	} {
		s.count()
		c.call()
		if statements, trips, text := s.count(); statements != c.statements || trips != c.trips {
			t.Errorf("%s: %d statements in %d trips, want %d in %d:\n%s", c.name, statements, trips, c.statements, c.trips, text)
		}
	}
}
