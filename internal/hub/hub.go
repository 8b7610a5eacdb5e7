// Package hub sends the trust bundle (public keys and revocations) to watchers, which are the
// verifiers with a stream of WatchBundle: a snapshot of the trust state and of the revocations
// in force, and then changes, with heartbeats in between.
//
// One publisher fills a hub. The publisher calls [Hub.Publish] for each step of the
// history of events, [Hub.Fork] when the history was replaced, and [Hub.Beat] at
// intervals. The hub reads no database: package feed publishes from the store, and
// the messages of an upstream WatchBundle stream carry all that Publish needs.
//
// A stream begins with the newest trust state and never returns to an older one. Every snapshot
// has all revocations that have not expired, also those of a history that was replaced. The
// memory of the hub is bounded: all watchers share encoded messages. The hub keeps the newest
// 2048 to 4096 messages (fewer if the messages take more than 16 MiB), and drops a watcher that
// needs an older message.
// The number of streams is bounded, in all and for each peer (a client network or a client
// certificate). When as many streams are open as the bound allows, the hub ends a stream of the
// peer with the most streams to serve a new stream: see package share.
//
// The hub knows the token time, which is the time of the database's clock, from each [Reading]
// in an [Update]. Between two readings the hub calculates the token time from the time that
// passes in this process. So the machine's clock has no influence on the token time. Every
// heartbeat carries the token time and a time of the process clock, as [Hub.Times] returns them.
//
// The process's own verifier, called the local verifier, receives the trust bundle through
// [Hub.Conn] and does not count among the bounded streams. [Hub.WaitApplied] returns when the
// local verifier has applied the events up to a position.
package hub

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/clock"
	"github.com/watchword-auth/watchword/internal/count"
	"github.com/watchword-auth/watchword/internal/share"
)

var (
	// ErrBehind reports that a watcher read too slowly, or that the history of events was
	// replaced. The client opens another stream.
	ErrBehind = errors.New("watcher fell behind")
	// ErrOutdated reports that a watcher knows a newer event than the hub, and that the
	// publisher cannot read newer events from the database. Another replica possibly has the
	// newer events.
	ErrOutdated = errors.New("this replica is behind the watcher")
	// ErrTooManyWatchers reports that the peer has as many streams as one peer can have, or
	// that as many streams are open as the hub allows and no other peer has more streams.
	ErrTooManyWatchers = errors.New("too many watchers")
	// ErrEvicted reports that the hub ends the watcher's stream to serve the stream of another
	// watcher.
	ErrEvicted = errors.New("another watcher has got the place")
)

// Message holds an encoded WatchBundleResponse. The hub gives the same Message to several
// watchers, so the bytes must not be changed.
type Message []byte

// Hub holds the trust bundle and serves watchers. Hub is safe for concurrent use. Opening a
// stream holds the lock of the hub for microseconds. The count of the streams of each peer
// (places) has a lock of its own.
type Hub struct {
	origin    string
	resumeKey []byte // the key for the MAC of resume tokens
	refresh   func(context.Context) error
	places    *share.Pool
	turns     *share.Turns   // bounds the snapshots, by the name of the peer
	process   []byte         // a random id of this process
	elapsed   *clock.Elapsed // the process clock

	delays                 count.Durations // the time from a message's entry into the ring until a watcher takes the message
	behind, slow, outdated atomic.Uint64   // numbers of watchers that had to open another stream; see Stats

	mu         sync.Mutex // guards all fields below
	trust      *watchwordv1.TrustState
	trustChunk Message // trust, encoded as the first message of a stream
	revoked    revocations
	token      clock.Estimate // the token time, in ns since 1970, by the process clock
	asOf       time.Duration  // a time of the process clock: every event that was committed before asOf is published
	ring       ring
	greatest   int64 // [Update].Greatest of the newest update: a version number of users' rights
	claimed    int64 // the greatest version in the resume token of a watcher

	applied      int64         // number of the newest event that the local verifier has applied
	appliedGrown chan struct{} // closed and replaced when applied grows
}

// New returns an empty hub.
//
// origin names the database behind the history; a watcher with a resume token of another origin
// gets a snapshot. The hub calls refresh, from several goroutines at a time, for a watcher that
// knows more than the hub: refresh returns nil after every event that was committed before the
// call has been published, and an error if that is impossible.
func New(origin string, refresh func(context.Context) error) *Hub {
	h := &Hub{
		origin: origin, resumeKey: []byte(rand.Text()), refresh: refresh, turns: newTurns(),
		process: make([]byte, 8), elapsed: clock.New(),
		ring: ring{grown: make(chan struct{})}, appliedGrown: make(chan struct{}),
	}
	rand.Read(h.process)
	h.LimitWatchers(maxWatchers, nil)
	return h
}

