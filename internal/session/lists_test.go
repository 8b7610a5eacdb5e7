package session_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store"
)

// logIn logs Alice in by the login service that the test has made.
func logIn(t *testing.T, logins *login.Service) *session.Tokens {
	t.Helper()
	tokens, err := logins.Login(context.Background(), "alice", sessiontest.Parse(t, sessiontest.Password), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// live lists the ids of Alice's live sessions, the oldest first.
func live(t *testing.T, w *sessiontest.World) (ids []string) {
	t.Helper()
	rows, next, err := w.Sessions.List(t.Context(), caller.AtCommandLine, w.Alice.ID, store.SessionPlace{}, 100)
	if err != nil || next != (store.SessionPlace{}) {
		t.Fatalf("next page %v, %v", next, err)
	}
	for _, row := range rows {
		ids = append(ids, row.ID)
	}
	slices.Reverse(ids)
	return ids
}

// displaced lists the ids of the sessions that ended to make room, sorted.
func displaced(t *testing.T, w *sessiontest.World) (ids []string) {
	t.Helper()
	err := w.Store.Read(t.Context(), func(tx *store.Tx) error {
		records, _, err := tx.Audit(store.AuditFilter{Type: "session.revoked"}, 100, 100)
		for _, r := range records {
			ids = append(ids, r.SessionID)
			if r.ActorID != w.Alice.ID || r.UserID != w.Alice.ID || !r.Success || r.Detail == "" {
				t.Errorf("the record is %+v", r)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ids)
	return ids
}

// When a bound is lowered, each login ends the oldest sessions, ten at most. The verifier
// of the server knows the ends when the login returns.
func TestALoweredBoundIsReachedByLogins(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		var all []*session.Tokens
		var ids []string
		for range 25 {
			all = append(all, w.Login(t))
			ids = append(ids, all[len(all)-1].SessionID)
		}
		_, logins := w.Bounded(t, 3)
		for _, gone := range []int{10, 20, 25, 26} {
			all = append(all, logIn(t, logins))
			ids = append(ids, all[len(all)-1].SessionID)
			if got, want := live(t, w), ids[gone:]; !slices.Equal(got, want) {
				t.Fatalf("live are %v, want %v", got, want)
			}
			for i, tokens := range all {
				want := sessiontest.Good
				if i < gone {
					want = sessiontest.Revoked
				}
				w.WantVerdict(t, tokens.Access, want)
			}
		}
		if got, want := displaced(t, w), slices.Sorted(slices.Values(ids[:26])); !slices.Equal(got, want) {
			t.Errorf("recorded: %v, want %v", got, want)
		}
		w.WantEnded(t, "the oldest", all[0])
		w.Refresh(t, all[len(all)-1].Refresh)
	})
}

// Logins at the same moment keep the bound, and each end is recorded once.
func TestLoginsAtOnceKeepTheBound(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		const most, n = 3, 20
		_, logins := w.Bounded(t, most)
		var tasks sync.WaitGroup
		all := make([]string, n)
		for i := range n {
			tasks.Go(func() {
				tokens, err := logins.Login(context.Background(), "alice", sessiontest.Parse(t, sessiontest.Password), nil, "")
				if err != nil {
					t.Error(err)
					return
				}
				all[i] = tokens.SessionID
			})
		}
		tasks.Wait()
		left, gone := live(t, w), displaced(t, w)
		if len(left) != most || len(gone) != n-most {
			t.Errorf("%d are live and %d recorded as ended, of %d", len(left), len(gone), n)
		}
		got := append(left, gone...)
		slices.Sort(got)
		slices.Sort(all)
		if !slices.Equal(got, all) {
			t.Errorf("live or ended: %v, want %v", got, all)
		}
	})
}

// A session past its lifetime makes room without an event and without a record: nothing of
// it was valid.
func TestAnExpiredSessionMakesRoomSilently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := sessiontest.Slow(t)
		old := w.Login(t)
		time.Sleep(idle + time.Minute)
		before := head(t, w)
		_, logins := w.Bounded(t, 1)
		next := logIn(t, logins)
		if after := head(t, w); after != before {
			t.Errorf("%d events for an expired session", after-before)
		}
		if gone := displaced(t, w); len(gone) != 0 {
			t.Errorf("recorded as ended: %v", gone)
		}
		w.Refused(t, old.Refresh, session.ErrRevoked)
		if got := live(t, w); !slices.Equal(got, []string{next.SessionID}) {
			t.Errorf("live are %v", got)
		}
	})
}

