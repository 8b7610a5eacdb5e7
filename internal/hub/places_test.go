package hub_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/hub"
)

// crowd takes all places of a hub: three strangers of one network, six watchers with the
// same certificate, and five with each of three others.
func crowd(t *testing.T, s *source) (strangers, certified []*hub.Watcher) {
	t.Helper()
	s.LimitWatchers(24, nil)
	take := func(from hub.Peer, n int) (all []*hub.Watcher) {
		for range n {
			w, err := s.Watch(t.Context(), from, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(w.Close)
			all = append(all, w)
		}
		return all
	}
	for _, name := range []string{"one", "two", "three"} {
		take(hub.Peer{Name: name, Certified: true}, 5)
	}
	strangers = take(hub.Peer{Name: "network"}, 3)
	return strangers, take(hub.Peer{Name: "certificate", Certified: true}, 6)
}

func evicted(watchers []*hub.Watcher) (n int) {
	for _, w := range watchers {
		select {
		case <-w.Evicted():
			n++
		default:
		}
	}
	return n
}

// In a full hub, a watcher without a place gets the place of the peer that holds most. A
// watcher that loses its place is told so, whether it waits for a message or for its turn.
func TestTheHeaviestPeerGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		strangers, certified := crowd(t, s)
		opening(t, certified[5])
		waiting := make(chan error)
		go func() {
			_, err := certified[5].Next(context.Background())
			waiting <- err
		}()
		synctest.Wait()
		for i, want := range []struct{ strangers, certified int }{{1, 0}, {1, 1}} { // the places of strangers and of certified: first 6 and 6, then 4 and 6, then 4 and 5
			w, err := s.Watch(t.Context(), hub.Peer{Name: "newcomer"}, nil)
			if err != nil {
				t.Fatalf("newcomer %d: %v", i, err)
			}
			defer w.Close()
			if a, b := evicted(strangers), evicted(certified); a != want.strangers || b != want.certified {
				t.Errorf("newcomer %d: %d strangers and %d certified watchers gave way, want %+v", i, a, b, want)
			}
			if i == 1 {
				if err := <-waiting; !errors.Is(err, hub.ErrEvicted) {
					t.Errorf("a watcher that waits for a message: %v", err)
				}
			}
		}
		if _, err := strangers[2].Next(t.Context()); !errors.Is(err, hub.ErrEvicted) {
			t.Errorf("a watcher with messages to read: %v", err)
		}
		if _, err := s.Watch(t.Context(), hub.Peer{Name: "certificate", Certified: true}, nil); !errors.Is(err, hub.ErrTooManyWatchers) {
			t.Errorf("another watcher of a peer that holds no less than the others: %v", err)
		}
	})
}

// A watcher that waits for its turn to get a snapshot can lose its place like any other watcher.
func TestAWatcherInTheQueueGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.LimitWatchers(80, nil)
		opened := make(chan error, 20)
		for range 20 {
			go func() {
				w, err := s.Watch(t.Context(), hub.Peer{Name: "network"}, nil)
				if err == nil {
					t.Cleanup(w.Close)
				}
				opened <- err
			}()
			synctest.Wait() // lets the newest watchers wait
		}
		_, at := opening(t, watch(t, s, nil))
		if len(opened) != 16 {
			t.Fatalf("%d watchers of a network have their turn, want 16", len(opened))
		}
		for i := range 60 {
			w, err := s.Watch(t.Context(), hub.Peer{Name: fmt.Sprint(i)}, at)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
		}
		synctest.Wait()
		for range 16 {
			if err := <-opened; err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-opened:
			if !errors.Is(err, hub.ErrEvicted) {
				t.Errorf("a watcher in the queue: %v", err)
			}
		case <-time.After(time.Second):
			t.Error("no watcher in the queue gave way")
		}
	})
}

// A resume token counts as a proof if it names an event of the history: a watcher with such a
// token takes the place of a stranger, even if the watcher's own peer already holds as many
// places as allowed.
func TestAGoodResumeIsNoStranger(t *testing.T) {
	s, good := known(t, "one")
	_, atStart := opening(t, watch(t, newSource(), nil))
	forged := slices.Clone(good)
	forged[8]++ // changes the tag of the event in the token
	ahead := slices.Clone(good)
	ahead[7]++ // changes the number of the event in the token
	for what, c := range map[string]struct {
		resume []byte
		want   bool
	}{
		"none":                          {nil, false},
		"good":                          {good, true},
		"with a forged tag":             {forged, false},
		"ahead of the hub":              {ahead, false},
		"of another database":           {append(slices.Clone(good), 'x'), false},
		"cut off":                       {good[:12], false},
		"from before the first event":   {atStart, false},
		"from before a new trust state": {good, true},
	} {
		t.Run(what, func(t *testing.T) {
			if what == "from before a new trust state" {
				s.publish(&watchwordv1.Change{TrustState: trust(2 * time.Minute)}, 1)
			}
			s.LimitWatchers(2, nil) // a peer may hold one of the two places
			stranger := watch(t, s, nil)
			w, err := s.Watch(t.Context(), hub.Peer{Name: "peer"}, c.resume)
			if err == nil {
				defer w.Close()
			}
			if got := err == nil; got != c.want || c.want != (evicted([]*hub.Watcher{stranger}) == 1) {
				t.Errorf("taken for a known watcher: %v (%v), want %v", got, err, c.want)
			}
		})
	}
}
