package hub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/hub"
)

func TestSnapshotThenChanges(t *testing.T) {
	s := newSource()
	early := watch(t, s, nil)
	if sessions, _ := opening(t, early); len(sessions) != 0 {
		t.Fatalf("an empty history ended %v", sessions)
	}
	s.end("one")
	until := timestamppb.New(time.Now().Add(time.Hour))
	s.publish(&watchwordv1.Change{RaisedVersions: []*watchwordv1.RaisedVersion{{UserId: "alice", Version: 7, Until: until}}}, 1)
	if e := next(t, early).GetChange().GetEndedSessions(); len(e) != 1 || e[0].GetSessionId() != "one" {
		t.Fatalf("ended %v", e)
	}
	if r := next(t, early).GetChange().GetRaisedVersions(); len(r) != 1 || r[0].GetUserId() != "alice" || r[0].GetVersion() != 7 {
		t.Fatalf("raised %v", r)
	}
	late := watch(t, s, nil)
	if state := next(t, late).GetSnapshotChunk().GetTrustState(); state.GetIssuer() == "" {
		t.Fatal("a snapshot without a trust state")
	}
	chunk := next(t, late).GetSnapshotChunk()
	if len(chunk.GetEndedSessions()) != 1 || len(chunk.GetRaisedVersions()) != 1 {
		t.Fatalf("a later snapshot holds %v", chunk)
	}
}

func TestALargeSnapshotComesInChunks(t *testing.T) {
	s := newSource()
	const n = 10_001
	s.fill(n)
	w := watch(t, s, nil)
	next(t, w)
	if first := len(next(t, w).GetSnapshotChunk().GetEndedSessions()); first >= n {
		t.Fatal("all in one message")
	}
	sessions, _ := opening(t, watch(t, s, nil))
	if len(sessions) != n {
		t.Fatalf("%d of %d", len(sessions), n)
	}
}

func TestASlowWatcherIsDropped(t *testing.T) {
	s := newSource()
	slow := watch(t, s, nil)
	opening(t, slow)
	for range 10_000 {
		s.Beat()
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, hub.ErrBehind) {
		t.Fatalf("ten thousand messages were kept for a slow watcher: %v", err)
	}
	opening(t, watch(t, s, nil)) // the client may open another stream
}

func TestResumeTellsWhatWasMissedAndNoMore(t *testing.T) {
	s, at := known(t, "known")
	if again, _ := opening(t, watch(t, s, at)); len(again) != 0 {
		t.Fatalf("received again %v", again)
	}
	s.end("missed")
	s.Beat()
	for name, replica := range map[string]*source{"here": s, "at another replica, begun since": s.replica()} {
		w, probe := watch(t, replica, at), watch(t, replica, at)
		next(t, probe)
		if next(t, probe).GetChange() == nil {
			t.Errorf("%s: begins with a snapshot", name)
		}
		sessions, newer := opening(t, w)
		if len(sessions) == 0 || sessions[len(sessions)-1] != "missed" {
			t.Fatalf("%s: received %v", name, sessions)
		}
		if name == "here" && len(sessions) != 1 {
			t.Fatalf("a snapshot: %v", sessions)
		}
		replica.end("new")
		for next(t, w).GetChange().GetEndedSessions()[0].GetSessionId() != "new" {
		}
		if sessions, _ := opening(t, watch(t, replica, newer)); len(sessions) == 0 || slices.Contains(sessions, "missed") {
			t.Fatalf("%s: resumed again, received %v", name, sessions)
		}
	}
}

func TestResumeFromNowhereBringsASnapshot(t *testing.T) {
	s, at := known(t, "one")
	flip := func(i int) []byte {
		b := bytes.Clone(at)
		b[i] ^= 1
		return b
	}
	for name, from := range map[string][]byte{
		"empty": nil, "short": at[:5], "another number": flip(7), "above the head": flip(0), "another tag": flip(8),
		"another database": flip(len(at) - 1), "too long": append(bytes.Clone(at), 'x'),
		"below zero": append(bytes.Repeat([]byte{255}, 8), at[8:]...),
	} {
		if sessions, _ := opening(t, watch(t, s, from)); len(sessions) != 1 {
			t.Errorf("%s: received %v", name, sessions)
		}
	}
}

