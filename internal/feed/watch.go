package feed

import (
	"cmp"
	"context"
	"fmt"
	"slices"

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
	missed, ok := f.since(resume)
	if !ok && f.unheard(resume) {
		if err := w.catchUp(ctx); err != nil {
			w.leave()
			return nil, err
		}
		missed, ok = f.since(resume)
	}
	if !ok {
		if err := w.awaitTurn(ctx); err != nil {
			w.leave()
			return nil, err
		}
		missed = f.revoked.messages()
	}
	w.begin(missed)
	return w, nil
}

// Watcher is one watcher's place in the feed. It is not safe for concurrent use.
type Watcher struct {
	feed    *Feed
	from    string
	peer    *watching
	sending bool // a snapshot: holds a place in peer.snapshots

	queue []Message // what comes before the log
	seq   int64     // the state's number behind the queue
	fork  int       // the history that the numbers are of
	next  int       // in the log
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
		w.sending = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin puts the trust state in front of what the watcher has missed, and behind
// it that this was all, and a heartbeat; mu is held.
func (w *Watcher) begin(missed []Message) {
	f := w.feed
	w.seq, w.fork, w.next = f.at.seq, f.fork, f.first+len(f.log)
	last := chunk(&watchwordv1.SnapshotChunk{Last: true})
	last.Resume = f.resume()
	if len(missed) == 0 {
		last.GetSnapshotChunk().TrustState = f.trust
	} else {
		w.queue = append(w.queue, encode(chunk(&watchwordv1.SnapshotChunk{TrustState: f.trust})))
	}
	w.queue = append(w.queue, missed...)
	w.queue = append(w.queue, encode(last), encode(f.heartbeat(nil)))
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
	if len(w.queue) > 0 {
		e := entry{message: w.queue[0]}
		if w.queue = w.queue[1:]; len(w.queue) == 0 {
			e.seq, w.queue = w.seq, nil
			w.sent()
		}
		return e, nil, nil
	}
	if w.next < f.first {
		return entry{}, nil, ErrBehind
	}
	if i := w.next - f.first; i < len(f.log) {
		w.next++
		return f.log[i], nil, nil
	}
	return entry{}, f.changed, nil
}

// unheard reports whether a position that a watcher names is none of the history
// that was read, though not for being too old; mu is held.
func (f *Feed) unheard(resume []byte) bool {
	at, ok := f.parse(resume)
	_, known := f.find(at.seq)
	return ok && (at.seq > f.at.seq || known && !f.holds(at))
}

// since is what has happened since a position that a watcher names, if the
// position is in this history and the log goes back so far; mu is held.
//
// A change of the trust state among it is answered by a snapshot: the watcher has
// been given the newest already, and must not go back to one in between.
func (f *Feed) since(resume []byte) ([]Message, bool) {
	at, ok := f.parse(resume)
	if !ok {
		return nil, false
	}
	if at == f.at {
		return nil, true
	}
	if _, ok := f.find(at.seq); !ok || !f.holds(at) {
		return nil, false
	}
	// An entry that holds the event and some behind it is sent whole: what a
	// watcher knows already does no harm.
	j, _ := slices.BinarySearchFunc(f.log, at.seq+1, func(e entry, seq int64) int { return cmp.Compare(e.seq, seq) })
	if j == 0 && f.first > 0 {
		return nil, false // part of it may have left the log
	}
	var missed []Message
	for _, e := range f.log[j:] {
		switch e.kind {
		case trustChange:
			return nil, false
		case revocation:
			missed = append(missed, e.message)
		}
	}
	return missed, true
}
