package hub

import (
	"cmp"
	"slices"
	"time"
)

// ringSize bounds the number of messages in the ring buffer of a hub (the ring). A watcher can
// always be 2048 messages behind, and up to ringSize behind until the ring drops its older
// half, unless the ring drops messages because of ringBytes.
const ringSize = 4096

// ringBytes bounds the size of the messages in the ring buffer of a hub, in bytes: a message
// can have a trust state or a thousand revocations. Above ringBytes the ring drops its older
// half too, earlier than at ringSize messages. 16 MiB are several times the size of 4096 messages
// with ordinary changes.
const ringBytes = 16 << 20

// Tag holds random bytes of an event: events of two histories that have the same number have
// different tags. The zero Tag means unknown: the event was pruned, or never existed.
type Tag [8]byte

// Position says up to which event a hub or a watcher knows a history of events: the number of the
// event, and the event's random tag.
type Position struct {
	Seq int64
	Tag Tag
}

// nowhere is the [Position] of a watcher that knows no event of the hub's history: a stream
// that resumes from nowhere begins with a snapshot.
var nowhere = Position{Seq: -1}

// ring is the ring buffer of messages: the newest messages of one history, and the
// positions of the events in the messages. A ring has no lock: [Hub].mu guards it.
//
// Messages are numbered from the start of the process. entries[i] has the number
// first+i. end() is the number of the next message to come.
//
//	 dropped        kept in entries          to come
//	.........|first ................ end()-1|end() ...
//
// Between two calls of the ring's methods, these statements hold:
//
//  1. len(entries) <= ringSize, and bytes is the size of the messages in entries: at most
//     ringBytes, or the size of a single message. first and end() never decrease.
//  2. Every watcher has next <= end(). While first <= next, the watcher's next message is
//     entries[next-first]. When next < first, the ring has dropped a message that the watcher
//     has not read, and the watcher must open another stream.
//  3. fork sets first to end()+1. So by statement 2, each watcher of the old history has
//     next < first.
//  4. entries[i].seq is the number of the newest event published with the message or before,
//     so entries[i].seq never decreases with i, and is at most at.Seq.
//  5. recent increases strictly in Seq, and no element of recent exceeds at.Seq. Every event of
//     the history from recent[0] on has its position in recent.
//  6. afterTrust <= end(). A stream that begins with the newest trust state and goes
//     on with a message numbered afterTrust or higher never returns to an older trust state.
type ring struct {
	at         Position // every event up to this position is published
	recent     []Position
	first      int
	entries    []entry
	bytes      int           // the size of the messages in entries
	afterTrust int           // the number of the message after the newest message with a trust state
	grown      chan struct{} // closed and replaced by append and fork
}

type entry struct {
	seq       int64
	heartbeat bool
	message   Message
	at        time.Time // when the ring got the message
}

// end returns the number of the next message to come.
func (r *ring) end() int { return r.first + len(r.entries) }

// advance sets the position of the ring to at, and remembers the positions of the events up to
// at.
func (r *ring) advance(passed []Position, at Position) {
	r.at, r.recent = at, append(r.recent, passed...)
	if n := len(r.recent); n > 2*ringSize {
		r.recent = slices.Delete(r.recent, 0, n-ringSize)
	}
}

// append adds a message and wakes the watchers. A full ring drops its older half at
// once, so that moving the newer half costs little for each message.
func (r *ring) append(heartbeat bool, m Message) {
	r.bytes += len(m)
	for n := len(r.entries); n == ringSize || n > 0 && r.bytes > ringBytes; n = len(r.entries) {
		half := (n + 1) / 2
		for _, e := range r.entries[:half] {
			r.bytes -= len(e.message)
		}
		r.entries = slices.Delete(r.entries, 0, half)
		r.first += half
	}
	r.entries = append(r.entries, entry{r.at.Seq, heartbeat, m, time.Now()})
	r.wake()
}

// fork begins another history of events, after the database has lost events. Every watcher of
// the old history gets ErrBehind.
func (r *ring) fork() {
	r.at, r.recent = Position{}, nil
	r.first, r.entries, r.bytes = r.end()+1, nil, 0
	r.wake()
}

func (r *ring) wake() {
	close(r.grown)
	r.grown = make(chan struct{})
}

// find returns the index in r.recent of the event with the number seq, or the index where the
// event would be.
func (r *ring) find(seq int64) (i int, found bool) {
	return slices.BinarySearchFunc(r.recent, seq, func(p Position, seq int64) int { return cmp.Compare(p.Seq, seq) })
}

// holds reports whether a position is of the ring's history of events. holds returns true for a
// position older than every position in recent, since the ring has no tag to compare.
func (r *ring) holds(at Position) bool {
	i, found := r.find(at.Seq)
	if !found {
		return at == Position{} || i == 0 && len(r.recent) > 0
	}
	return r.recent[i] == at
}

// lacks reports whether a position (the number and the tag of an event) is newer than the
// newest position of the ring, or is of another history of events. lacks returns false for a
// position older than every position in recent.
func (r *ring) lacks(at Position) bool {
	i, found := r.find(at.Seq)
	return at.Seq > r.at.Seq || found && r.recent[i] != at
}

// knows reports whether a position is the newest position of the ring or is in recent.
func (r *ring) knows(at Position) bool {
	i, found := r.find(at.Seq)
	return at == r.at || found && r.recent[i] == at
}

// resumeAt returns the number of the first message for a watcher that knows every
// event up to a position. ok is false, and the watcher needs a snapshot, if the position is
// unknown, if a message that the watcher needs was dropped, or if the trust state was replaced
// after the position.
func (r *ring) resumeAt(at Position) (next int, ok bool) {
	if at == r.at {
		return r.end(), true
	}
	if !r.knows(at) {
		return 0, false
	}
	// A message with the event itself and newer events is sent whole: applying an
	// event again does no harm.
	i, _ := slices.BinarySearchFunc(r.entries, at.Seq+1, func(e entry, seq int64) int { return cmp.Compare(e.seq, seq) })
	if i == 0 && r.first > 0 {
		return 0, false // the ring may have dropped a message with newer events
	}
	return r.first + i, r.first+i >= r.afterTrust
}