func TestResumeBehindTheLogBringsASnapshot(t *testing.T) {
	s, at := known(t, "first")
	s.end("second")
	for range 10_000 {
		s.Beat()
	}
	if sessions, _ := opening(t, watch(t, s, at)); len(sessions) != 2 {
		t.Fatalf("received %v", sessions)
	}
}

// A watcher that has received the newest trust state must not receive an older one
// from the ring afterwards.
func TestResumeAcrossAChangeOfKeysBringsNoOlderOnes(t *testing.T) {
	s, at := known(t, "one")
	for ttl := range 3 {
		s.publish(&watchwordv1.Change{TrustState: trust(time.Duration(ttl+2) * time.Minute)}, 1)
	}
	w := watch(t, s, at)
	for states := 0; ; {
		m := next(t, w)
		if state := m.GetSnapshotChunk().GetTrustState(); state != nil {
			if states++; states > 1 || state.GetMaxTokenLifetime().AsDuration() != 4*time.Minute {
				t.Fatalf("trust state %d: %v", states, state)
			}
		}
		if m.GetChange() != nil {
			t.Fatalf("a change before the heartbeat: %v", m)
		}
		if m.GetHeartbeat() != nil {
			return
		}
	}
}

// A watcher that resumes receives every missed change before a heartbeat. If the ring
// drops a message that the watcher still needs, the watcher is dropped too.
func TestResumeComesFromTheLog(t *testing.T) {
	s, at := known(t, "known")
	for _, id := range []string{"one", "two"} {
		s.Beat()
		s.end(id)
	}
	s.Beat()
	w, slow := watch(t, s, at), watch(t, s, at)
	s.end("three")
	if sessions, _ := opening(t, w); fmt.Sprint(sessions) != "[one two]" {
		t.Errorf("received %v", sessions)
	}
	if got := next(t, w).GetChange().GetEndedSessions(); len(got) != 1 || got[0].GetSessionId() != "three" {
		t.Errorf("then received %v", got)
	}
	next(t, slow)
	next(t, slow)
	for range 10_000 {
		s.Beat()
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, hub.ErrBehind) {
		t.Errorf("a watcher that fell behind after one of two changes: %v", err)
	}
}

// A watcher reads its snapshot to the end, even if the ring has dropped messages and
// the revocations have expired since.
func TestASnapshotIsOfOneMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.fill(2_499)
		s.end("last")
		time.Sleep(time.Hour - time.Second)
		w := watch(t, s, nil)
		time.Sleep(time.Minute) // every revocation expires
		for range 10_000 {
			s.Beat()
		}
		if sessions, _ := opening(t, w); len(sessions) != 2_500 || !slices.Contains(sessions, "last") {
			t.Errorf("%d sessions", len(sessions))
		}
		if _, err := w.Next(t.Context()); !errors.Is(err, hub.ErrBehind) {
			t.Errorf("and then: %v", err)
		}
		if sessions, _ := opening(t, watch(t, s, nil)); len(sessions) != 0 {
			t.Errorf("%d sessions are kept", len(sessions))
		}
	})
}

