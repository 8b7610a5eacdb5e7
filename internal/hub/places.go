package hub

import (
	"context"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/share"
)

const (
	// maxWatchers bounds the watchers of a hub until [Hub.LimitWatchers] is called.
	maxWatchers = 10_000
	// perPeer divides the number of all places: one peer can hold a half while places are free.
	// The part is large, since the address of a gateway, or one certificate for all services,
	// can stand for many watchers. A peer with many places is the first to lose places.
	perPeer = 2
	// snapshotsPerPeer bounds the snapshots that are sent to one peer at a time. More
	// wait for their turn.
	snapshotsPerPeer = 16
	// snapshotTimeout bounds the time for one snapshot: a million revocations at 300
	// kB a second.
	snapshotTimeout = 2 * time.Minute
	// turnPerMessage is the least length of a turn, for each message of the snapshot. A
	// client that opens and closes streams in a loop gets 1,600 messages a second, at
	// most 64 MB. A message takes some 40 µs of CPU time.
	turnPerMessage = 10 * time.Millisecond
)

// Peer says where a watcher comes from: a client network, or a client certificate. Watchers
// with the same Name share their places and their turns for snapshots.
type Peer struct {
	Name      string // a network, or the name in a client certificate
	Certified bool   // the client has shown a certificate of a CA that the server trusts
}

// LimitWatchers sets the number of places for watchers, of which a peer can hold a half.
// Without LimitWatchers, a hub has 10,000 places. LimitWatchers must be called before the first
// Watch. When all peers hold equally many places, the peers in known keep their places; see
// [share.Known].
func (h *Hub) LimitWatchers(n int, known *share.Known) {
	h.places = share.NewPool(share.Limits{Places: n, PerPeer: max(1, n/perPeer), Known: known})
}

// turns bounds the snapshots that are sent to each peer at a time. turns is safe for
// concurrent use.
type turns struct {
	mu    sync.Mutex
	peers map[string]*turn // only peers with a watcher that has a turn or waits for one
}

// turn counts the watchers of one peer that send or wait to send a snapshot.
type turn struct {
	peer     string
	watchers int           // watchers that have a turn or wait for a turn; turns.mu guards watchers
	taken    chan struct{} // holds one element for each snapshot that is being sent
}

// join adds a watcher to the turns of a peer. The caller must call leave later.
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

// endTurn ends the watcher's turn, if the watcher has one, so that the next snapshot to the
// same peer can begin. A turn that is shorter than turnPerMessage demands ends only when that
// time has passed.
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
