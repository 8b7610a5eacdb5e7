package hub_test

import (
	"context"
	"crypto/rand"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/hub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a history written by a test, and a hub with the whole history.
type source struct {
	*hub.Hub
	passed  []hub.Position
	change  watchwordv1.Change // every change so far, merged
	refresh func(context.Context) error
}

// newSource returns a history with a trust state and no event.
func newSource() *source {
	s := emptySource()
	s.publish(&watchwordv1.Change{TrustState: trust(time.Minute)}, 0)
	return s
}

// emptySource returns a history without a trust state, and a hub with no update.
func emptySource() *source {
	s := &source{refresh: func(context.Context) error { return nil }}
	s.Hub = hub.New("database", func(ctx context.Context) error { return s.refresh(ctx) })
	s.Hub.SealResume([]byte("the key of all replicas"))
	return s
}

func trust(lifetime time.Duration) *watchwordv1.TrustState {
	return &watchwordv1.TrustState{
		Issuer: "https://auth.test", MaxTokenLifetime: durationpb.New(lifetime), Margin: durationpb.New(5 * time.Minute),
	}
}

func ended(id string) *watchwordv1.EndedSession {
	return &watchwordv1.EndedSession{SessionId: id, Until: timestamppb.New(time.Now().Add(time.Hour))}
}

// publish publishes a change as the given number of new events.
func (s *source) publish(change *watchwordv1.Change, events int) {
	before := len(s.passed)
	for range events {
		at := hub.Position{Seq: s.at().Seq + 1}
		rand.Read(at.Tag[:])
		s.passed = append(s.passed, at)
	}
	proto.Merge(&s.change, change)
	s.Publish(&hub.Update{Change: change, Passed: s.passed[before:], At: s.at(), Time: s.reading(), Whole: true})
}

// reading returns a reading of this machine's clock.
func (s *source) reading() hub.Reading {
	now := s.Elapsed()
	return hub.Reading{Token: time.Now(), Asked: now, Answered: now}
}

// at returns the position of the last event.
func (s *source) at() (at hub.Position) {
	if n := len(s.passed); n > 0 {
		at = s.passed[n-1]
	}
	return at
}

// end ends sessions, in one update.
func (s *source) end(ids ...string) {
	change := &watchwordv1.Change{}
	for _, id := range ids {
		change.EndedSessions = append(change.EndedSessions, ended(id))
	}
	s.publish(change, len(ids))
}

// fill ends n sessions with random ids, in updates of up to a thousand.
func (s *source) fill(n int) {
	id := make([]byte, 16)
	for ; n > 0; n -= min(n, 1000) {
		change := &watchwordv1.Change{}
		for range min(n, 1000) {
			rand.Read(id)
			for i := range id {
				id[i] = 'a' + id[i]%26
			}
			change.EndedSessions = append(change.EndedSessions, ended(string(id)))
		}
		s.publish(change, len(change.GetEndedSessions()))
	}
}

// replica returns another hub with the same history, published in one update.
func (s *source) replica() *source {
	other := emptySource()
	other.passed = slices.Clone(s.passed)
	other.Publish(&hub.Update{Change: proto.Clone(&s.change).(*watchwordv1.Change), Passed: other.passed, At: other.at(), Time: other.reading(), Whole: true})
	return other
}

// fork keeps the first events of the history and begins another history after them,
// like a restored backup.
func (s *source) fork(keep int, state *watchwordv1.TrustState) {
	s.Fork()
	s.passed = slices.Clone(s.passed[:keep])
	s.Publish(&hub.Update{Change: &watchwordv1.Change{TrustState: state}, Passed: s.passed, At: s.at(), Time: s.reading(), Whole: true})
}

func watch(t testing.TB, s *source, at []byte) *hub.Watcher {
	t.Helper()
	w, err := s.Watch(t.Context(), hub.Peer{Name: "peer"}, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

func next(t testing.TB, w *hub.Watcher) *watchwordv1.WatchBundleResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	encoded, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(encoded) > 1<<20 {
		t.Fatalf("a message of %d bytes", len(encoded))
	}
	return decode(t, encoded)
}

func decode(t interface {
	Helper()
	Fatal(...any)
}, encoded hub.Message) *watchwordv1.WatchBundleResponse {
	t.Helper()
	m := &watchwordv1.WatchBundleResponse{}
	if err := proto.Unmarshal(encoded, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// opening reads the first messages of a stream (the opening), up to the heartbeat, and returns
// the ended sessions and the resume token.
func opening(t testing.TB, w *hub.Watcher) (sessions []string, at []byte) {
	t.Helper()
	for n := 0; ; n++ {
		m := next(t, w)
		if m.GetHeartbeat() != nil {
			t.Fatal("a heartbeat came before the opening was complete")
		}
		chunk := m.GetSnapshotChunk()
		if n == 0 && chunk.GetTrustState().GetIssuer() == "" {
			t.Fatalf("the stream begins with %v", m)
		}
		for _, e := range append(chunk.GetEndedSessions(), m.GetChange().GetEndedSessions()...) {
			sessions = append(sessions, e.GetSessionId())
		}
		if len(m.GetResume()) > 0 {
			at = m.GetResume()
		}
		if chunk.GetLast() {
			break
		}
	}
	if next(t, w).GetHeartbeat().GetTimes() == nil {
		t.Fatal("no heartbeat behind the snapshot")
	}
	return sessions, at
}

// known returns a history with one ended session, and the resume token of a watcher
// that knows it.
func known(t *testing.T, session string) (s *source, at []byte) {
	t.Helper()
	s = newSource()
	s.end(session)
	_, at = opening(t, watch(t, s, nil))
	return s, at
}
