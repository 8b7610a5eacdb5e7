package hub_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/hub"
)

// The number of watchers is bounded, for each peer and in all. Our own verifier needs
// no place.
func TestWatchersAreBounded(t *testing.T) {
	s := newSource()
	var watchers []*hub.Watcher
	closeAll := func() {
		for _, w := range watchers {
			w.Close()
		}
		watchers = nil
	}
	_, at := opening(t, watch(t, s, nil))
	fill := func(from string) (n int) {
		for {
			w, err := s.Watch(t.Context(), hub.Peer{Name: from}, at)
			if errors.Is(err, hub.ErrTooManyWatchers) {
				return n
			}
			if err != nil || n > 100_000 {
				t.Fatalf("%d watchers, %v", n, err)
			}
			n++
			watchers = append(watchers, w)
		}
	}
	one := fill("one peer")
	if one == 0 || fill("another") == 0 {
		t.Fatal("one peer takes all places")
	}
	for i := range 100 {
		fill(fmt.Sprint(i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	v, err := authn.NewVerifier(ctx, s.Conn(), authn.WithAnyAudience())
	if err != nil {
		t.Fatalf("our own verifier: %v", err)
	}
	defer v.Close()
	s.end("one")
	if err := s.WaitApplied(ctx, s.at()); err != nil || v.Status().EndedSessions != 1 {
		t.Errorf("our own verifier has not received the change: %v, %+v", err, v.Status())
	}
	closeAll()
	_, at = opening(t, watch(t, s, nil)) // a watcher that begins at the newest position needs no snapshot
	if n := fill("one peer"); n != one {
		t.Fatalf("%d places of %d have come back", n, one)
	}
	closeAll()
}

// When a peer receives as many snapshots as are allowed, its next snapshot waits. A
// snapshot for another peer does not wait, and neither does a watcher of the same
// peer that needs no snapshot.
func TestSnapshotsPerPeerAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		_, at := opening(t, watch(t, s, nil))
		held := []*hub.Watcher{}
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			w, err := s.Watch(ctx, hub.Peer{Name: "greedy"}, nil)
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				break
			}
			if err != nil || len(held) > 1000 {
				t.Fatalf("%d snapshots at a time, %v", len(held), err)
			}
			held = append(held, w)
		}
		for from, resume := range map[string][]byte{"other": nil, "greedy": at} {
			w, err := s.Watch(t.Context(), hub.Peer{Name: from}, resume)
			if err != nil {
				t.Fatal(err)
			}
			w.Close()
		}
		waiting := make(chan *hub.Watcher)
		go func() {
			w, err := s.Watch(t.Context(), hub.Peer{Name: "greedy"}, nil)
			if err != nil {
				t.Error(err)
			}
			waiting <- w
		}()
		synctest.Wait()
		opening(t, held[0]) // reads the snapshot to its end, so that the next snapshot begins
		(<-waiting).Close()
		for _, w := range held {
			w.Close()
		}
	})
}

// A peer that opens streams in a loop, and closes each of them unread, gets a bounded
// number of snapshots.
func TestSnapshotsInALoopAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.fill(10_500) // a snapshot of eleven messages
		const n = 320
		began := time.Now()
		for range n {
			w, err := s.Watch(t.Context(), hub.Peer{Name: "greedy"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			w.Close()
		}
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("%d snapshots of eleven messages in %v, want 16 in each 110 ms", n, took)
		}
	})
}

// A watcher that reads its snapshot too slowly is dropped, so that its turn ends.
func TestASnapshotIsReadInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.end("one")
		s.fill(100_000)
		_, at := opening(t, watch(t, s, nil))
		read := func(from []byte, pause time.Duration) (took time.Duration, err error) {
			w := watch(t, s, from)
			began := time.Now()
			for range 100 {
				time.Sleep(pause)
				if _, err := w.Next(t.Context()); err != nil {
					return time.Since(began), err
				}
			}
			return 0, nil
		}
		if took, err := read(nil, time.Second); err != nil {
			t.Errorf("a watcher that reads a message each second is dropped: %v, after %v", err, took)
		}
		if took, err := read(nil, 29*time.Second); !errors.Is(err, hub.ErrBehind) || took > 3*time.Minute {
			t.Errorf("a watcher that reads two messages each minute: %v, after %v", err, took)
		}
		for range 97 { // a watcher that resumes receives 100 messages: these 97, the trust state, the end and the heartbeat
			s.end("another")
		}
		if took, err := read(at, 29*time.Second); err != nil {
			t.Errorf("a watcher that resumes needs no turn, and is dropped: %v, after %v", err, took)
		}
	})
}

