package hub

import (
	"context"
	"sync"
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

// turns bounds the number of snapshots that the hub sends to each peer at a time. turns is safe
// for concurrent use.
type turns struct {
	mu    sync.Mutex
	peers map[string]*turn // only peers with a watcher that sends or waits to send a snapshot
}

// turn counts the watchers of one peer that send or wait to send a snapshot.
type turn struct {
	peer     string
	watchers int           // watchers that send or wait to send a snapshot; turns.mu guards watchers
	taken    chan struct{} // holds one element for each snapshot that is being sent
}

// join adds a watcher to the watchers of a peer that send or wait to send a snapshot. The
// caller must call leave later.
func (t *turns) join(peer string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.peers[peer]
	if of == nil {
		of = &turn{peer: peer, taken: make(chan struct{}, snapshotsPerPeer)}
		t.peers[peer] = of
	}
	of.watchers++
	return of
}

func (t *turns) leave(of *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if of.watchers--; of.watchers == 0 {
		delete(t.peers, of.peer)
	}
}

// awaitTurn waits until fewer than snapshotsPerPeer snapshots are being sent to the watcher's
// peer. Errors: ErrEvicted; those of ctx.
func (w *Watcher) awaitTurn(ctx context.Context, peer string) (err error) {
	of := w.hub.turns.join(peer)
	select {
	case of.taken <- struct{}{}:
		w.turn, w.turnUntil = of, time.Now().Add(snapshotTimeout)
		return nil
	case <-w.evicted:
		err = ErrEvicted
	case <-ctx.Done():
		err = ctx.Err()
	}
	w.hub.turns.leave(of)
	return err
}

// endTurn lets the next snapshot to the same peer begin, if this watcher has sent a snapshot.
// If the snapshot was sent faster than turnPerMessage allows, the next snapshot begins only
// when the time of turnPerMessage for each message has passed.
func (w *Watcher) endTurn() {
	of, turns := w.turn, &w.hub.turns
	if of == nil {
		return
	}
	w.turn = nil
	time.AfterFunc(time.Until(w.turnFrom), func() {
		<-of.taken
		turns.leave(of)
	})
}
