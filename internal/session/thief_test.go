package session_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store"
)

// A thief with one copy of a refresh token follows the owner for two days: the owner refreshes
// every few hours, and the thief comes within the grace each time. The repeat after
// session.DefaultRepeats generations with a repeat ends the session.
func TestAThiefThatFollowsForDaysIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := sessiontest.Slow(t)
		follow(t, w, grace, func() { time.Sleep(2*time.Hour + rand.N(time.Hour)) }, func() { time.Sleep(rand.N(grace)) })
	})
}

// A thief that follows the owner is found on each kind of database, also without a pause between
// the refreshes. The owner and the thief take turns at being first.
func TestAThiefThatFollowsIsFoundOnEachEngine(t *testing.T) {
	const grace = time.Hour // longer than any pause of the machine
	pause := func() {}
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) { follow(t, w, grace, pause, pause) },
		func(c *session.Config) { c.Grace = grace })
}

// follow lets an owner and a thief share a session until the theft is found. In each generation
// one of the two refreshes first, and the other repeats the same refresh token.
func follow(t *testing.T, w *sessiontest.World, grace time.Duration, untilNext, behind func()) {
	t.Helper()
	login := w.Login(t)
	owner, thief := login.Refresh, login.Refresh
	const most = session.DefaultRepeats
	for generation := 1; ; generation++ {
		untilNext()
		first, second := &owner, &thief
		if generation%3 == 0 {
			first, second = second, first
		}
		spent := w.Refresh(t, *first)
		behind()
		repeated, err := w.Sessions.Refresh(t.Context(), *second, nil)
		if errors.Is(err, session.ErrRefreshReused) && generation == most+1 {
			w.WantEnded(t, "of the first", spent)
			w.Refused(t, *second, session.ErrRevoked)
			break
		}
		if err != nil || generation > most {
			t.Fatalf("generation %d: %v", generation, err)
		}
		if repeated.Refresh != spent.Refresh {
			t.Fatalf("generation %d: the repeat got another refresh token", generation)
		}
		if left := idle - grace; repeated.RefreshExpiresIn != left {
			t.Errorf("a repeat tells that the session ends in %v, want %v whenever the owner has refreshed", repeated.RefreshExpiresIn, left)
		}
		*first, *second = spent.Refresh, repeated.Refresh
	}
	if err := w.Audit.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantRecord(t, w, login.SessionID, "refresh.repeated", true, most, "")
	wantRecord(t, w, login.SessionID, "refresh.reused", false, 1, fmt.Sprintf("repeats in more than %d successive generations", most))
}

// wantRecord checks the sum of the counts in the security record for one type of events
// of a session of Alice.
func wantRecord(t *testing.T, w *sessiontest.World, sessionID, eventType string, success bool, count int64, detail string) {
	t.Helper()
	err := w.Store.Read(t.Context(), func(tx *store.Tx) error {
		records, _, err := tx.Audit(store.AuditFilter{Type: eventType, SessionID: sessionID}, 1000, 1000)
		for _, r := range records {
			if count -= r.Count; r.Success != success || r.UserID != w.Alice.ID || r.UserName != "alice" || r.Detail != detail {
				t.Errorf("%+v", r)
			}
		}
		return err
	})
	if err != nil || count != 0 {
		t.Errorf("%s: %d too few in the record, %v", eventType, count, err)
	}
}

// Of every session.DefaultRepeats+1 tokens in a row, all but one are used two more times: the
// session continues.
func TestRepeatsWithAPauseEndNoSession(t *testing.T) {
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		token := w.Login(t).Refresh
		for n := range 10 * (session.DefaultRepeats + 1) {
			next := w.Refresh(t, token)
			if n%(session.DefaultRepeats+1) > 0 {
				w.Refresh(t, token)
				w.Refresh(t, token)
			}
			token = next.Refresh
		}
	})
}
