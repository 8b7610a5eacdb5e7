package user_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/user"
)

// A raised version is above the floor, and so above the version of every token from before.
// While a transaction raises a version, the floor stays: a refresh at the same time would
// mint the user's earlier rights with the raised floor.
func TestARaisedVersionIsAboveTheFloor(t *testing.T) {
	uri := storetest.Postgres(t)
	s := storetest.Open(t, uri)
	const floor = 1 << 40 // far ahead of the clock
	err := feed.Direct(s).Write(t.Context(), func(tx *feed.Tx) error {
		return errors.Join(tx.InsertUser(&store.User{ID: "alice", Username: "alice", Version: 7}),
			tx.InsertUser(&store.User{ID: "bob", Username: "bob", Version: 7}), tx.Tx.RaiseFloor(floor))
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	lockFloor := func() string {
		_, err := conn.Exec(t.Context(), `SELECT value FROM settings WHERE name = 'version_floor' FOR NO KEY UPDATE NOWAIT`)
		var refused *pgconn.PgError
		errors.As(err, &refused)
		if refused == nil {
			return ""
		}
		return refused.Code
	}
	const notAvailable = "55P03"
	err = feed.Direct(s).Write(t.Context(), func(tx *feed.Tx) error {
		u, err := user.Find(tx.Tx, "alice")
		if err != nil {
			return err
		}
		if code := lockFloor(); code != "" {
			t.Errorf("before the raise, locking the floor ends with %q", code)
		}
		if err := user.Raise(tx, u, true); err != nil {
			return err
		}
		if u.Version != floor+1 || u.RevokedBelow != floor+1 {
			t.Errorf("raised to %d, revoked below %d, want %d", u.Version, u.RevokedBelow, int64(floor+1))
		}
		if code := lockFloor(); code != notAvailable {
			t.Errorf("during the raise, locking the floor ends with %q, want %s", code, notAvailable)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if code := lockFloor(); code != "" {
		t.Errorf("after the commit, locking the floor ends with %q", code)
	}
	if _, err := user.RaiseAll(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	err = s.Read(t.Context(), func(tx *store.Tx) error {
		for id, want := range map[string]int64{"alice": floor + 2, "bob": floor + 1} {
			u, err := user.Find(tx, id)
			if err != nil {
				return err
			}
			if u.Version != want || u.RevokedBelow != want {
				t.Errorf("RaiseAll raised %s to %d, revoked below %d, want %d", id, u.Version, u.RevokedBelow, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
