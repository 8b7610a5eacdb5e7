package storetest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

func testUsers(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	alice := newUser("id-alice", "alice")
	insert(t, s, alice)
	find := func() (byID, byName *store.User, errID, errName error) {
		read(t, s, func(tx *store.Tx) error {
			byID, errID = tx.User("id-alice")
			byName, errName = tx.UserByName("alice")
			return nil
		})
		return byID, byName, errID, errName
	}
	byID, byName, err1, err2 := find()
	if err := errors.Join(err1, err2); err != nil || !reflect.DeepEqual(byID, alice) || !reflect.DeepEqual(byName, alice) {
		t.Fatalf("%+v and %+v, %v; want %+v", byID, byName, err, alice)
	}
	alice.PasswordHash, alice.Roles, alice.Disabled, alice.Version, alice.RevokedBelow = "", nil, true, 1<<40, 1<<39
	alice.UpdatedAt, alice.DeletedAt = alice.UpdatedAt.Add(time.Hour), alice.UpdatedAt.Add(2*time.Hour)
	write(t, s, func(tx *store.Tx) error { return tx.UpdateUser(alice) })
	byID, _, err1, err2 = find()
	if err1 != nil || !reflect.DeepEqual(byID, alice) || !errors.Is(err2, store.ErrNotFound) {
		t.Fatalf("%+v, %v, by name %v; want %+v", byID, err1, err2, alice)
	}
	for name, fn := range map[string]func(*store.Tx) error{
		"User":           func(tx *store.Tx) error { _, err := tx.User("nobody"); return err },
		"UserByName":     func(tx *store.Tx) error { _, err := tx.UserByName("ALICE"); return err },
		"Session":        func(tx *store.Tx) error { _, err := tx.Session("nobody"); return err },
		"SessionAndUser": func(tx *store.Tx) error { _, _, err := tx.SessionAndUser("nobody"); return err },
	} {
		for _, run := range []func(*store.Tx) error{fn, func(tx *store.Tx) error { return errors.Join(tx.SetSetting("a", "b"), fn(tx)) }} {
			if err := s.Write(t.Context(), run); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
		write(t, s, func(tx *store.Tx) error { _ = fn(tx); return tx.SetSetting("went on", name) })
		wantSettings(t, s, map[string]string{"went on": name})
	}
}

// A name finds every user that has the name or had the name, also after a deletion.
func testUserIDs(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	first, second, third := newUser("first", "alice"), newUser("second", "alice"), newUser("third", "alice")
	change := func(u *store.User, edit func()) {
		edit()
		write(t, s, func(tx *store.Tx) error { return tx.UpdateUser(u) })
	}
	insert(t, s, first)
	change(first, func() { first.DeletedAt = first.UpdatedAt })
	insert(t, s, second)
	change(second, func() { second.Username = "bob" })
	change(second, func() { second.Username = "carl" })
	insert(t, s, third)
	insert(t, s, newUser("fourth", "dora"))
	for name, want := range map[string]string{"alice": "[first second third]", "bob": "[second]", "carl": "[second]", "dora": "[fourth]", "ALICE": "[]"} {
		read(t, s, func(tx *store.Tx) error {
			ids, err := tx.UserIDs(name, 10)
			if slices.Sort(ids); fmt.Sprint(ids) != want {
				t.Errorf("%s: %v, want %s", name, ids, want)
			}
			return err
		})
	}
	read(t, s, func(tx *store.Tx) error {
		ids, err := tx.UserIDs("alice", 2)
		if len(ids) != 2 {
			t.Errorf("%v, want two", ids)
		}
		return err
	})
}

// ids lists ids in the order of their bytes, which differs from the order of every language.
var ids = []string{"-a", "0", "B", "Z", "Za", "_", "a", "b", "z", "zB", "é"}

func testPagesOfUsers(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	for _, id := range slices.Backward(ids) {
		insert(t, s, newUser(id, "name of "+id))
	}
	gone := newUser("Y", "gone")
	gone.DeletedAt = time.Now()
	insert(t, s, gone)
	var got []string
	for after, more := "", true; more; {
		read(t, s, func(tx *store.Tx) error {
			page, err := tx.Users(after, 4)
			for _, u := range page {
				got, after = append(got, u.ID), u.ID
			}
			more = len(page) == 4
			return err
		})
	}
	if !slices.Equal(got, ids) {
		t.Errorf("users %q, want %q", got, ids)
	}
}

func testServices(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	search := newUser("id-search", "search")
	search.Kind, search.PasswordHash, search.Roles = store.KindService, "", []string{"admin"}
	search.Audiences, search.DelegatesTo = []string{"search", "search-internal"}, []string{"index"}
	gone := newUser("id-gone", "gone")
	gone.Kind, gone.PasswordHash, gone.DeletedAt = store.KindService, "", gone.CreatedAt
	insert(t, s, newUser("id-alice", "alice"))
	insert(t, s, search)
	insert(t, s, gone)
	want := func() {
		t.Helper()
		read(t, s, func(tx *store.Tx) error {
			byID, err1 := tx.User(search.ID)
			byName, err2 := tx.UserByName(search.Username)
			all, err3 := tx.UsersOf(store.KindService, "", 10)
			rest, err4 := tx.UsersOf(store.KindService, search.ID, 10)
			if !reflect.DeepEqual(byID, search) || !reflect.DeepEqual(byName, search) || !reflect.DeepEqual(all, []*store.User{search}) || len(rest) > 0 {
				t.Errorf("%+v, %+v, %+v and then %+v; want %+v", byID, byName, all, rest, search)
			}
			if another, err := tx.AnotherAdmin("id-alice"); err != nil || another {
				t.Errorf("a service account counts as an admin: %t, %v", another, err)
			}
			return errors.Join(err1, err2, err3, err4)
		})
	}
	want()
	search.Audiences, search.DelegatesTo = nil, []string{"billing", "index"}
	write(t, s, func(tx *store.Tx) error { return tx.UpdateUser(search) })
	want()
}

func testSessions(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	alice, row := newUser("id-alice", "alice"), newSession("s1", "id-alice")
	insert(t, s, alice, row)
	find := func() (got *store.Session) {
		t.Helper()
		read(t, s, func(tx *store.Tx) error {
			var err error
			if got, err = tx.Session("s1"); err != nil {
				return err
			}
			joined, u, err := tx.SessionAndUser("s1")
			if !reflect.DeepEqual(joined, got) || !reflect.DeepEqual(u, alice) {
				t.Errorf("SessionAndUser: %+v of %+v, want %+v of %+v", joined, u, got, alice)
			}
			return err
		})
		return got
	}
	if got := find(); !reflect.DeepEqual(got, row) {
		t.Fatalf("%+v, want %+v", got, row)
	}
	g := store.Generations{Current: 9, Spent: 8, SpentAt: row.CreatedAt.Add(time.Hour), Low: 7, EarlierLow: 6, Late: 5, LateAt: row.CreatedAt.Add(time.Minute), Repeated: 4, Run: 3}
	write(t, s, func(tx *store.Tx) error {
		row.Generations, row.RefreshedAt = g, tx.Now()
		return tx.AdvanceSession("s1", g)
	})
	if got := find(); !reflect.DeepEqual(got, row) {
		t.Fatalf("advanced: %+v, want %+v", got, row)
	}
	row.Generations.Repeated, row.Generations.Run = 9, 4
	write(t, s, func(tx *store.Tx) error {
		_, err := tx.Session("s1")
		return errors.Join(err, tx.CountRepeat("s1", row.Generations))
	})
	if got := find(); !reflect.DeepEqual(got, row) {
		t.Fatalf("repeated: %+v, want %+v", got, row)
	}
	for range 2 { // the second EndSession leaves the time of the first
		write(t, s, func(tx *store.Tx) error {
			if row.EndedAt.IsZero() {
				row.EndedAt = tx.Now()
			}
			return tx.EndSession("s1")
		})
		if got := find(); !reflect.DeepEqual(got, row) {
			t.Fatalf("ended: %+v, want %+v", got, row)
		}
	}
}

func testPruneSessions(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	u := newUser("u", "u")
	var rows []*store.Session
	for i := range 25 {
		rows = append(rows, newSession(fmt.Sprintf("s%02d", i), "u"))
	}
	insert(t, s, u, rows...)
	seen := map[string]bool{}
	steps := 0
	for after, more := "", true; more; steps++ {
		write(t, s, func(tx *store.Tx) (err error) {
			after, err = tx.PruneSessions(after, 10, func(row *store.Session) bool {
				seen[row.ID] = true
				return row.ID == "s13"
			})
			return err
		})
		more = after != ""
	}
	read(t, s, func(tx *store.Tx) error {
		left, err := tx.Sessions(u, store.SessionPlace{}, 100)
		if len(seen) != 25 || steps != 3 || len(left) != 1 || left[0].ID != "s13" {
			t.Errorf("saw %d in %d steps, left %v", len(seen), steps, left)
		}
		return err
	})
}

func testAudit(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	records := insertAudit(t, s)
	older := records[6].Time()
	for name, f := range map[string]struct {
		filter store.AuditFilter
		want   func(i int) bool
	}{
		"all":     {store.AuditFilter{}, func(int) bool { return true }},
		"type":    {store.AuditFilter{Type: "login"}, func(i int) bool { return records[i].Type == "login" }},
		"user":    {store.AuditFilter{UserID: "user2"}, func(i int) bool { return records[i].UserID == "user2" }},
		"actor":   {store.AuditFilter{UserID: "actor1"}, func(i int) bool { return records[i].ActorID == "actor1" }},
		"session": {store.AuditFilter{SessionID: "session5"}, func(i int) bool { return records[i].SessionID == "session5" }},
		"start":   {store.AuditFilter{Start: older}, func(i int) bool { return i <= 6 }},
		"end":     {store.AuditFilter{End: older}, func(i int) bool { return i > 6 }},
		"before":  {store.AuditFilter{Before: records[3].ID}, func(i int) bool { return i > 3 }},
		"both":    {store.AuditFilter{Before: records[3].ID, End: older}, func(i int) bool { return i > 6 }},
		"user and type": {store.AuditFilter{Type: "login", UserID: "actor1"}, func(i int) bool {
			return records[i].Type == "login" && records[i].ActorID == "actor1"
		}},
		"acting on themselves": {store.AuditFilter{UserID: "self"}, func(i int) bool { return records[i].UserID == "self" }},
		"nobody":               {store.AuditFilter{UserID: "user9"}, func(int) bool { return false }},
		"everything": {store.AuditFilter{Type: "login", UserID: "user2", SessionID: "session2"}, func(i int) bool {
			r := records[i]
			return r.Type == "login" && r.UserID == "user2" && r.SessionID == "session2"
		}},
		"injection": {store.AuditFilter{Type: "' OR '' = '"}, func(int) bool { return false }},
	} {
		var want []*store.AuditRecord
		for i, r := range records {
			if f.want(i) {
				want = append(want, r)
			}
		}
		read(t, s, func(tx *store.Tx) error {
			got, next, err := tx.Audit(f.filter, 100, 100)
			if !reflect.DeepEqual(got, want) || next != "" {
				t.Errorf("%s: %d records and next %q, want %d", name, len(got), next, len(want))
			}
			return err
		})
	}
	write(t, s, func(tx *store.Tx) error {
		ok, err := tx.SetAuditCount(records[0].ID, 77)
		none, err2 := tx.SetAuditCount("no such record", 1)
		n, err3 := tx.PruneAudit(older, 3)
		rest, err4 := tx.PruneAudit(older, 3)
		err5 := errors.Join(tx.DeleteAudit(records[1].ID), tx.DeleteAudit("no such record"))
		if !ok || none || n != 3 || rest != 2 {
			t.Errorf("counted %v and %v, pruned %d and %d", ok, none, n, rest)
		}
		return errors.Join(err, err2, err3, err4, err5)
	})
	read(t, s, func(tx *store.Tx) error {
		got, _, err := tx.Audit(store.AuditFilter{}, 100, 100)
		if len(got) != 6 || got[0].Count != 77 {
			t.Errorf("%d are left, the newest counts %d", len(got), got[0].Count)
		}
		return err
	})
}

// insertAudit writes a dozen records, and returns the newest first.
func insertAudit(t *testing.T, s *store.Store) (records []*store.AuditRecord) {
	t.Helper()
	for i := range 12 {
		r := &store.AuditRecord{
			Type: []string{"login", "logout", "refresh"}[i%3], Success: i%2 == 0, Reason: "r", ActorID: fmt.Sprint("actor", i%2), ActorName: "a", UserID: fmt.Sprint("user", i%4), UserName: "u",
			SessionID: fmt.Sprint("session", i%6), KID: "k", Source: "192.0.2.1", Detail: "ünïcode \"and\" quotes", Count: int64(i),
		}
		if i == 4 {
			r.ActorID, r.UserID = "self", "self"
		}
		var now time.Time
		write(t, s, func(tx *store.Tx) error { now = tx.Now(); return tx.InsertAudit(r) })
		if !r.Time().Equal(now) {
			t.Fatalf("a record of %v says %v", now, r.Time())
		}
		records = slices.Insert(records, 0, r)
	}
	return records
}

func testKeys(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	now := time.Now().UTC().Truncate(time.Microsecond)
	first := &store.SigningKey{KID: "b", Algorithm: "EdDSA", PublicKey: []byte{0, 1, 255}, SealedKey: []byte("sealed"), PublishedAt: now}
	second := &store.SigningKey{KID: "a", Algorithm: "ES256", PublicKey: []byte{2}, SealedKey: []byte("sealed too"), PublishedAt: now.Add(time.Second), SignsFrom: now, Counter: 1 << 60, Tag: []byte{0, 7}}
	mac := &store.MACKey{ID: 1, SealedKey: []byte{9, 0}, CreatedAt: now}
	write(t, s, func(tx *store.Tx) error {
		return errors.Join(tx.InsertSigningKey(second), tx.InsertSigningKey(first), tx.InsertMACKey(mac))
	})
	want := func(keys ...*store.SigningKey) {
		t.Helper()
		read(t, s, func(tx *store.Tx) error {
			got, err := tx.SigningKeys()
			macs, err2 := tx.MACKeys()
			if !reflect.DeepEqual(got, keys) || !reflect.DeepEqual(macs, []*store.MACKey{mac}) {
				t.Errorf("keys %+v and %+v", got, macs)
			}
			return errors.Join(err, err2)
		})
	}
	want(first, second)
	for name, err := range map[string]error{
		"signing": s.Write(t.Context(), func(tx *store.Tx) error { return tx.InsertSigningKey(first) }),
		"MAC":     s.Write(t.Context(), func(tx *store.Tx) error { return tx.InsertMACKey(mac) }),
	} {
		if !errors.Is(err, store.ErrExists) {
			t.Errorf("a second %s key of the same name: %v", name, err)
		}
	}
	second.SignsFrom, second.SignsUntil, second.VerifiesUntil, second.RevokedAt = now.Add(1e9), now.Add(2e9), now.Add(3e9), now.Add(4e9)
	second.SealedKey, mac.SealedKey = []byte("new"), []byte("new too")
	second.Counter, second.Tag = 1<<60+1, []byte{1}
	write(t, s, func(tx *store.Tx) error {
		return errors.Join(tx.UpdateSigningKey(second), tx.ResealMACKey(1, mac.SealedKey), tx.DeleteSigningKey("b"))
	})
	want(second)
	write(t, s, (*store.Tx).DeleteMACKeys)
	read(t, s, func(tx *store.Tx) error {
		macs, err := tx.MACKeys()
		if len(macs) > 0 {
			t.Errorf("MAC keys remain: %+v", macs)
		}
		return err
	})
}

func testSettings(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	write(t, s, func(tx *store.Tx) error {
		err := errors.Join(tx.SetSetting("a", "1"), tx.SetSetting("a", "ü'\"\\"), tx.SetSetting("", "empty name"))
		value, err2 := tx.Setting("a") // a transaction reads what the same transaction has written
		if value != "ü'\"\\" {
			t.Errorf("a = %q in its transaction", value)
		}
		return errors.Join(err, err2)
	})
	wantSettings(t, s, map[string]string{"a": "ü'\"\\", "": "empty name", "A": "", "none": ""})
}
