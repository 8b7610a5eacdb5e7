package feed_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/store"
)

// wantFloor checks that new tokens have at least a version.
func wantFloor(t *testing.T, s *store.Store, least int64) {
	t.Helper()
	err := s.Read(t.Context(), func(tx *store.Tx) error {
		floor, _, err := tx.FloorAndQuestion()
		if err == nil && floor < least {
			t.Errorf("the floor is %d, want at least %d", floor, least)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A feed that notices a fork raises the floor before its watchers connect again: to the
// clock, and to every version that the feed has read of the lost history. ahead is a
// version ahead of the clock, as after a clock that was set back.
func TestAForkRaisesTheFloor(t *testing.T) {
	ahead := time.Now().Add(time.Hour).Unix()
	raise := func(version int64) func(*feed.Tx) error {
		return func(tx *feed.Tx) error { return tx.VersionRaised("alice", version, true) }
	}
	for name, c := range map[string]struct {
		lost  func(*feed.Tx) error
		undo  []string
		least int64
	}{
		"the clock": {raise(7), []string{`DELETE FROM events WHERE seq > 1`, `UPDATE head SET seq = 1`}, time.Now().Unix()},
		"a version": {raise(ahead), []string{`DELETE FROM events WHERE seq > 1`, `UPDATE head SET seq = 1`}, ahead},
		"a floor, and no event": {
			func(tx *feed.Tx) error { return tx.RaiseFloor(ahead) },
			[]string{`UPDATE settings SET value = '7' WHERE name = 'version_floor'`}, ahead,
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f.db")
			s := openStore(t, path)
			write(t, s, ended("kept"))
			write(t, s, c.lost)
			f := openFeed(t, s)
			w := watch(t, f)
			resume(t, w)
			run(t, f)
			rewrite(t, path, c.undo...)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			for {
				_, err := w.Next(ctx)
				if errors.Is(err, hub.ErrBehind) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			wantFloor(t, s, c.least)
			if stats := f.Stats(); stats.Forks != 1 || f.Hub().Stats().Behind == 0 {
				t.Errorf("after one fork: %+v, %+v", stats, f.Hub().Stats())
			}
		})
	}
}

// A server that starts on a restored database learns from the resume tokens of watchers
// which versions the database has lost.
func TestAWatcherRaisesTheFloor(t *testing.T) {
	ahead := time.Now().Add(time.Hour).Unix()
	for name, after := range map[string][]string{"behind": nil, "longer": {"other", "another"}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f.db")
			s := openStore(t, path)
			write(t, s, ended("kept"))
			write(t, s, func(tx *feed.Tx) error { return tx.VersionRaised("alice", ahead, false) })
			_, at := resume(t, watch(t, openFeed(t, s)))
			rewrite(t, path, `DELETE FROM events WHERE seq > 1`, `UPDATE head SET seq = 1`)
			for _, id := range after {
				write(t, s, ended(id))
			}
			f := openFeed(t, s)
			run(t, f)
			rejoin(t, f, at)
			wantFloor(t, s, ahead)
		})
	}
}