// After a fork every watcher must open another stream: also a watcher that waits, and
// a watcher that is still receiving the old history. The new stream has the
// revocations of both histories.
func TestAForkSendsEveryWatcherAway(t *testing.T) {
	for name, after := range map[string][]string{"behind": nil, "as long": {"other"}, "longer": {"other", "another"}} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			s.end("kept")
			s.end("lost")
			w, begun := watch(t, s, nil), watch(t, s, nil)
			_, at := opening(t, w)
			next(t, begun)
			waited := make(chan error)
			go func() {
				_, err := w.Next(context.Background())
				waited <- err
			}()
			s.fork(1, trust(time.Minute))
			for _, id := range after {
				s.end(id)
			}
			if err := <-waited; !errors.Is(err, hub.ErrBehind) {
				t.Fatalf("a watcher of the old history continues: %v", err)
			}
			for {
				if _, err := begun.Next(t.Context()); err != nil {
					if !errors.Is(err, hub.ErrBehind) {
						t.Errorf("a watcher that was receiving the old history: %v", err)
					}
					break
				}
			}
			sessions, newer := opening(t, watch(t, s, at))
			for _, id := range append([]string{"kept", "lost"}, after...) {
				if !slices.Contains(sessions, id) {
					t.Errorf("after the fork, received %v, not of %s", sessions, id)
				}
			}
			again := watch(t, s, newer)
			if sessions, _ := opening(t, again); len(sessions) != 0 {
				t.Errorf("resumed in the new history, received %v", sessions)
			}
			s.end("later") // an event of the old history had the same number
			for next(t, again).GetChange() == nil {
			}
			if sessions, _ := opening(t, watch(t, s, newer)); len(sessions) != 1 {
				t.Errorf("then received %v", sessions)
			}
		})
	}
}

// A watcher that has received a change finds the change's trust state, or a newer
// one, in Hub.TrustState.
func TestATrustStateIsVisibleBeforeTheMessageThatBringsIt(t *testing.T) {
	s := newSource()
	const changes = 2_000
	var all sync.WaitGroup
	for range 8 {
		w := watch(t, s, nil)
		opening(t, w)
		all.Go(func() {
			for n := 0; n < changes; {
				encoded, err := w.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				told := decode(t, encoded).GetChange().GetTrustState().GetMaxTokenLifetime().AsDuration()
				if here := s.TrustState().GetMaxTokenLifetime().AsDuration(); here < told {
					t.Errorf("received %v, while the trust state has %v", told, here)
					return
				}
				n = int(told / time.Hour)
			}
		})
	}
	for n := range changes {
		s.publish(&watchwordv1.Change{TrustState: trust(time.Duration(n+1) * time.Hour)}, 1)
	}
	all.Wait()
}

// A hub is refreshed only for a watcher that knows more than the hub. If the refresh
// fails, the watcher gets ErrOutdated.
func TestAHubThatIsBehindIsRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, at := known(t, "both know")
		behind := s.replica()
		s.end("one knows")
		_, ahead := opening(t, watch(t, s, at))
		asked := 0
		behind.refresh = func(context.Context) error { asked++; return errors.New("no database") }
		if sessions, _ := opening(t, watch(t, behind, at)); len(sessions) != 0 || asked != 0 {
			t.Errorf("received %v, after %d refreshes", sessions, asked)
		}
		if _, err := behind.Watch(t.Context(), hub.Peer{Name: "peer"}, ahead); !errors.Is(err, hub.ErrOutdated) || asked != 1 {
			t.Errorf("%v, after %d refreshes", err, asked)
		}
		behind.refresh = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		began := time.Now()
		if _, err := behind.Watch(t.Context(), hub.Peer{Name: "peer"}, ahead); !errors.Is(err, hub.ErrOutdated) || time.Since(began) != time.Second {
			t.Errorf("%v, after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := behind.Watch(ctx, hub.Peer{Name: "peer"}, ahead); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, hub.ErrOutdated) {
			t.Errorf("a watcher without time: %v", err)
		}
		behind.refresh = func(context.Context) error {
			behind.passed = s.passed
			behind.Publish(&hub.Update{
				Change: &watchwordv1.Change{EndedSessions: []*watchwordv1.EndedSession{ended("one knows"), ended("new")}},
				Passed: s.passed[1:], At: s.at(), Time: behind.reading(),
			})
			return nil
		}
		if sessions, _ := opening(t, watch(t, behind, ahead)); len(sessions) != 0 {
			t.Errorf("received %v", sessions)
		}
	})
}
