package feed_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openStore(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openFeed(t *testing.T, s *store.Store) *feed.Feed {
	t.Helper()
	f, err := feed.Open(context.Background(), s, "https://auth.test", "database", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// run tails the store until the test ends.
func run(t *testing.T, f *feed.Feed) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

func newFeed(t *testing.T) (*feed.Feed, *store.Store) {
	t.Helper()
	s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
	f := openFeed(t, s)
	run(t, f)
	return f, s
}

func ended(id string) func(*store.Tx) error {
	return func(tx *store.Tx) error { return feed.SessionEnded(tx, id) }
}

func write(t *testing.T, s *store.Store, fn func(*store.Tx) error) {
	t.Helper()
	if err := s.Write(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func watch(t *testing.T, f *feed.Feed) *feed.Watcher {
	t.Helper()
	w, err := f.Watch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

func next(t *testing.T, w *feed.Watcher) *watchwordv1.WatchBundleResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// snapshot reads up to the heartbeat behind the snapshot, and returns the sessions that ended.
func snapshot(t *testing.T, w *feed.Watcher) (sessions []string, versions []*watchwordv1.RaisedVersion) {
	t.Helper()
	for last := false; !last; {
		chunk := next(t, w).GetSnapshotChunk()
		for _, e := range chunk.GetEndedSessions() {
			sessions = append(sessions, e.GetSessionId())
		}
		versions = append(versions, chunk.GetRaisedVersions()...)
		last = chunk.GetLast()
	}
	if next(t, w).GetHeartbeat().GetServerTime() == nil {
		t.Fatal("no heartbeat behind the snapshot")
	}
	return sessions, versions
}

func TestSnapshotThenChanges(t *testing.T) {
	f, s := newFeed(t)
	early := watch(t, f)
	if sessions, _ := snapshot(t, early); len(sessions) != 0 {
		t.Fatalf("an empty database ended %v", sessions)
	}
	write(t, s, ended("one"))
	write(t, s, func(tx *store.Tx) error { return feed.VersionRaised(tx, "alice", 7, true) })
	for got := 0; got < 2; {
		change := next(t, early).GetChange()
		for _, e := range change.GetEndedSessions() {
			if e.GetSessionId() != "one" || !e.GetUntil().AsTime().After(time.Now()) {
				t.Fatalf("ended %v", e)
			}
			got++
		}
		for _, r := range change.GetRaisedVersions() {
			if r.GetUserId() != "alice" || r.GetVersion() != 7 || !r.GetRevoked() {
				t.Fatalf("raised %v", r)
			}
			got++
		}
	}
	sessions, versions := snapshot(t, watch(t, f))
	if len(sessions) != 1 || len(versions) != 1 {
		t.Fatalf("a later snapshot holds %v, %v", sessions, versions)
	}
}

func TestAnotherProcessIsHeardWithinASecond(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.db")
	f := openFeed(t, openStore(t, path))
	run(t, f)
	w := watch(t, f)
	snapshot(t, w)
	began := time.Now()
	write(t, openStore(t, path), ended("there"))
	for next(t, w).GetChange() == nil {
	}
	if took := time.Since(began); took > time.Second {
		t.Fatalf("heard after %v", took)
	}
}

func TestEventsOutliveARestartUntilTheyExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
		write(t, s, func(tx *store.Tx) error { return feed.RaiseMaxLifetime(tx, time.Minute) })
		write(t, s, ended("one"))
		f := openFeed(t, s)
		if sessions, _ := snapshot(t, watch(t, f)); len(sessions) != 1 {
			t.Fatalf("after a restart: %v", sessions)
		}
		if max := f.TrustState().GetMaxTokenLifetime().AsDuration(); max != time.Minute {
			t.Fatalf("longest lifetime %v", max)
		}
		time.Sleep(time.Minute + feed.Margin - time.Second)
		if err := f.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if sessions, _ := snapshot(t, watch(t, openFeed(t, s))); len(sessions) != 1 {
			t.Fatal("forgotten before the last token has expired")
		}
		time.Sleep(2 * time.Second)
		if err := f.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if sessions, _ := snapshot(t, watch(t, openFeed(t, s))); len(sessions) != 0 {
			t.Fatalf("never pruned: %v", sessions)
		}
		run(t, f)
		time.Sleep(10 * time.Second)
		if sessions, _ := snapshot(t, watch(t, f)); len(sessions) != 0 {
			t.Fatalf("kept in memory: %v", sessions)
		}
	})
}

func TestASlowWatcherIsDropped(t *testing.T) {
	f, _ := newFeed(t)
	slow := watch(t, f)
	snapshot(t, slow)
	for range 10_000 {
		feed.Beat(f)
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, feed.ErrBehind) {
		t.Fatalf("ten thousand messages were kept for it: %v", err)
	}
	snapshot(t, watch(t, f)) // it may come back
}

func TestALargeSnapshotComesInChunks(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "f.db"))
	const n = 10_001
	write(t, s, func(tx *store.Tx) error {
		for i := range n {
			if err := feed.SessionEnded(tx, fmt.Sprintf("%016d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	w := watch(t, openFeed(t, s))
	if first := len(next(t, w).GetSnapshotChunk().GetEndedSessions()); first >= n {
		t.Fatal("all in one message")
	}
	sessions, _ := snapshot(t, watch(t, openFeed(t, s)))
	if len(sessions) != n {
		t.Fatalf("%d of %d", len(sessions), n)
	}
}

func TestWatchersAreBounded(t *testing.T) {
	f, _ := newFeed(t)
	var watchers []*feed.Watcher
	for {
		w, err := f.Watch()
		if errors.Is(err, feed.ErrTooManyWatchers) {
			break
		}
		if err != nil || len(watchers) > 100_000 {
			t.Fatalf("%d watchers, %v", len(watchers), err)
		}
		watchers = append(watchers, w)
	}
	watchers[0].Close()
	watchers[0] = watch(t, f)
	for _, w := range watchers[1:] {
		w.Close()
	}
}

// Numbers of events that have been pruned count as applied.
func TestWriteAfterARestartWithEverythingPruned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := newFeed(t)
		write(t, s, func(tx *store.Tx) error { return feed.RaiseMaxLifetime(tx, time.Minute) })
		write(t, s, ended("one"))
		time.Sleep(time.Minute + feed.Margin + time.Second)
		if err := f.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		again := openFeed(t, s)
		run(t, again)
		v, err := authn.NewVerifier(t.Context(), again.Conn(), authn.WithAnyAudience())
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if err := again.Write(t.Context(), func(*store.Tx) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := again.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// What Write has acknowledged, the verifier that is fed in process knows.
func TestWriteReturnsWhenOurVerifierKnows(t *testing.T) {
	f, _ := newFeed(t)
	var p peer.Peer
	stream, err := f.Conn().NewStream(t.Context(), &grpc.StreamDesc{}, watchwordv1.TrustService_WatchBundle_FullMethodName, grpc.Peer(&p))
	if err != nil || p.AuthInfo == nil {
		t.Fatalf("peer %v, %v", p, err)
	}
	recv := func() *watchwordv1.WatchBundleResponse {
		m := &watchwordv1.WatchBundleResponse{}
		if err := stream.RecvMsg(m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for recv().GetHeartbeat() == nil {
	}
	done := make(chan error, 1)
	go func() { done <- f.Write(context.Background(), ended("one")) }()
	for recv().GetChange() == nil {
	}
	select {
	case err := <-done:
		t.Fatalf("acknowledged while the change was being applied: %v", err)
	default:
	}
	go func() { _ = stream.RecvMsg(&watchwordv1.WatchBundleResponse{}) }() // the change has been applied
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestWriteDoesNotWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFeed(t) // with no verifier at all
		if err := f.Write(t.Context(), ended("one")); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("Write: %v", err)
		}
	})
}

func TestConnServesTheBundleAlone(t *testing.T) {
	f, s := newFeed(t)
	if err := f.Conn().Invoke(t.Context(), "/x/Y", nil, nil); err == nil {
		t.Error("a unary call was served")
	}
	if _, err := f.Conn().NewStream(t.Context(), &grpc.StreamDesc{}, "/x/Y"); err == nil {
		t.Error("another stream was served")
	}
	if err := s.Write(t.Context(), func(tx *store.Tx) error { return feed.RaiseMaxLifetime(tx, time.Minute) }); err != nil {
		t.Fatal(err)
	}
	v, err := authn.NewVerifier(t.Context(), openFeed(t, s).Conn(), authn.WithAnyAudience())
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}
