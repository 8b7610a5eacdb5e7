package feed_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/store"
)

// ahead returns a database, a feed that has not read the newest event, and the resume
// token of a watcher that knows this event from another feed. The feed that is behind
// never polls by itself.
func ahead(t *testing.T) (s *store.Store, behind *feed.Feed, at []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.db")
	first := openStore(t, path)
	write(t, first, ended("both know"))
	s = openStore(t, path)
	behind = openFeed(t, s)
	behind.Pace(time.Hour, time.Hour)
	write(t, first, ended("one knows"))
	_, at = resume(t, watch(t, openFeed(t, first)))
	return s, behind, at
}

// If watchers know more than a feed, the feed first reads the new events. Each
// watcher then receives the events that it has missed, and no others.
func TestAFeedThatIsBehindReadsBeforeItTells(t *testing.T) {
	s, behind, at := ahead(t)
	write(t, s, ended("neither knows"))
	run(t, behind)
	var all sync.WaitGroup
	watchers := make([]*hub.Watcher, 100)
	for i := range watchers {
		all.Go(func() {
			var err error
			if watchers[i], err = behind.Hub().Watch(t.Context(), hub.Peer{Name: "peer"}, at); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for _, w := range watchers {
		if sessions, _ := resume(t, w); !slices.Contains(sessions, "neither knows") || slices.Contains(sessions, "both know") {
			t.Errorf("received %v", sessions)
		}
		w.Close()
	}
}

// A feed that is behind and cannot read refuses a watcher that knows more, and serves
// the other watchers.
func TestAFeedThatIsBehindAndCannotReadUndoesNothing(t *testing.T) {
	for name, lose := range map[string]func(*testing.T, *store.Store, *feed.Feed){
		"the database is gone": func(t *testing.T, s *store.Store, f *feed.Feed) { s.Close(); run(t, f) },
		"nothing comes of it":  func(*testing.T, *store.Store, *feed.Feed) {}, // Run is not running
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, behind, at := ahead(t)
				_, old := resume(t, watch(t, behind))
				lose(t, s, behind)
				began := time.Now()
				if _, err := behind.Hub().Watch(t.Context(), hub.Peer{Name: "peer"}, at); !errors.Is(err, hub.ErrOutdated) {
					t.Errorf("a watcher that knows more: %v", err)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("after %v", took)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				if _, err := behind.Hub().Watch(ctx, hub.Peer{Name: "peer"}, at); !errors.Is(err, hub.ErrOutdated) && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a watcher without time: %v", err)
				}
				for want, from := range map[int][]byte{1: nil, 0: old} {
					if sessions, _ := resume(t, rejoin(t, behind, from)); len(sessions) != want {
						t.Errorf("received %v, want %d", sessions, want)
					}
				}
			})
		})
	}
}

// A reading that began before a watcher came may lack an event that the watcher
// knows. So the watcher waits for the next reading.
func TestAWatcherWaitsForAReadingThatBeginsAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
		write(t, s, ended("both know"))
		var began bool
		reading, goOn := make(chan struct{}), make(chan struct{})
		f := openWith(t, s, func(context.Context, *store.Tx) (set feed.KeySet, err error) {
			if began {
				reading <- struct{}{}
				<-goOn
			}
			return set, err
		})
		began = true
		write(t, s, (*feed.Tx).KeysChanged)
		var all sync.WaitGroup
		all.Go(func() {
			if err := feed.CatchUp(f, t.Context()); err != nil {
				t.Error(err)
			}
		})
		<-reading
		write(t, s, ended("new"))
		_, at := resume(t, watch(t, openFeed(t, s)))
		all.Go(func() {
			w, err := f.Hub().Watch(t.Context(), hub.Peer{Name: "peer"}, at)
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			if sessions, _ := resume(t, w); len(sessions) != 0 {
				t.Errorf("received %v", sessions)
			}
		})
		synctest.Wait()
		close(goOn)
		synctest.Wait()
		tail(t, f)
		all.Wait()
	})
}
