package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// pagesOfSessions returns the ids of a user's sessions, read by pages of four.
func pagesOfSessions(t *testing.T, s *store.Store, u *store.User) (got []string) {
	t.Helper()
	var after store.SessionPlace
	for more := true; more; {
		read(t, s, func(tx *store.Tx) error {
			page, err := tx.Sessions(u, after, 4)
			for _, row := range page {
				got, after = append(got, row.ID), row.Place()
			}
			more = len(page) == 4
			return err
		})
	}
	return got
}

// A user's sessions are listed by age, the newest first: by the version at the login,
// then by time, then by id. Sessions that were ended, alone or with all sessions of the
// user, are left out.
func testPagesOfSessions(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	alice, bob := newUser("id-alice", "alice"), newUser("id-bob", "bob")
	alice.RevokedBelow = 6
	now := time.Now()
	var rows []*store.Session
	add := func(id string, version int64, created time.Time) *store.Session {
		row := newSession(id, alice.ID)
		row.BornVersion, row.CreatedAt = version, created
		rows = append(rows, row)
		return row
	}
	var want []string
	for i, id := range ids {
		switch {
		case i < 4: // these users have the same version and time
			add(id, 7, now)
			want = slices.Insert(want, 0, id)
		case i < 8: // later logins after the clock was set back: a higher version, and an earlier time
			add(id, 8, now.Add(-time.Duration(i)*time.Hour))
		}
	}
	want = append(slices.Clone(ids[4:8]), want...) // the users with version 8, the newest first
	add("the last", 6, now.Add(time.Hour))
	want = append(want, "the last")
	add("raised", 5, now)
	add("ended", 7, now).EndedAt = now
	insert(t, s, alice, rows...)
	insert(t, s, bob, newSession("C", bob.ID))
	if got := pagesOfSessions(t, s, alice); !slices.Equal(got, want) {
		t.Errorf("sessions %q, want %q", got, want)
	}
}

// SessionsBeyond lists the oldest sessions of a user with too many sessions: as many as are too
// many, and at most limit.
func testSessionsBeyond(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	alice := newUser("id-alice", "alice")
	alice.RevokedBelow = 7
	now := time.Now()
	var rows []*store.Session
	for i := range 10 {
		row := newSession(fmt.Sprint("s", i), alice.ID)
		row.CreatedAt = now.Add(time.Duration(i) * time.Minute)
		rows = append(rows, row)
	}
	rows[4].EndedAt, rows[1].BornVersion = now, 6 // two sessions have ended: s4 alone, s1 with all sessions of the user
	insert(t, s, alice, rows...)
	for _, c := range []struct {
		most, limit int
		want        []string
	}{
		{8, 3, nil}, {1000, 3, nil}, {7, 3, []string{"s0"}}, {6, 3, []string{"s0", "s2"}},
		{5, 3, []string{"s0", "s2", "s3"}}, {4, 3, []string{"s0", "s2", "s3"}}, {0, 100, []string{"s0", "s2", "s3", "s5", "s6", "s7", "s8", "s9"}},
	} {
		for name, run := range map[string]func(testing.TB, *store.Store, func(*store.Tx) error){"read": read, "write": write} {
			run(t, s, func(tx *store.Tx) error {
				var got []string
				beyond, err := tx.SessionsBeyond(alice, c.most, c.limit)
				for _, row := range beyond {
					got = append(got, row.ID)
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("%s, %d may stay, at most %d: %q, want %q", name, c.most, c.limit, got, c.want)
				}
				return err
			})
		}
	}
}

// With one filter, a call of Audit reads only the records that the filter selects, and a page is
// full if there are enough records. With several filters, a call reads at most scan records, and
// returns where the next page begins.
func testPagesOfAudit(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	const n, scan, rare = 200, 20, 9
	write(t, s, func(tx *store.Tx) error {
		for i := range n {
			r := &store.AuditRecord{Type: "login", UserID: "often", SessionID: "often"}
			if i%20 == 10 && i < rare*20 {
				r.Type, r.ActorID, r.SessionID = "rare", "rare", "rare"
			}
			if err := tx.InsertAudit(r); err != nil {
				return err
			}
		}
		return nil
	})
	// pages reads all records that a filter selects, and returns the numbers of pages and records.
	pages := func(f store.AuditFilter, limit int) (pages, all int) {
		seen := map[string]bool{}
		for {
			var page []*store.AuditRecord
			var next string
			read(t, s, func(tx *store.Tx) (err error) {
				page, next, err = tx.Audit(f, limit, scan)
				return err
			})
			pages++
			for _, r := range page {
				seen[r.ID] = true
			}
			if f.Before = next; next == "" {
				return pages, len(seen)
			}
		}
	}
	for _, c := range []struct {
		filter           store.AuditFilter
		limit, all, most int
	}{
		{store.AuditFilter{}, 7, n, n/7 + 1}, {store.AuditFilter{}, 20, n, 10}, {store.AuditFilter{}, 5000, n, 1},
		{store.AuditFilter{Type: "rare"}, 10, rare, 1}, {store.AuditFilter{Type: "rare"}, 9, rare, 1}, {store.AuditFilter{Type: "rare"}, 5, rare, 2},
		{store.AuditFilter{UserID: "rare"}, 10, rare, 1}, {store.AuditFilter{UserID: "often"}, 100, n, 2},
		{store.AuditFilter{SessionID: "rare"}, 10, rare, 1},
		{store.AuditFilter{UserID: "rare", Type: "rare"}, 10, rare, 1},
		{store.AuditFilter{UserID: "often", Type: "rare"}, 10, rare, n/scan + 1},
		{store.AuditFilter{SessionID: "often", Type: "rare"}, 10, 0, n/scan + 1},
	} {
		if pages, all := pages(c.filter, c.limit); all != c.all || pages > c.most {
			t.Errorf("%+v by %d: %d in %d pages, want %d in at most %d", c.filter, c.limit, all, pages, c.all, c.most)
		}
	}
	if pages, _ := pages(store.AuditFilter{UserID: "often", Type: "rare"}, 10); pages < n/scan {
		t.Errorf("two filters: %d pages, although one call reads %d records of %d", pages, scan, n)
	}
}
