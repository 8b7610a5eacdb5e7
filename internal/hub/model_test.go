package hub_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/hub"
)

// client is a verifier's side of streams. A client keeps what it has received from
// one stream to the next.
type client struct {
	ended    map[string]bool
	lifetime time.Duration // the longest lifetime of a token, from the trust state
	at       []byte
	w        *hub.Watcher // nil between two streams
}

// read applies the next message, and returns false if no message is there yet.
func (c *client) read(t *rapid.T) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // Next does not wait
	encoded, err := c.w.Next(ctx)
	if errors.Is(err, hub.ErrBehind) {
		c.leave()
		return false
	}
	if err != nil {
		return false
	}
	m := decode(t, encoded)
	for _, sessions := range [][]*watchwordv1.EndedSession{m.GetSnapshotChunk().GetEndedSessions(), m.GetChange().GetEndedSessions()} {
		for _, e := range sessions {
			c.ended[e.GetSessionId()] = true
		}
	}
	for _, state := range []*watchwordv1.TrustState{m.GetSnapshotChunk().GetTrustState(), m.GetChange().GetTrustState()} {
		if state == nil {
			continue
		}
		if told := state.GetMaxTokenLifetime().AsDuration(); told < c.lifetime {
			t.Fatalf("received trust state %v after %v", told, c.lifetime)
		}
		c.lifetime = state.GetMaxTokenLifetime().AsDuration()
	}
	if len(m.GetResume()) > 0 {
		c.at = m.GetResume()
	}
	return true
}

func (c *client) leave() {
	c.w.Close()
	c.w = nil
}

// In random runs, with clients that come and go, a client that has read every message knows
// every session that the history has ended, and never receives an older trust state. After a
// fork, only a snapshot brings the revocations of the replaced history.
func TestClientsMissNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, lifetime, ids := newSource(), time.Minute, 0
		ended := []string{} // one for each event of the history; empty for a trust state
		clients := make([]*client, 4)
		for i := range clients {
			clients[i] = &client{ended: map[string]bool{}}
		}
		defer func() {
			for _, c := range clients {
				if c.w != nil {
					c.leave()
				}
			}
		}()
		newTrust := func() *watchwordv1.TrustState { lifetime += time.Minute; return trust(lifetime) }
		pick := func(t *rapid.T) *client { return rapid.SampledFrom(clients).Draw(t, "client") }
		t.Repeat(map[string]func(*rapid.T){
			"end": func(t *rapid.T) {
				n := len(ended)
				for range rapid.IntRange(1, 3).Draw(t, "sessions") {
					ids++
					ended = append(ended, fmt.Sprint(ids))
				}
				s.end(ended[n:]...)
			},
			"trust": func(*rapid.T) {
				s.publish(&watchwordv1.Change{TrustState: newTrust()}, 1)
				ended = append(ended, "")
			},
			"beat": func(t *rapid.T) {
				for range rapid.SampledFrom([]int{1, 1, 1, 1, 1, 2100}).Draw(t, "beats") {
					s.Beat()
				}
			},
			"fork": func(t *rapid.T) {
				keep := rapid.IntRange(0, len(s.passed)).Draw(t, "keep")
				ended = slices.Clone(ended[:keep])
				s.fork(keep, newTrust())
			},
			"watch": func(t *rapid.T) {
				c := pick(t)
				if c.w != nil {
					c.leave()
				}
				var err error
				if c.w, err = s.Watch(context.Background(), hub.Peer{Name: "peer"}, c.at); err != nil {
					t.Fatal(err)
				}
			},
			"read": func(t *rapid.T) {
				c := pick(t)
				for range rapid.IntRange(1, 5).Draw(t, "messages") {
					if c.w == nil || !c.read(t) {
						return
					}
				}
			},
			"read all": func(t *rapid.T) {
				c := pick(t)
				if c.w == nil {
					return
				}
				for c.w != nil && c.read(t) {
				}
				for _, id := range ended {
					if c.w != nil && id != "" && !c.ended[id] {
						t.Fatalf("a client that has read everything does not know that session %s has ended", id)
					}
				}
				if c.w != nil && c.lifetime != lifetime {
					t.Fatalf("a client that has read everything knows trust state %v, not %v", c.lifetime, lifetime)
				}
			},
			"": func(t *rapid.T) {
				var watchers []*hub.Watcher
				for _, c := range clients {
					if c.w != nil {
						watchers = append(watchers, c.w)
					}
				}
				if err := hub.Check(s.Hub, watchers...); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}
