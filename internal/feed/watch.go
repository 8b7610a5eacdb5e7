package feed

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// watching is what one peer has open.
type watching struct {
	watchers  int
	snapshots chan struct{} // holds one for each snapshot that is being sent
}

// Watch begins with what has happened since `resume`, if this feed can tell, and
// with a snapshot otherwise. `from` is the peer, whose snapshots and watchers are
// bounded; ctx bounds the wait for the peer's other snapshots. The watcher must
// be closed. Its errors are ErrTooManyWatchers, ErrOutdated and ctx's.
func (f *Feed) Watch(ctx context.Context, from string, resume []byte) (*Watcher, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	peer := f.peers[from]
	if peer == nil {
		peer = &watching{snapshots: make(chan struct{}, snapshotsPerPeer)}
	}
	if f.watchers == maxWatchers || peer.watchers == maxPerPeer {
		return nil, ErrTooManyWatchers
	}
	f.watchers++
	peer.watchers++
	f.peers[from] = peer
	w := &Watcher{feed: f, from: from, peer: peer}
	next, ok := f.since(resume)
	if !ok && f.unheard(resume) {
		if err := w.catchUp(ctx); err != nil {
			w.leave()
			return nil, err
		}
		next, ok = f.since(resume)
	}
	if ok {
		w.goOn(next)
		return w, nil
	}
	if err := w.awaitTurn(ctx); err != nil {
		w.leave()
		return nil, err
	}
	w.beginAnew()
	return w, nil
}

// Watcher is one watcher's place in the feed. It is not safe for concurrent use.
//
// It is told whom to trust, and what it has missed: a snapshot, or a part of the
// log. Then it is told that this was all, and then whatever comes. What may be
// large of this it shares with the others.
type Watcher struct {
	feed    *Feed
	from    string
	peer    *watching
	sending bool      // a snapshot: holds a place in peer.snapshots
	until   time.Time // at the longest

	trust    Message     // as the stream begins
	snapshot []fullChunk // all but the newest chunk of it
	next     int         // in the log
	told     []Message   // the newest chunk, that this was all, and a heartbeat
	toldAt   int         // where in the log that comes
	seq      int64       // the state's number there
	fork     int         // the history that the numbers are of
}

// catchUp lets the feed read up to what the watcher knows, before that is judged
// to be of another history: a snapshot of an older state would undo some of it,
// and a withdrawn key be trusted again. mu is held, and let go while it waits.
func (w *Watcher) catchUp(ctx context.Context) error {
	w.feed.mu.Unlock()
	defer w.feed.mu.Lock()
	if err := w.feed.ask(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", ErrOutdated, err)
	}
	return ctx.Err()
}

// awaitTurn waits until the peer may be sent another snapshot. mu is held, and
// let go while it waits.
func (w *Watcher) awaitTurn(ctx context.Context) error {
	w.feed.mu.Unlock()
	defer w.feed.mu.Lock()
	select {
	case w.peer.snapshots <- struct{}{}:
		w.sending, w.until = true, time.Now().Add(snapshotTimeout)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// goOn begins with what is in the log from next on; mu is held.
func (w *Watcher) goOn(next int) {
	f := w.feed
	w.next, w.toldAt, w.seq, w.fork = next, f.first+len(f.log), f.at.seq, f.fork
	last := chunk(&watchwordv1.SnapshotChunk{Last: true})
	last.Resume = f.resume()
	w.trust = f.trustChunk
	w.told = []Message{encode(last), encode(f.heartbeat(nil))}
}

// beginAnew begins with a snapshot; mu is held.
func (w *Watcher) beginAnew() {
	f := w.feed
	w.goOn(f.first + len(f.log))
	w.snapshot = f.revoked.full
	if newest := f.revoked.newest(); newest != nil {
		w.told = slices.Insert(w.told, 0, newest)
	}
}

// Close gives the watcher's place to another. It must be called once.
func (w *Watcher) Close() {
	w.feed.mu.Lock()
	defer w.feed.mu.Unlock()
	w.leave()
}

// leave is Close with mu held.
func (w *Watcher) leave() {
	w.sent()
	w.feed.watchers--
	if w.peer.watchers--; w.peer.watchers == 0 {
		delete(w.feed.peers, w.from)
	}
}

// sent makes room for the peer's next snapshot.
func (w *Watcher) sent() {
	if w.sending {
		w.sending = false
		<-w.peer.snapshots
	}
}

// Next waits for the next message. Its error is ErrBehind or ctx's.
func (w *Watcher) Next(ctx context.Context) (Message, error) {
	e, err := w.nextEntry(ctx)
	return e.message, err
}

func (w *Watcher) nextEntry(ctx context.Context) (entry, error) {
	for {
		e, changed, err := w.poll()
		if err != nil || changed == nil {
			return e, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return entry{}, ctx.Err()
		}
	}
}

// poll returns the next entry, or what to wait for.
func (w *Watcher) poll() (entry, chan struct{}, error) {
	f := w.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.sending && time.Now().After(w.until) {
		return entry{}, nil, ErrBehind
	}
	for {
		if e, ok := w.take(); ok {
			return e, nil, nil
		}
		if w.next < f.first {
			return entry{}, nil, ErrBehind
		}
		if w.next == f.first+len(f.log) {
			return entry{}, f.changed, nil
		}
		e := f.log[w.next-f.first]
		w.next++
		if e.kind != heartbeat || w.next > w.toldAt { // before, it would say that all is known
			return e, nil, nil
		}
	}
}

// take takes the next of what does not come from the log, if that is due; mu is
// held.
func (w *Watcher) take() (e entry, ok bool) {
	switch {
	case w.trust != nil:
		e.message, w.trust = w.trust, nil
	case len(w.snapshot) > 0:
		e.message, w.snapshot = w.snapshot[0].message, w.snapshot[1:]
	case len(w.told) > 0 && w.next >= w.toldAt:
		e.message, w.told = w.told[0], w.told[1:]
		if len(w.told) == 0 {
			e.seq = w.seq
			w.snapshot, w.told = nil, nil
			w.sent()
		}
	default:
		return e, false
	}
	return e, true
}

// unheard reports whether a position that a watcher names is none of the history
// that was read, though not for being too old; mu is held.
func (f *Feed) unheard(resume []byte) bool {
	at, ok := f.parse(resume)
	_, known := f.find(at.seq)
	return ok && (at.seq > f.at.seq || known && !f.holds(at))
}

// since is where in the log that begins which has happened since a position that
// a watcher names, if the position is in this history and the log goes back so far;
// mu is held.
//
// A change of the trust state among it is answered by a snapshot: the watcher is
// given the newest first, and must not go back to one in between.
func (f *Feed) since(resume []byte) (next int, ok bool) {
	at, ok := f.parse(resume)
	if !ok {
		return 0, false
	}
	if at == f.at {
		return f.first + len(f.log), true
	}
	if _, ok := f.find(at.seq); !ok || !f.holds(at) {
		return 0, false
	}
	// An entry that holds the event and some behind it is sent whole: what a
	// watcher knows already does no harm.
	j, _ := slices.BinarySearchFunc(f.log, at.seq+1, func(e entry, seq int64) int { return cmp.Compare(e.seq, seq) })
	if j == 0 && f.first > 0 {
		return 0, false // part of it may have left the log
	}
	return f.first + j, f.first+j >= f.rekeyed
}
