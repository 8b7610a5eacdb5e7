package session_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// While the row of a session is locked, refreshes and logouts of the session hold at most
// two connections, whatever their number. The others wait without a connection, or are
// refused. A read of another user finds a free connection.
func TestOneSessionsCallsLeaveConnections(t *testing.T) {
	uri := storetest.Postgres(t)
	w := sessiontest.On(t, uri, func(*feed.Feed) {})
	first := w.Login(t)
	bob, err := w.Users.Create(t.Context(), caller.AtCommandLine, "bob", nil, sessiontest.Parse(t, sessiontest.Password))
	if err != nil {
		t.Fatal(err)
	}
	release := lockSession(t, uri, first.SessionID)
	watch := connect(t, uri)
	blocked := func() (n int) {
		if err := watch.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	const calls = 300
	answers := make(chan error, calls)
	var tasks sync.WaitGroup
	for i := range calls {
		tasks.Go(func() {
			if i%2 == 0 {
				answers <- w.Sessions.Logout(t.Context(), first.Refresh)
				return
			}
			_, err := w.Sessions.Refresh(t.Context(), first.Refresh, nil)
			answers <- err
		})
	}
	if err := <-answers; !errors.Is(err, share.ErrNoTurn) { // the error shows that as many calls wait as may wait
		t.Errorf("the first answer is %v, although the row is locked", err)
	}
	for blocked() < 2 {
		runtime.Gosched()
	}
	for range 20 {
		if _, _, err := w.Sessions.List(t.Context(), caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: bob.ID}}, bob.ID, store.SessionPlace{}, 10); err != nil {
			t.Errorf("another user's read: %v", err)
		}
		if n := blocked(); n > 2 {
			t.Fatalf("%d connections wait for the row", n)
		}
	}
	release()
	tasks.Wait()
	close(answers)
	refused := 1
	for err := range answers {
		switch {
		case errors.Is(err, share.ErrNoTurn):
			refused++
		case err != nil && !errors.Is(err, session.ErrRevoked) && !errors.Is(err, store.ErrUnavailable): // these errors come on a slow machine
			t.Errorf("a call that had its turn: %v", err)
		}
	}
	if refused > calls-64 {
		t.Errorf("%d of %d calls were refused", refused, calls)
	}
	if err := w.Sessions.Logout(t.Context(), first.Refresh); err != nil {
		t.Errorf("the next call: %v", err)
	}
	w.WantEnded(t, "logged out", first)
}

// lockSession locks the row of a session until release is called.
func lockSession(t *testing.T, uri, sessionID string) (release func()) {
	t.Helper()
	tx, err := connect(t, uri).Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `SELECT FROM sessions WHERE id = $1 FOR UPDATE`, sessionID)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// connect opens a connection until the end of the test.
func connect(t *testing.T, uri string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

// A session may have ended at another replica. The second logout is answered after this
// server's own verifier knows of the end.
func TestASecondLogoutIsKnownAtOnce(t *testing.T) {
	w := sessiontest.On(t, storetest.SQLite(t), func(f *feed.Feed) { f.Pace(sessiontest.Never, sessiontest.Never) })
	tokens := w.Login(t)
	w.WantVerdict(t, tokens.Access, sessiontest.Good)
	err := feed.Direct(w.Store).Write(t.Context(), func(tx *feed.Tx) error {
		return errors.Join(tx.EndSession(tokens.SessionID), tx.SessionEnded(tokens.SessionID))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Sessions.Logout(t.Context(), tokens.Refresh); err != nil {
		t.Fatal(err)
	}
	w.WantVerdict(t, tokens.Access, sessiontest.Revoked)
}

// A refresh of a session that has ended is refused without the lock of the session's row.
func TestARefreshOfAnEndedSessionNeedsNoLock(t *testing.T) {
	uri := storetest.Postgres(t)
	w := sessiontest.On(t, uri, func(*feed.Feed) {})
	tokens := w.Login(t)
	if err := w.Sessions.Logout(t.Context(), tokens.Refresh); err != nil {
		t.Fatal(err)
	}
	defer lockSession(t, uri, tokens.SessionID)()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := w.Sessions.Refresh(ctx, tokens.Refresh, nil); !errors.Is(err, session.ErrRevoked) {
		t.Errorf("while the row is locked: %v", err)
	}
}
