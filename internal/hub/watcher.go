package hub

import (
	"context"
	"fmt"
	"slices"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/share"
)

// refreshTimeout bounds how long a watcher that knows a newer event than the hub waits until
// the hub has read the database. Another replica can answer sooner than a database that hangs.
const refreshTimeout = time.Second

// Watcher holds one stream of the trust bundle. A Watcher is not safe for concurrent use.
//
// The opening of a stream comes first: the trust state; then a snapshot, or the messages of the
// ring that the watcher has missed; then the closing messages, which tell the watcher that the
// opening is complete. After the opening come the messages of the ring. Watchers share all
// messages but the last two closing messages.
type Watcher struct {
	hub       *Hub
	place     *share.Place  // nil for the local verifier
	evicted   chan struct{} // closed when the hub ends this stream to serve another watcher; nil for the local verifier
	leaveTurn func()        // nil: the watcher sends no snapshot
	turnFrom  time.Time     // before this time the next snapshot to the same peer does not begin
	turnUntil time.Time     // after this time, the hub drops the watcher if the snapshot is not sent

	trust     Message     // nil after it was sent
	snapshot  []fullChunk // full chunks of the snapshot that are still to be sent
	next      int         // number of the next message of the ring
	closing   []entry     // the newest chunk of a snapshot, the last chunk, and a heartbeat
	closingAt int         // number of the first message of the ring after the closing
	delivered int64       // [entry].seq of the message that Next returned last; zero: unknown
}

// Watch opens a stream of the trust bundle. The stream goes on after the resume token of an
// earlier stream if the hub still has all messages since, and begins with a snapshot otherwise.
// ctx bounds the wait for earlier snapshots to the same peer. The caller must call
// [Watcher.Close].
//
// A watcher without a certificate counts as a [share.Stranger], unless the resume token is of
// this hub's history of events, which shows that the client has been a watcher before. A resume
// token with a newer event than the hub's newest proves nothing until the hub has read the newer
// event from the database.
//
// Errors: ErrTooManyWatchers if the hub allows no further stream of the peer from; ErrEvicted
// if the hub ends the stream during the wait to serve another watcher; ErrOutdated if the
// resume token has a newer event than the hub; the error of ctx.
func (h *Hub) Watch(ctx context.Context, from Peer, resume []byte) (*Watcher, error) {
	w := &Watcher{hub: h, evicted: make(chan struct{})}
	at, greatest := h.parseResume(resume)
	kind := share.Stranger
	if from.Certified || h.knows(at) {
		kind = share.Ordinary
	}
	opening, end := context.WithCancelCause(ctx)
	defer end(nil)
	if w.place = h.places.Take(from.Name, kind, func() { close(w.evicted); end(ErrEvicted) }); w.place == nil {
		return nil, ErrTooManyWatchers
	}
	if err := w.open(opening, from.Name, at, greatest); err != nil {
		w.Close()
		if context.Cause(opening) == ErrEvicted {
			err = ErrEvicted
		}
		return nil, err
	}
	return w, nil
}

// open refreshes the hub from the database if necessary, waits for earlier snapshots to the
// same peer if the watcher needs a snapshot, and prepares the first messages of the stream (the
// opening).
func (w *Watcher) open(ctx context.Context, peer string, at Position, greatest int64) error {
	if claims := w.hub.claim(greatest); claims || w.hub.lacks(at) {
		bounded, cancel := context.WithTimeout(ctx, refreshTimeout)
		defer cancel()
		if err := w.hub.refresh(bounded); err != nil && ctx.Err() == nil {
			w.hub.outdated.Add(1)
			return fmt.Errorf("%w: %w", ErrOutdated, err)
		}
	}
	if ctx.Err() != nil || w.begin(at, false) {
		return ctx.Err()
	}
	if err := w.awaitTurn(ctx, peer); err != nil {
		return err
	}
	w.begin(at, true)
	w.turnFrom = time.Now().Add(time.Duration(len(w.snapshot)+1) * turnPerMessage)
	return nil
}

// begin prepares the first messages of a stream (the opening): the messages after the position
// at, if the ring buffer has all of them, and otherwise a snapshot, if maySnapshot is true.
// begin returns false if neither is possible.
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

// Close ends the stream, so that the hub can serve another watcher. The caller must call Close
// exactly once.
func (w *Watcher) Close() {
	w.endTurn()
	w.place.Release()
}

// LeftUnread counts the watcher as a watcher that has left a message unread for too long.
func (w *Watcher) LeftUnread() { w.hub.slow.Add(1) }

// Evicted returns a channel that is closed when the hub ends this stream to serve another
// watcher. The stream must then end, also if the client reads nothing.
func (w *Watcher) Evicted() <-chan struct{} { return w.evicted }

// Next waits for the next message. Errors: ErrBehind if the client must open another stream;
// ErrEvicted; the error of ctx.
func (w *Watcher) Next(ctx context.Context) (Message, error) {
	for {
		select {
		case <-w.evicted:
			return nil, ErrEvicted
		default:
		}
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
		case <-w.evicted:
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
	if w.leaveTurn != nil && time.Now().After(w.turnUntil) {
		w.hub.slow.Add(1)
		return e, nil, ErrBehind
	}
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	for r := &w.hub.ring; ; {
		switch e, ok := w.nextOfOpening(); {
		case ok:
			return e, nil, nil
		case w.next < r.first:
			w.hub.behind.Add(1)
			return e, nil, ErrBehind
		case w.next == r.end():
			return e, r.grown, nil
		}
		e = r.entries[w.next-r.first]
		w.next++
		// A heartbeat before the closing messages would tell the watcher too early that the
		// watcher has received everything.
		if !e.heartbeat || w.next > w.closingAt {
			if w.place != nil && w.next > w.closingAt { // leaves out the messages from before the stream
				w.hub.delays.Add(time.Since(e.at))
			}
			return e, nil, nil
		}
	}
}

// nextOfOpening returns the next message of the opening of the stream; false if the opening is
// sent and the next message comes from the ring buffer.
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

// verifierApplied records that the local verifier has applied every message returned by Next;
// [Hub.WaitApplied] waits for this record. verifierApplied records nothing for a watcher that
// the ring has dropped, since Fork may have replaced the history.
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
