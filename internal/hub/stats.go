package hub

import (
	"time"

	"github.com/watchword-auth/watchword/internal/count"
	"github.com/watchword-auth/watchword/internal/share"
)

// Stats holds the numbers of a hub, for metrics.
type Stats struct {
	Position    int64         // the number of the newest event that the hub has published
	Age         time.Duration // the time since the hub last knew every event in the database
	ClockOffset time.Duration // by how much the database's clock is ahead of this machine's clock

	Watchers share.Stats
	// Delays has the time from the publication of each message until a watcher took the message
	// to send it, for watchers with an open stream. Messages to the local verifier are left
	// out.
	Delays count.Histogram
	// Behind counts watchers that needed a message which the ring buffer has dropped, and
	// watchers of a history that Fork has replaced. Slow counts watchers that left a message or
	// a snapshot unread for too long. Outdated counts watchers that knew a newer event than the
	// hub. Each of these watchers must open another stream.
	Behind, Slow, Outdated uint64
}

// Stats returns the numbers of the hub.
func (h *Hub) Stats() Stats {
	s := Stats{
		Watchers: h.places.Stats(), Delays: h.delays.Read(),
		Behind: h.behind.Load(), Slow: h.slow.Load(), Outdated: h.outdated.Load(),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now, token := h.elapsed.Now(), h.token.Offset()
	s.Position, s.Age = h.ring.at.Seq, now-h.asOf
	s.ClockOffset = (token.Earliest(now)+token.Latest(now))/2 - time.Duration(time.Now().UnixNano())
	return s
}