func head(t *testing.T, w *sessiontest.World) (seq int64) {
	t.Helper()
	err := w.Store.Read(t.Context(), func(tx *store.Tx) (err error) {
		seq, err = tx.Head()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

// The place in a page token says after which session the next page begins: a formatted place is
// parsed to the same place, and any other text is refused.
func TestPlaces(t *testing.T) {
	place := store.SessionPlace{BornVersion: 1790000000, CreatedAt: time.UnixMicro(1790000000123456).UTC(), ID: "AbCd-_0123456789"}
	for _, p := range []store.SessionPlace{place, {}} {
		if got, err := session.ParsePlace(session.FormatPlace(p)); err != nil || got != p {
			t.Errorf("%+v became %+v, %v", p, got, err)
		}
	}
	if text := session.FormatPlace(place); len(text) > 64 {
		t.Errorf("%s has %d bytes, more than a page token holds", text, len(text))
	}
	for _, text := range []string{"x", "AbCd-_0123456789", "1", "1.", "1.2", "1.2.", "1..a", ".1.a", "g.1.a", "1.g.a", "fffffffffffffffff.1.a"} {
		if p, err := session.ParsePlace(text); err == nil {
			t.Errorf("%q is the place %+v", text, p)
		}
	}
}

// A caller without the role admin lists the caller's own sessions alone.
func TestListForCallers(t *testing.T) {
	w := sessiontest.New(t)
	tokens := w.Login(t)
	by := asCaller(t, w, tokens.Access)
	rows, _, err := w.Sessions.List(t.Context(), by, w.Alice.ID, store.SessionPlace{}, 10)
	if err != nil || len(rows) != 1 || rows[0].ID != tokens.SessionID {
		t.Errorf("one's own: %v, %v", rows, err)
	}
	if _, _, err := w.Sessions.List(t.Context(), by, "another", store.SessionPlace{}, 10); !errors.Is(err, session.ErrNotAllowed) {
		t.Errorf("another's: %v", err)
	}
}

// However often a user logs in and ends sessions, alone or all at once, a bounded number of
// rows stays. A refresh token of a deleted row is refused as expired; one of a row that
// stays is refused with the reason.
func TestRowsOfOneUserAreBounded(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		const most, ended = 3, 100 // the least number of rows of ended sessions that a user keeps
		_, logins := w.Bounded(t, most)
		var all []*session.Tokens
		for range ended + most + 20 { // each login ends the user's oldest session
			all = append(all, logIn(t, logins))
		}
		count := func() (n int) {
			t.Helper()
			err := w.Store.Read(t.Context(), func(tx *store.Tx) error {
				_, err := tx.PruneSessions("", 10_000, func(*store.Session) bool { n++; return true })
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := count(); n > ended+1+most {
			t.Errorf("%d rows after %d logins", n, len(all))
		}
		w.Refused(t, all[0].Refresh, session.ErrRefreshExpired)
		w.Refused(t, all[30].Refresh, session.ErrRevoked)
		w.Refresh(t, all[len(all)-1].Refresh)
		for range ended + 20 { // each call ends all sessions of the user
			if err := w.Sessions.RevokeAll(t.Context(), caller.AtCommandLine, w.Alice.ID); err != nil {
				t.Fatal(err)
			}
			all = append(all, logIn(t, logins))
		}
		if n := count(); n > 2*(ended+most)+1 {
			t.Errorf("%d rows after %d logins", n, len(all))
		}
		w.Refresh(t, all[len(all)-1].Refresh)
	})
}
