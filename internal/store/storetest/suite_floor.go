package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/watchword-auth/watchword/internal/store"
)

func floorOf(t testing.TB, s *store.Store) (floor int64) {
	t.Helper()
	read(t, s, func(tx *store.Tx) (err error) {
		floor, _, err = tx.FloorAndQuestion()
		return err
	})
	return floor
}

func testFloor(t *testing.T, new func(testing.TB) string) {
	s := Open(t, new(t))
	insert(t, s, newUser("id-alice", "alice"), newSession("s1", "id-alice"))
	generation := int64(0)
	wantVersions := func(floor, version int64) {
		t.Helper()
		if got := floorOf(t, s); got != floor {
			t.Errorf("the floor is %d, want %d", got, floor)
		}
		write(t, s, func(tx *store.Tx) error {
			held, err := tx.HoldFloor()
			if held != floor {
				t.Errorf("holds the floor %d, want %d", held, floor)
			}
			byID, err1 := tx.User("id-alice")
			byName, err2 := tx.UserByName("alice")
			_, ofSession, err3 := tx.SessionAndUser("s1")
			listed, err4 := tx.Users("", 10)
			if err := errors.Join(err, err1, err2, err3, err4); err != nil {
				return err
			}
			for _, u := range append(listed, byID, byName, ofSession) {
				if u.TokenVersion() != version || u.Version != 7 {
					t.Errorf("the version of a token is %d and of the row %d, want %d and 7", u.TokenVersion(), u.Version, version)
				}
			}
			return nil
		})
		generation++
		spent, err := spend(s, "s1", generation)
		if err != nil || spent.TokenVersion() != version {
			t.Errorf("spending gives the version %d, %v, want %d", spent.TokenVersion(), err, version)
		}
	}
	raise := func(least int64) {
		t.Helper()
		write(t, s, func(tx *store.Tx) error { return tx.RaiseFloor(least) })
	}
	wantVersions(0, 7)
	raise(5)
	wantVersions(5, 7)
	raise(100) // above 5 as a number, and below as a text
	wantVersions(100, 100)
	raise(99)
	wantVersions(100, 100)
	failed := errors.New("failed")
	if err := s.Write(context.Background(), func(tx *store.Tx) error { return errors.Join(tx.RaiseFloor(200), failed) }); !errors.Is(err, failed) {
		t.Error(err)
	}
	wantVersions(100, 100)
}
