package hub

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const (
	// refreshTimeout bounds the wait for the refresh of the hub, for a watcher that
	// knows more than the hub. Another replica can answer sooner than a database that
	// hangs.
	refreshTimeout = time.Second
	// maxWatchers bounds the memory that unknown clients can hold: each watcher may
	// keep a message of chunkSize entries in the buffers of its connection.
	maxWatchers = 10_000
	// maxPerPeer leaves places for other peers when one peer opens as many streams as
	// possible.
	maxPerPeer = 2_500
	// snapshotsPerPeer bounds the snapshots that are sent to one peer at a time. More
	// wait for their turn.
	snapshotsPerPeer = 16
	// snapshotTimeout bounds the time for one snapshot: a million revocations at 300
	// kB a second.
	snapshotTimeout = 2 * time.Minute
)

// Watcher is one stream of the bundle. A Watcher is not safe for concurrent use.
//
// The opening of a stream comes first: the trust state; then a snapshot, or the
// messages of the ring that the watcher has missed; then the closing messages, which
// tell the watcher that the opening is complete. After the opening come the messages of
// the ring. All but the last two closing messages are shared with other watchers.
type Watcher struct {
	hub       *Hub
	peer      *peerPlaces // nil for the local verifier
	turnUntil time.Time   // when the turn for a snapshot ends; zero: the watcher holds none

	trust     Message     // nil after it was sent
	snapshot  []fullChunk // full chunks of the snapshot, still to be sent
	next      int         // number of the next message of the ring
	closing   []entry     // the newest chunk of a snapshot, the last chunk, and a heartbeat
	closingAt int         // number of the first message of the ring after the closing
	delivered int64       // number of the state after the message that Next returned last; zero: unknown
}