// Watchers share their messages: a new watcher costs the hub almost no memory,
// however much the watcher has missed.
func TestWatchersShareWhatTheyAreSent(t *testing.T) {
	s, at := known(t, "known")
	s.fill(500)
	for i := range 450 { // the newest chunk is nearly full
		s.end(fmt.Sprint(i))
	}
	for name, from := range map[string][]byte{"a snapshot": nil, "what was missed": at} {
		const n = 100
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n {
			w, err := s.Watch(t.Context(), hub.Peer{Name: "peer"}, from)
			if err != nil {
				t.Fatal(err)
			}
			w.Close()
		}
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 4<<10 {
			t.Errorf("%s takes %d bytes for each watcher", name, each)
		}
	}
}

func TestConnServesTheBundleAlone(t *testing.T) {
	s := newSource()
	if err := s.Conn().Invoke(t.Context(), "/x/Y", nil, nil); err == nil {
		t.Error("a unary call was served")
	}
	if _, err := s.Conn().NewStream(t.Context(), &grpc.StreamDesc{}, "/x/Y"); err == nil {
		t.Error("another stream was served")
	}
	v, err := authn.NewVerifier(t.Context(), s.Conn(), authn.WithAnyAudience())
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

// own opens the stream of our own verifier.
func own(t *testing.T, s *source) (recv func() *watchwordv1.WatchBundleResponse) {
	t.Helper()
	var p peer.Peer
	stream, err := s.Conn().NewStream(t.Context(), &grpc.StreamDesc{}, watchwordv1.TrustService_WatchBundle_FullMethodName, grpc.Peer(&p))
	if err != nil || p.Addr == nil {
		t.Fatalf("peer %v, %v", p, err)
	}
	if err := stream.SendMsg(&watchwordv1.WatchBundleRequest{}); err != nil {
		t.Fatal(err)
	}
	return func() *watchwordv1.WatchBundleResponse {
		m := &watchwordv1.WatchBundleResponse{}
		if err := stream.RecvMsg(m); err != nil {
			return nil
		}
		return m
	}
}

// A position counts as applied when our own verifier asks for the next message. While
// the verifier still applies a message, the position of the message does not count.
func TestWaitAppliedWaitsForOurOwnVerifier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		soon := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return s.WaitApplied(ctx, s.at())
		}
		s.end("before")
		if err := soon(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a verifier: %v", err)
		}
		recv := own(t, s)
		for recv().GetHeartbeat() == nil {
		}
		s.end("one")
		for recv().GetChange() == nil {
		}
		if err := soon(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while the change is being applied: %v", err)
		}
		s.Beat()
		recv()
		if err := soon(); err != nil {
			t.Errorf("the change has been applied: %v", err)
		}
		// After a fork, the number of an event in the new history counts as applied only after
		// the verifier has received the new history.
		s.fork(1, trust(time.Minute))
		s.end("two")
		if m := recv(); m != nil {
			t.Errorf("received a message of the old history: %v", m)
		}
		if err := soon(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("in another history: %v", err)
		}
		recv = own(t, s)
		for recv().GetHeartbeat() == nil {
		}
		s.Beat()
		recv()
		if err := soon(); err != nil {
			t.Errorf("after the new history: %v", err)
		}
	})
}

// The messages for watchers are bounded in bytes too. A watcher that needs a dropped message
// begins again, and gets the newest state.
func TestTheRingIsBoundedInBytes(t *testing.T) {
	s := newSource()
	slow := watch(t, s, nil)
	_, at := opening(t, slow)
	kids := make([]string, 1000)
	for i := range kids {
		kids[i] = fmt.Sprintf("a key %010d", i)
	}
	for i := range 2000 { // 36 MB
		state := trust(time.Hour + time.Duration(i)*time.Second)
		state.WithdrawnKids = kids
		s.publish(&watchwordv1.Change{TrustState: state}, 1)
		if err := hub.Check(s.Hub, slow); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, hub.ErrBehind) {
		t.Errorf("a watcher that needs a dropped message: %v", err)
	}
	if stats := s.Stats(); stats.Behind != 1 || stats.Slow != 0 {
		t.Errorf("after one watcher that fell behind: %+v", stats)
	}
	if got := next(t, watch(t, s, at)).GetSnapshotChunk().GetTrustState().GetMaxTokenLifetime().AsDuration(); got != time.Hour+1999*time.Second {
		t.Errorf("a stream that resumes begins with the trust state of %v", got)
	}
}