// Update describes one step of the history of events: the events that the publisher has read
// from the database at once. A hub sends the step as one message, so the publisher bounds the
// size of the step.
type Update struct {
	Change *watchwordv1.Change // the trust state if it has changed, and new revocations
	Passed []Position          // the position of each event in the step, in order
	At     Position            // the position of the newest event after the step
	// Greatest is at least the floor for versions and every version of an event, in this
	// history and in histories that were replaced.
	Greatest int64
	Time     Reading // what the database's clock showed
	Whole    bool    // every event committed before Time.Asked is published
}

// Reading holds one answer of the database's clock. The clock showed the time Token at a moment
// between Asked and Answered, which are times of [Hub.Elapsed].
type Reading struct {
	Token           time.Time
	Asked, Answered time.Duration
}

// Elapsed returns the time since the process started, with suspensions of the machine, by a clock
// that is never set.
func (h *Hub) Elapsed() time.Duration { return h.elapsed.Now() }

// Publish applies an update, and sends a message to all watchers if the update has a trust
// state or ends at a new position. The first update with a trust state must come before Watch
// and Conn are used. The hub keeps the parts of the update, so the caller must not change them
// later. Publish returns by how much the database's clock was set since the earlier reading, and
// zero if the clock was not set.
//
// State and message change in one step: a watcher that receives the message finds the
// trust state of the update, or a newer one, in [Hub.TrustState] and in a new stream.
func (h *Hub) Publish(u *Update) (set time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	shown := time.Duration(u.Time.Token.UnixNano())
	set, _ = h.token.Learn(clock.Answer(shown, u.Time.Asked, u.Time.Answered), clock.Span{From: u.Time.Asked, To: u.Time.Answered}, true)
	h.greatest = u.Greatest
	if u.Whole {
		h.asOf = max(h.asOf, u.Time.Asked)
	}
	if trust := u.Change.GetTrustState(); trust != nil {
		if h.trust != nil {
			h.ring.afterTrust = h.ring.end() + 1 // the message below has the number end()
		}
		h.trust, h.trustChunk = trust, encode(chunk(&watchwordv1.SnapshotChunk{TrustState: trust}))
	} else if u.At == h.ring.at {
		return set
	}
	h.revoked.add(u.Change)
	h.ring.advance(u.Passed, u.At)
	h.ring.append(false, encode(&watchwordv1.WatchBundleResponse{
		Message: &watchwordv1.WatchBundleResponse_Change{Change: u.Change}, Resume: h.resumeLocked(),
	}))
	return set
}

// Fork begins another history of events at position zero, after the database has lost events,
// such as by the restore of a backup. Fork ends the streams of all watchers, which must open
// new streams. Revocations of the old history stay in force until the revocations expire:
// verifiers keep refusing a revoked token when the database has lost the revocation.
func (h *Hub) Fork() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring.fork()
	h.applied = 0
}

// Beat sends a heartbeat to all watchers and drops expired revocations.
func (h *Hub) Beat() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.revoked.dropExpired(h.expiredLocked())
	h.ring.append(true, encode(h.heartbeatLocked(h.resumeLocked())))
}

// TrustState returns the newest trust state. The caller must not change the value.
func (h *Hub) TrustState() *watchwordv1.TrustState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.trust
}

// WaitApplied returns nil when the local verifier has applied every event up to a
// position. After Fork has replaced the history of events, events of the replaced history
// do not count. Errors: those of ctx.
func (h *Hub) WaitApplied(ctx context.Context, at Position) error {
	for {
		h.mu.Lock()
		reached, grown := h.hasAppliedLocked(at), h.appliedGrown
		h.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// HasApplied reports whether [Hub.WaitApplied] would return at once.
func (h *Hub) HasApplied(at Position) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hasAppliedLocked(at)
}

func (h *Hub) hasAppliedLocked(at Position) bool { return h.applied >= at.Seq && h.ring.holds(at) }

// Applied returns the number of the newest event that the local verifier has applied.
func (h *Hub) Applied() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.applied
}

// lacks reports whether the hub must read newer events from the database before the hub serves
// a watcher that knows the events up to a position. A snapshot from a hub with fewer events
// could hold a key that the watcher knows to be withdrawn, and the watcher would trust the key
// again.
func (h *Hub) lacks(at Position) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ring.lacks(at)
}

// knows reports whether a position (the number and the tag of an event) is of the hub's history
// of events. The tag of an event is random, so a client that names a known position has been a
// watcher of this history before.
func (h *Hub) knows(at Position) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ring.knows(at)
}

// expiredLocked returns the time before which the hub drops a revocation: a revocation that
// ends before this time has expired by everything that the database's clock has shown within
// the life of a revocation. So a clock that is ahead for a moment drops no revocation. h.mu
// must be held.
func (h *Hub) expiredLocked() time.Time {
	life := h.trust.GetMaxTokenLifetime().AsDuration() + h.trust.GetMargin().AsDuration()
	return time.Unix(0, int64(h.token.Expired(h.elapsed.Now(), life)))
}