// Watch opens a stream. The stream resumes at a resume token of an earlier stream if
// the hub can tell what has happened since, and begins with a snapshot otherwise. from
// names the peer: the watchers and snapshots of each peer are bounded. ctx bounds the wait for
// earlier snapshots to the peer. The watcher must be closed.
//
// Errors: ErrTooManyWatchers if no place is left; ErrOutdated if the token is ahead of
// the hub; those of ctx.
func (h *Hub) Watch(ctx context.Context, from string, resume []byte) (*Watcher, error) {
	peer, err := h.places.reserve(from)
	if err != nil {
		return nil, err
	}
	w := &Watcher{hub: h, peer: peer}
	if err := w.open(ctx, h.parseResume(resume)); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// open refreshes the hub if necessary, waits for the peer's turn if the watcher needs
// a snapshot, and prepares the opening.
func (w *Watcher) open(ctx context.Context, at Position) error {
	if w.hub.lacks(at) {
		bounded, cancel := context.WithTimeout(ctx, refreshTimeout)
		defer cancel()
		if err := w.hub.refresh(bounded); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%w: %w", ErrOutdated, err)
		}
	}
	if ctx.Err() != nil || w.begin(at, false) {
		return ctx.Err()
	}
	select {
	case w.peer.turns <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	w.turnUntil = time.Now().Add(snapshotTimeout)
	w.begin(at, true)
	return nil
}

// begin prepares the opening of a stream: the messages after the position at, if the
// ring has all of them, and otherwise a snapshot, if maySnapshot is true. begin
// returns false if neither is possible.
func (w *Watcher) begin(at Position, maySnapshot bool) bool {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	next, ok := h.ring.resumeAt(at)
	if !ok && !maySnapshot {
		return false
	}
	last := chunk(&watchwordv1.SnapshotChunk{Last: true})
	last.Resume = h.resumeLocked()
	w.trust = h.trustChunk
	w.closing = []entry{{message: encode(last)}, {seq: h.ring.at.Seq, message: encode(h.heartbeatLocked(nil))}}
	w.next, w.closingAt = next, h.ring.end()
	if !ok {
		w.next, w.snapshot = h.ring.end(), h.revoked.full
		if newest := h.revoked.newest(); newest != nil {
			w.closing = slices.Insert(w.closing, 0, entry{message: newest})
		}
	}
	return true
}

// Close gives the watcher's place back. Close must be called once.
func (w *Watcher) Close() {
	w.endTurn()
	w.hub.places.release(w.peer)
}

// endTurn ends the watcher's turn, so that the next snapshot to the same peer can
// begin.
func (w *Watcher) endTurn() {
	if !w.turnUntil.IsZero() {
		w.turnUntil = time.Time{}
		<-w.peer.turns
	}
}

// Next waits for the next message. Errors: ErrBehind if the client must open another
// stream; those of ctx.
func (w *Watcher) Next(ctx context.Context) (Message, error) {
	for {
		e, grown, err := w.poll()
		if err != nil {
			return nil, err
		}
		if grown == nil {
			w.delivered = e.seq
			return e.message, nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// poll returns the watcher's next message without waiting. If the watcher has read
// every message so far, poll instead returns the channel grown, which the ring buffer
// of messages closes when it gets the next message.
//
// Errors: ErrBehind if the client must open another stream.
func (w *Watcher) poll() (e entry, grown <-chan struct{}, err error) {
	if !w.turnUntil.IsZero() && time.Now().After(w.turnUntil) {
		return e, nil, ErrBehind
	}
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for r := &w.hub.ring; ; {
		switch e, ok := w.nextOfOpening(); {
		case ok:
			return e, nil, nil
		case w.next < r.first:
			return e, nil, ErrBehind
		case w.next == r.end():
			return e, r.grown, nil
		}
		e = r.entries[w.next-r.first]
		w.next++
		// Before the closing messages, a heartbeat would tell the watcher too early that
		// it has everything.
		if !e.heartbeat || w.next > w.closingAt {
			return e, nil, nil
		}
	}
}

// nextOfOpening returns the next message of the opening; false if the next message
// comes from the ring.
func (w *Watcher) nextOfOpening() (e entry, ok bool) {
	switch {
	case w.trust != nil:
		e.message, w.trust = w.trust, nil
	case len(w.snapshot) > 0:
		e.message, w.snapshot = w.snapshot[0].message, w.snapshot[1:]
	case len(w.closing) > 0 && w.next >= w.closingAt:
		e, w.closing = w.closing[0], w.closing[1:]
		if len(w.closing) == 0 {
			w.snapshot, w.closing = nil, nil // frees chunks that have expired
			w.endTurn()
		}
	default:
		return e, false
	}
	return e, true
}

// verifierApplied records that the local verifier has applied every message returned
// by Next; [Hub.WaitApplied] waits for this record. A dropped stream records nothing:
// the history may have been replaced.
func (w *Watcher) verifierApplied() {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.next >= h.ring.first && w.delivered > h.applied {
		h.applied = w.delivered
		close(h.appliedGrown)
		h.appliedGrown = make(chan struct{})
	}
}

// places bounds the number of watchers, in all and for each peer.
type places struct {
	mu    sync.Mutex
	taken int
	peers map[string]*peerPlaces // by name; only peers with a watcher
}

// peerPlaces counts the watchers and the running snapshots of one peer. A peer is
// named by its address or network.
type peerPlaces struct {
	name     string
	watchers int           // places.mu guards it
	turns    chan struct{} // holds one element for each snapshot that is being sent
}

// reserve takes a place for one watcher. Errors: ErrTooManyWatchers.
func (p *places) reserve(name string) (*peerPlaces, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := p.peers[name]
	if from == nil {
		from = &peerPlaces{name: name, turns: make(chan struct{}, snapshotsPerPeer)}
	}
	if p.taken == maxWatchers || from.watchers == maxPerPeer {
		return nil, ErrTooManyWatchers
	}
	p.taken++
	from.watchers++
	p.peers[name] = from
	return from, nil
}

// release gives a place back.
func (p *places) release(from *peerPlaces) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if from.watchers--; from.watchers == 0 {
		delete(p.peers, from.name)
	}
}
