package hub

import (
	"context"
	"math"
	"time"

	"github.com/watchword-auth/watchword/internal/share"
)

const (
	// maxWatchers bounds the number of streams of a hub until [Hub.LimitWatchers] sets another
	// bound.
	maxWatchers = 10_000
	// perPeer divides the number of places (streams of watchers that can be open at a time): one
	// peer can hold half of the places while places are free. The half is large on purpose, since
	// the address of a gateway, or one certificate for all services, can stand for many watchers.
	// When no place is free, the peer with the most places loses a place first.
	perPeer = 2
	// snapshotsPerPeer bounds the snapshots that the hub sends to one peer at a time. Further
	// snapshots wait until an earlier snapshot to the peer is sent.
	snapshotsPerPeer = 16
	// snapshotTimeout bounds the time for one snapshot: a million revocations at 300
	// kB a second.
	snapshotTimeout = 2 * time.Minute
	// turnPerMessage is the least time that a snapshot keeps the next snapshot to the same peer
	// waiting, for each message of the snapshot. So a client that opens and closes streams in a
	// loop gets at most 1,600 messages (64 MB) a second. Each message costs the server some 40 µs
	// of CPU time.
	turnPerMessage = 10 * time.Millisecond
)

// Peer says where a watcher comes from: a client network, or a client certificate. The hub
// bounds the streams, and the snapshots sent at a time, of all watchers with the same Name
// together.
type Peer struct {
	Name      string // a network, or the name in a client certificate
	Certified bool   // the client has shown a certificate of a CA that the server trusts
}

// LimitWatchers bounds the number of open streams (places for watchers) of the hub; one peer can
// have half of the streams. Without LimitWatchers, a hub allows 10,000 streams. LimitWatchers must
// be called before the first Watch. When all peers have equally many streams, the streams of the
// peers in `known`, from which the server has received a proof, stay open; see [share.Known].
func (h *Hub) LimitWatchers(n int, known *share.Known) {
	h.places = share.NewPool(share.Limits{Places: n, PerPeer: max(1, n/perPeer), Known: known})
}

// newTurns returns the turns of the snapshots that the hub sends to each peer. How many watchers
// of a peer wait is bounded by the places of the peer.
func newTurns() *share.Turns { return share.NewTurns(snapshotsPerPeer, math.MaxInt32) }

// awaitTurn waits until fewer than snapshotsPerPeer snapshots are being sent to the watcher's
// peer. Errors: the error of ctx if ctx ends during the wait.
func (w *Watcher) awaitTurn(ctx context.Context, peer string) (err error) {
	w.leaveTurn, err = w.hub.turns.Enter(ctx, peer)
	w.turnUntil = time.Now().Add(snapshotTimeout)
	return err
}

// endTurn lets the next snapshot to the same peer begin, if this watcher has sent a snapshot.
// If the snapshot was sent faster than turnPerMessage allows, the next snapshot begins only
// when the time of turnPerMessage for each message has passed.
func (w *Watcher) endTurn() {
	if w.leaveTurn != nil {
		time.AfterFunc(time.Until(w.turnFrom), w.leaveTurn)
		w.leaveTurn = nil
	}
}
