package feed_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// asOf reads the tail, and returns the as-of time of a heartbeat, and the time before.
func asOf(t *testing.T, f *feed.Feed) (asOf, before time.Duration) {
	t.Helper()
	before = f.Hub().Elapsed()
	tail(t, f)
	w, err := f.Hub().Watch(t.Context(), hub.Peer{Name: "peer"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for {
		if beat := next(t, w).GetHeartbeat(); beat != nil {
			return beat.GetAsOf().AsDuration(), before
		}
	}
}

// A primary that a standby has replaced still answers, and no standby confirms its commits. A
// replica that reads from such a primary must not count as up to date, although the primary
// shows the commits that no standby has confirmed.
func TestAPrimaryThatCannotCommitIsNotFresh(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Options{})
	uri := primary.URI(t)
	if err := store.Migrate(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	f := openFeed(t, storetest.Open(t, uri))
	const proven = 200 * time.Millisecond
	err := feed.CountTick(f, t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fresh, before := asOf(t, f)
	if fresh < before {
		t.Fatalf("as of %v, at %v", fresh, before)
	}
	primary.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = 'gone'", "SELECT pg_reload_conf()")
	feed.ProvenFor(f, proven)
	for began := time.Now(); !errors.Is(err, store.ErrUncertain); { // tries until PostgreSQL has read the setting
		if time.Since(began) > time.Minute {
			t.Fatalf("a commit without a standby: %v", err)
		}
		err = feed.CountTick(f, t.Context()) // the tick before is young: nothing is counted
	}
	if now, before := asOf(t, f); now != fresh || before < fresh+proven {
		t.Errorf("as of %v, at %v; the last commit was before %v", now, before, fresh)
	}
	primary.Exec(t, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
	feed.ProvenFor(f, time.Minute)
	if err := feed.CountTick(f, t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, before := asOf(t, f); now < before {
		t.Errorf("after a commit: as of %v, at %v", now, before)
	}
}

// A reader of a SQLite file sees every commit, also if the disk is full.
func TestAFullDiskLeavesAFileFresh(t *testing.T) {
	f := openFeed(t, openStore(t, filepath.Join(t.TempDir(), "f.db")))
	feed.ProvenFor(f, 0)
	if now, before := asOf(t, f); now < before {
		t.Errorf("as of %v, at %v", now, before)
	}
}
