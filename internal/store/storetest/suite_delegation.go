package storetest

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// testStanding compares what one statement reads with what the statements for single rows read.
func testStanding(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	alice, search := newUser("alice", "alice"), newUser("search", "search")
	alive, ended := newSession("alive", "alice"), newSession("ended", "alice")
	search.Kind, search.PasswordHash, search.Audiences, search.DelegatesTo = store.KindService, "", []string{"a", "b"}, []string{"c"}
	search.Disabled, search.RevokedBelow, search.DeletedAt = true, 5, search.UpdatedAt
	insert(t, s, alice, alive, ended)
	insert(t, s, search)
	at := time.Now().UTC().Truncate(time.Microsecond)
	head := &store.Event{}
	write(t, s, func(tx *store.Tx) error {
		return errors.Join(tx.EndSession("ended"), tx.RaiseFloor(9), tx.RaiseDelegatedNotBefore(at), tx.RaiseDelegatedNotBefore(at.Add(-time.Hour)),
			tx.AppendEvent(newEvent(tx, "ended")), tx.HeadInto(&head.Seq, &head.Tag))
	})
	for _, session := range []string{"alive", "ended", "unknown", ""} {
		var got, want store.Standing
		read(t, s, func(tx *store.Tx) error {
			standing, err := tx.Standing(session, []string{"alice", "search", "unknown", "alice"})
			if err != nil {
				return err
			}
			got = *standing
			want = store.Standing{Users: map[string]*store.User{}, NotBefore: at, Head: *head, Now: tx.Now()}
			for _, id := range []string{"alice", "search"} {
				u, err := tx.User(id)
				if err != nil {
					return err
				}
				u.PasswordHash, u.CreatedAt, u.UpdatedAt = "", time.Time{}, time.Time{}
				want.Users[id] = u
			}
			if row, err := tx.Session(session); err == nil {
				want.Session = &store.Session{ID: row.ID, UserID: row.UserID, BornVersion: row.BornVersion, EndedAt: row.EndedAt}
			}
			return nil
		})
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, want %+v", session, got, want)
		}
	}
	var none *store.Standing
	read(t, s, func(tx *store.Tx) (err error) {
		none, err = tx.Standing("alive", nil)
		return err
	})
	if len(none.Users) != 0 {
		t.Errorf("%+v", none)
	}
}