// Times returns the process clock and the token time of this process, for a heartbeat or for an
// answer to a verifier.
func (h *Hub) Times() *watchwordv1.ServerTimes {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.timesLocked()
}

// timesLocked returns the process clock and the token time of this process. h.mu must be held.
func (h *Hub) timesLocked() *watchwordv1.ServerTimes {
	now, token, read := h.elapsed.Now(), h.token.Offset(), h.token.Read()
	return &watchwordv1.ServerTimes{
		Process: h.process, Now: durationpb.New(now), Asked: durationpb.New(read.From), Answered: durationpb.New(read.To),
		Earliest: timestamppb.New(time.Unix(0, int64(token.Earliest(now)))),
		Latest:   timestamppb.New(time.Unix(0, int64(token.Latest(now)))),
	}
}

// heartbeatLocked returns a heartbeat with what the clocks show now, and with a resume token.
// h.mu must be held.
func (h *Hub) heartbeatLocked(resume []byte) *watchwordv1.WatchBundleResponse {
	beat := &watchwordv1.Heartbeat{Times: h.timesLocked(), AsOf: durationpb.New(h.asOf)}
	return &watchwordv1.WatchBundleResponse{
		Message: &watchwordv1.WatchBundleResponse_Heartbeat{Heartbeat: beat}, Resume: resume,
	}
}

// chunkSize bounds the number of revocations in a message of a snapshot; a revocation takes
// about 40 bytes.
const chunkSize = 1000

// revocations holds the revocations in force, in the chunks of a snapshot. Revocations arrive
// nearly in the order of their expiry. So the hub drops a chunk as a whole, when the last
// revocation in the chunk has expired. A million revocations take some 40 MB, and a snapshot
// with a million revocations is a list of a thousand shared chunks.
//
// revocations has no lock: [Hub].mu guards it.
type revocations struct {
	full    []fullChunk               // watchers hold the slice: elements are never changed in place
	open    watchwordv1.SnapshotChunk // the newest revocations, fewer than chunkSize
	encoded Message                   // open, encoded; nil after open has changed
	last    time.Time                 // the latest expiry in open
}

type fullChunk struct {
	message Message
	until   time.Time // the latest expiry of a revocation in the chunk
}

// add adds the revocations of a change to the open chunk.
func (r *revocations) add(c *watchwordv1.Change) {
	for _, ended := range c.GetEndedSessions() {
		r.open.EndedSessions = append(r.open.EndedSessions, ended)
		r.entryAdded(ended.GetUntil())
	}
	for _, raised := range c.GetRaisedVersions() {
		r.open.RaisedVersions = append(r.open.RaisedVersions, raised)
		r.entryAdded(raised.GetUntil())
	}
}

// entryAdded notes that a revocation was added to the open chunk (r.open); until is the
// revocation's expiry. When the chunk is full, entryAdded encodes the chunk, which never
// changes again.
func (r *revocations) entryAdded(until *timestamppb.Timestamp) {
	r.encoded = nil
	if expires := until.AsTime(); r.last.Before(expires) {
		r.last = expires
	}
	if r.openSize() == chunkSize {
		r.full = append(r.full, fullChunk{r.newest(), r.last})
		r.reopen()
	}
}

func (r *revocations) openSize() int { return len(r.open.EndedSessions) + len(r.open.RaisedVersions) }

func (r *revocations) reopen() {
	r.open.EndedSessions, r.open.RaisedVersions, r.encoded, r.last = nil, nil, nil, time.Time{}
}

// dropExpired drops each chunk in which every revocation has expired.
func (r *revocations) dropExpired(now time.Time) {
	r.full = slices.DeleteFunc(slices.Clone(r.full), func(c fullChunk) bool { return c.until.Before(now) })
	if r.last.Before(now) {
		r.reopen()
	}
}

// newest returns the encoded message with the newest revocations (r.open), or nil if
// r.open is empty.
func (r *revocations) newest() Message {
	if r.encoded == nil && r.openSize() > 0 {
		r.encoded = encode(chunk(&r.open))
	}
	return r.encoded
}

func chunk(c *watchwordv1.SnapshotChunk) *watchwordv1.WatchBundleResponse {
	return &watchwordv1.WatchBundleResponse{Message: &watchwordv1.WatchBundleResponse_SnapshotChunk{SnapshotChunk: c}}
}

// encode encodes a message. encode panics on invalid UTF-8 alone, which neither the store nor a
// decoded message holds.
func encode(m *watchwordv1.WatchBundleResponse) Message {
	wire, err := proto.Marshal(m)
	if err != nil {
		panic("hub: encoding a message of our own: " + err.Error())
	}
	return wire
}
