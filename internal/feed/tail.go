package feed

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/store"
)

// position is a place in the history of the database: the number of an event,
// and its tag. Two histories may have the same numbers, and never the same tags.
type position struct {
	seq int64
	tag [tagSize]byte // zero: not known, since the event was pruned, or there was none
}

// entry is a message for all watchers; seq is the state's number behind it.
type entry struct {
	seq     int64
	kind    entryKind
	message Message
}

type entryKind int

const (
	heartbeat   entryKind = iota
	revocation            // a change that leaves the trust state as it is
	trustChange           // one that brings another
)

// catchUp reads the events behind the state, and publishes them. It is for one
// goroutine.
func (f *Feed) catchUp(ctx context.Context) error {
	f.mu.Lock()
	f.begun++
	f.mu.Unlock()
	err := f.readTail(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended, f.failed = f.begun, err
	f.proceed()
	return err
}

func (f *Feed) readTail(ctx context.Context) error {
	for {
		var b batch
		err := f.store.Read(ctx, func(tx *store.Tx) (err error) {
			b, err = f.read(ctx, tx)
			return err
		})
		if err != nil {
			return err
		}
		if b.forked {
			f.logger.WarnContext(ctx, "the database is not the one that it was: a backup was restored, or a standby promoted "+
				"that had not heard everything. Reading it anew; what was revoked stays revoked", "event", b.after.seq)
			f.beginAnew()
			continue
		}
		f.publish(ctx, b)
		if b.end() {
			return nil
		}
	}
}

// batch is what one read of the tail has found behind a position.
type batch struct {
	after  position
	events []*store.Event
	head   position  // all up to here has been read
	at     time.Time // by the database's clock
	heard  time.Time // the same, by this process's, or somewhat later
	forked bool      // the position is not in the history of the database
	rekey  bool      // the keys have changed

	trust *watchwordv1.TrustState // of the same moment, where the keys have changed
}

// end reports whether this is all that there was.
func (b *batch) end() bool { return len(b.events) < tailBatch }

// read reads what is behind the state. The keys come with the last of it, so that
// no watcher is given keys of a later moment than the number that it is given.
func (f *Feed) read(ctx context.Context, tx *store.Tx) (b batch, err error) {
	f.mu.Lock()
	b.after, b.rekey = f.at, f.rekey
	f.mu.Unlock()
	if err := b.read(tx); err != nil || b.forked {
		return b, err
	}
	b.rekey = b.rekey || slices.ContainsFunc(b.events, func(e *store.Event) bool { return e.Kind == store.KeysChanged })
	if b.rekey && b.end() {
		b.trust, err = f.readKeys(ctx, tx)
	}
	return b, err
}

func (b *batch) read(tx *store.Tx) error {
	head, err := tx.Head()
	if err != nil {
		return err
	}
	// What was underway for long makes the database look behind, and never ahead: a
	// verifier relies on that (see authn's clock).
	b.at, b.heard = tx.Now(), time.Now()
	known := b.after.tag != [tagSize]byte{}
	after := b.after.seq
	if known {
		after-- // the newest event that we know must still be there; Prune spares the head
	}
	events, err := tx.Events(after, tailBatch+1)
	if err != nil {
		return err
	}
	if known {
		if len(events) == 0 || positionOf(events[0]) != b.after {
			b.forked = true
			return nil
		}
		events = events[1:]
	}
	if head < b.after.seq {
		b.forked = true
		return nil
	}
	b.events = events[:min(len(events), tailBatch)]
	b.head = b.after
	if n := len(b.events); n > 0 {
		b.head = positionOf(b.events[n-1])
	}
	if b.end() && b.head.seq < head {
		b.head = position{seq: head} // events that were pruned have numbers too
	}
	return nil
}

func positionOf(e *store.Event) position {
	at := position{seq: e.Seq}
	copy(at.tag[:], e.Tag)
	return at
}

// ask returns when the tail has been read by a reading that has begun since, so
// that one serves all who ask. It is bounded, and its errors are the reading's and
// ctx's.
func (f *Feed) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	f.mu.Lock()
	mine, down := f.begun+1, f.failed != nil
	f.mu.Unlock()
	if !down { // otherwise whoever asks would set the pace of trying again
		f.nudge()
	}
	for {
		f.mu.Lock()
		ended, failed, progress := f.ended, f.failed, f.progress
		f.mu.Unlock()
		if ended >= mine {
			return failed
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// proceed wakes those who wait for progress; mu is held.
func (f *Feed) proceed() {
	close(f.progress)
	f.progress = make(chan struct{})
}

// beginAnew forgets where in its history the database was, and sends all
// watchers away, to come back. What was known to be revoked stays so until it
// has expired: that a history was lost is no reason to let anybody in.
func (f *Feed) beginAnew() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.recent = position{}, nil
	f.fork++
	f.applied = 0
	f.first += len(f.log) + 1 // nobody stands behind it
	f.log = nil
	f.rekey = true
	f.wake()
}

// publish adds events to the state and to the log.
func (f *Feed) publish(ctx context.Context, b batch) {
	if b.trust != nil {
		f.tellKeys(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// Both clocks tick in one process where the database is embedded: what differs
	// by less than this is the rounding.
	f.ahead = b.at.Sub(b.heard).Round(time.Millisecond)
	if b.end() {
		f.asOf = b.at
	}
	f.rekey = b.rekey && !b.end()
	if b.head == f.at && b.trust == nil {
		return
	}
	change, kind := &watchwordv1.Change{TrustState: b.trust}, revocation
	if b.trust != nil {
		f.setTrust(b.trust)
		kind = trustChange
	}
	for _, e := range b.events {
		f.recent = append(f.recent, positionOf(e))
		if e.ExpiresAt.After(b.at) {
			f.revoked.add(e, change)
		}
	}
	if n := len(f.recent); n > 2*logSize {
		f.recent = append([]position(nil), f.recent[n-logSize:]...)
	}
	f.at = b.head
	f.append(kind, &watchwordv1.WatchBundleResponse{
		Message: &watchwordv1.WatchBundleResponse_Change{Change: change}, Resume: f.resume(),
	})
}

// append adds a message to the log and wakes the watchers; mu is held.
func (f *Feed) append(kind entryKind, message *watchwordv1.WatchBundleResponse) {
	if len(f.log) == logSize {
		f.log = append([]entry(nil), f.log[logSize/2:]...)
		f.first += logSize / 2
	}
	f.log = append(f.log, entry{f.at.seq, kind, encode(message)})
	if kind == trustChange {
		f.rekeyed = f.first + len(f.log)
	}
	f.wake()
}

func (f *Feed) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// holds reports whether a position is in the history that was read. Of what is
// older than all that is remembered nothing else is known; mu is held.
func (f *Feed) holds(at position) bool {
	i, ok := f.find(at.seq)
	if !ok {
		return at == position{} || i == 0 && len(f.recent) > 0
	}
	return f.recent[i] == at
}

// find is where an event is, or would be, in recent; mu is held.
func (f *Feed) find(seq int64) (int, bool) {
	return slices.BinarySearchFunc(f.recent, seq, func(p position, seq int64) int { return cmp.Compare(p.seq, seq) })
}

// resume says where a later stream can go on: number, tag, and which database.
func (f *Feed) resume() []byte {
	resume := binary.BigEndian.AppendUint64(nil, uint64(f.at.seq))
	resume = append(resume, f.at.tag[:]...)
	return append(resume, f.origin...)
}

// parse reads what resume has written, of this database.
func (f *Feed) parse(resume []byte) (at position, ok bool) {
	const length = 8 + tagSize
	if len(resume) < length || !bytes.Equal(resume[length:], f.origin) {
		return at, false
	}
	at.seq = int64(binary.BigEndian.Uint64(resume))
	copy(at.tag[:], resume[8:])
	return at, true
}
