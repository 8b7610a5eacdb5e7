package audit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/store"
)

// own records n events of a user's own, each with a session of its own.
func (w *world) own(t *testing.T, n int, e audit.Event, source string) {
	t.Helper()
	for i := range n {
		e.SessionID = fmt.Sprint("session ", i)
		err := w.store.Write(from(source), func(tx *store.Tx) error { return w.log.Record(from(source), tx, e) })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// One user's logins have a bounded number of records an hour, and each login is counted. A
// network that comes late has a record of its own, and many networks share one. Records of
// other users and other types stay as they are.
func TestAUsersOwnEventsAreBounded(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		hour := time.Now().Truncate(time.Hour)
		alice := audit.Event{Type: audit.Login, ActorID: "a", ActorName: "alice", UserID: "a", UserName: "alice"}
		bob := audit.Event{Type: audit.Login, ActorID: "b", ActorName: "bob", UserID: "b", UserName: "bob"}
		logout := alice
		logout.Type = audit.Logout
		byAdmin := audit.Event{Type: audit.SessionRevoked, ActorID: "b", ActorName: "bob", UserID: "a", UserName: "alice"}
		w.own(t, 100, alice, "192.0.2.1")
		w.own(t, 50, alice, "192.0.2.1")
		w.own(t, 7, alice, "192.0.2.2")
		for i := range 40 {
			w.own(t, 1, alice, fmt.Sprint("198.51.100.", i))
		}
		w.own(t, 3, bob, "192.0.2.1")
		w.own(t, 2, logout, "192.0.2.1")
		w.own(t, 120, byAdmin, "192.0.2.3")

		if time.Now().Truncate(time.Hour) != hour {
			t.Skip("a new hour has begun, and with it the counts")
		}
		var single, further, sum int64
		sources := map[string]int64{}
		for _, r := range w.all(t, store.AuditFilter{UserID: "a", Type: "login"}, 100) {
			sum += r.Count
			if r.SessionID != "" {
				single++
				continue
			}
			further++
			sources[r.Source] = r.Count
			if !r.Success || r.UserName != "alice" || r.ActorID != "a" || r.Detail == "" {
				t.Errorf("a record of further logins: %+v", r)
			}
		}
		if single != 100 || further != 17 || sum != 197 {
			t.Errorf("%d logins of their own, %d records of further ones, %d logins in all; want 100, 17 and 197", single, further, sum)
		}
		if sources["192.0.2.1"] != 50 || sources["192.0.2.2"] != 7 || sources["198.51.100.0"] != 1 || sources["many"] != 26 {
			t.Errorf("further logins by network: %v", sources)
		}
		for what, want := range map[store.AuditFilter]int{
			{UserID: "b", Type: "login"}: 3, {UserID: "a", Type: "logout"}: 2, {UserID: "a", Type: "session.revoked"}: 120,
		} {
			if got := len(w.all(t, what, 100)); got != want {
				t.Errorf("%+v: %d records, want %d", what, got, want)
			}
		}
		if lines := w.lines(); lines != 322 { // each event has a line in the log
			t.Errorf("%d lines", lines)
		}
	})
}

// Events beyond the records that one event reads are counted in one record too: the newest records
// count, so an event finds the record of the event before.
func TestOwnEventsBeyondManyRecords(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		hour := time.Now().Truncate(time.Hour)
		byAdmin := audit.Event{Type: audit.SessionRevoked, ActorID: "b", ActorName: "bob", UserID: "a", UserName: "alice"}
		err := w.store.Write(from("192.0.2.3"), func(tx *store.Tx) error {
			for range 2000 {
				if err := w.log.Record(from("192.0.2.3"), tx, byAdmin); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		w.own(t, 5, audit.Event{Type: audit.Login, ActorID: "a", ActorName: "alice", UserID: "a", UserName: "alice"}, "192.0.2.1")
		if time.Now().Truncate(time.Hour) != hour {
			t.Skip("a new hour has begun, and with it the counts")
		}
		if logins := w.all(t, store.AuditFilter{UserID: "a", Type: "login"}, 100); len(logins) != 1 || logins[0].Count != 5 {
			t.Errorf("%d records of 5 logins, the first of %+v", len(logins), logins[0])
		}
	})
}

// A login that is rolled back is counted nowhere.
func TestARolledBackEventIsNotCounted(t *testing.T) {
	w := open(t)
	alice := audit.Event{Type: audit.Login, ActorID: "a", UserID: "a"}
	w.own(t, 102, alice, "192.0.2.1")
	_ = w.store.Write(context.Background(), func(tx *store.Tx) error {
		if err := w.log.Record(from("192.0.2.1"), tx, alice); err != nil {
			t.Error(err)
		}
		return context.Canceled
	})
	var sum int64
	for _, r := range w.all(t, store.AuditFilter{UserID: "a"}, 100) {
		sum += r.Count
	}
	if sum != 102 {
		t.Errorf("%d logins are counted, want 102", sum)
	}
}

// The first exchanges of a service account in an hour have a record each. Further exchanges are
// counted in one record for each network. If the record has been deleted, the exchange makes a
// new record, so each exchange is counted.
func TestExchangesAreBounded(t *testing.T) {
	eachEngine(t, func(t *testing.T, w *world) {
		hour := time.Now().Truncate(time.Hour)
		service := audit.Event{Type: audit.TokenExchanged, ActorID: "s", ActorName: "notes", UserID: "s", UserName: "notes", Detail: "issuer ci, subject job"}
		other := service
		other.ActorID, other.UserID = "o", "o"
		w.own(t, 130, service, "192.0.2.1")
		w.own(t, 3, other, "192.0.2.1")
		sameHour := func() {
			t.Helper()
			if time.Now().Truncate(time.Hour) != hour {
				t.Skip("a new hour has begun, and with it the counts")
			}
		}
		lost := w.all(t, store.AuditFilter{UserID: "s"}, 100)[0] // the newest, in which further ones count
		sameHour()
		if lost.Count != 30 || lost.Detail == service.Detail {
			t.Errorf("the record of further exchanges: %+v", lost)
		}
		if err := w.store.Write(t.Context(), func(tx *store.Tx) error { return tx.DeleteAudit(lost.ID) }); err != nil {
			t.Fatal(err)
		}
		w.own(t, 20, service, "192.0.2.1")
		for i := range 40 {
			w.own(t, 1, service, fmt.Sprint("198.51.100.", i))
		}
		rolledBack := w.store.Write(from("192.0.2.1"), func(tx *store.Tx) error {
			return errors.Join(w.log.Record(from("192.0.2.1"), tx, service), context.Canceled)
		})
		if !errors.Is(rolledBack, context.Canceled) {
			t.Error(rolledBack)
		}
		sameHour()
		var single, sum int64
		sources := map[string]int64{}
		for _, r := range w.all(t, store.AuditFilter{UserID: "s"}, 100) {
			if sum += r.Count; r.Detail == service.Detail {
				single++
			} else {
				sources[r.Source] = r.Count
			}
		}
		if single != 100 || sum != 160 || len(sources) != 17 || sources["192.0.2.1"] != 20 || sources["many"] != 25 {
			t.Errorf("%d records of their own, %d exchanges in all, further ones by network: %v", single, sum, sources)
		}
		if got := len(w.all(t, store.AuditFilter{UserID: "o"}, 100)); got != 3 {
			t.Errorf("another account has %d records", got)
		}
	})
}
