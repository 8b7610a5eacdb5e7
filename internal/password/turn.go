package password

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/spans"
)

// Caller says for which peer the [Pool] computes a hash. A peer is a network of strangers, or a
// signed-in user. Two equal Callers belong to one peer. The zero Caller is Stranger("").
type Caller struct {
	kind kind
	name string
}

// peerName returns the name of the caller's peer in [Pool.places]. The name of a stranger's
// peer is the network.
func (c Caller) peerName() string {
	switch c.kind {
	case user:
		return "user " + c.name
	case admin:
		return "admin " + c.name
	}
	return c.name
}

type kind int

const (
	stranger kind = iota
	user
	admin
)

// Stranger returns a caller that stands for a client without a verified access token. All
// strangers of a network are one peer.
func Stranger(network string) Caller { return Caller{stranger, network} }

// User returns a caller that stands for a signed-in user. Each signed-in user is a separate
// peer, so users can change passwords during a flood of logins from their network. At most two
// hashes of a user run at a time, on a machine of any size.
func User(id string) Caller { return Caller{user, id} }

// Admin returns a caller that stands for a signed-in user with the role admin. The pool treats
// an Admin like a [User], and also admits an Admin to the places of [Config].Reserved in the
// queue, which are for Admin callers alone: so an admin can set passwords during a flood of
// logins.
func Admin(id string) Caller { return Caller{admin, id} }

const maxHashesOfUser = 2 // the most hashes of one signed-in user that run at a time

// peer holds the turns of one peer: of a network of strangers, or of a signed-in user. Pool.mu
// guards a peer.
type peer struct {
	caller  Caller
	turns   []*Turn // the turns that have no slot yet, in order of arrival
	running int     // the number of turns with a slot
}

// Turn stands for one caller's use of a [Pool]. A turn first has a place in the queue, and from
// its first hash on a slot (the right to run a hash). The turn keeps the slot until End, so a
// caller that needs a second hash does not wait again. Between two hashes of a turn, do nothing
// that can take long.
//
// A Turn is for one goroutine. Call End as soon as the last hash has been made.
type Turn struct {
	pool   *Pool
	peer   *peer
	place  *share.Place // the place in the queue, while the turn has no slot
	waited bool         // the caller has called Wait

	// Pool.mu guards the fields below.
	state   state
	ready   time.Time     // since when the caller waits for the slot; zero: the caller does not wait
	settled chan struct{} // closed when the turn gets a slot or loses its place in the queue
}

type state int

const (
	waiting   state = iota // the turn has a place in the queue
	running                // the turn has a slot, the right to run a hash
	displaced              // the turn has lost its place in the queue to another peer
	ended
)

// Enter takes a place in the queue of the pool, and returns at once. If the database is needed
// before the hash, call Enter first: then a flood of logins causes a bounded number of reads. A
// turn that has not called Wait delays no other turn.
//
// Errors: [ErrOverloaded] if the queue admits no further caller of this peer, or if ctx's
// deadline comes before the estimated end of the hash; ctx.Err() if ctx has ended.
func (p *Pool) Enter(ctx context.Context, caller Caller) (*Turn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	from := p.peers[caller]
	if from == nil {
		from = &peer{caller: caller}
	}
	t := &Turn{pool: p, peer: from, settled: make(chan struct{})}
	if p.lateLocked(ctx, p.waitLocked(from), p.waiting+p.running) || !t.takePlaceLocked() {
		p.refused.Add(1)
		return nil, ErrOverloaded
	}
	if p.peers[caller] == nil {
		p.peers[caller] = from
		p.order = append(p.order, from)
	}
	from.turns = append(from.turns, t)
	p.waiting++
	return t, nil
}

// takePlaceLocked takes a place in the queue, and reports whether the turn has got a place. The
// newest turn of another peer can lose its place to the turn: see package share.
func (t *Turn) takePlaceLocked() bool {
	p, from := t.pool, t.peer.caller
	evicted := func() { // runs in Enter of the turn that takes the place; Enter holds p.mu
		t.leaveQueueLocked(displaced)
		t.peer.forgetLocked(p)
	}
	switch from.kind {
	case stranger:
		t.place = p.places.Take(from.peerName(), share.Stranger, evicted)
	case admin:
		if t.place = p.reserve.Take(from.peerName(), share.Ordinary, evicted); t.place != nil {
			break
		}
		fallthrough
	case user:
		t.place = p.places.Take(from.peerName(), share.Ordinary, evicted)
	}
	return t.place != nil
}

// lateLocked reports whether ctx's deadline comes before the estimated end of a hash that
// begins after a wait. The parameter others is the number of other turns in the pool. A turn
// alone in the pool is never late: a useless hash then delays no other caller, and corrects an
// average that has become too high.
func (p *Pool) lateLocked(ctx context.Context, wait time.Duration, others int) bool {
	deadline, ok := ctx.Deadline()
	return ok && others > 0 && time.Until(deadline) < wait+p.averageLocked()
}

// waitLocked estimates the time until the next turn of a peer begins a hash.
func (p *Pool) waitLocked(from *peer) time.Duration {
	ahead := p.running
	for _, other := range p.order { // each peer gets a slot before any peer gets a second slot
		ahead += min(len(other.turns), len(from.turns)+1)
	}
	return time.Duration(max(0, ahead-p.parallel+1)) * p.averageLocked() / time.Duration(max(1, p.parallel))
}

// leaveQueueLocked releases the turn's place in the queue, and sets the turn's state.
func (t *Turn) leaveQueueLocked(to state) {
	i := slices.Index(t.peer.turns, t)
	t.peer.turns = slices.Delete(t.peer.turns, i, i+1)
	t.pool.waiting--
	t.place.Release()
	t.state = to
	close(t.settled)
}

// Wait waits until the turn has a slot, the right to run a hash. If the turn has a slot
// already, Wait only checks the deadline. The first hash of the turn calls Wait by itself.
//
// Errors: [ErrOverloaded] if the turn has lost its place, or if ctx's deadline comes before
// the end of a hash; ctx.Err() if ctx ends.
func (t *Turn) Wait(ctx context.Context) error {
	if !t.waited {
		t.waited = true
		_, waiting := spans.Start(ctx, "password.wait")
		defer waiting.End()
	}
	inTime, stop := t.getReady(ctx)
	defer stop()
	select {
	case <-t.settled:
	case <-inTime.Done():
	}
	p := t.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case t.state == ended:
		return errEnded
	case t.state != running || p.lateLocked(ctx, 0, p.waiting+p.running-1):
		p.refused.Add(1)
		return ErrOverloaded
	}
	return nil
}

// getReady marks the turn as ready to run a hash, gives free slots to turns that are ready, and
// returns a context that ends when a hash can no longer end before ctx's deadline. By this
// context, Wait returns ErrOverloaded before ctx's deadline, and the client gets an answer with
// the time to wait.
func (t *Turn) getReady(ctx context.Context) (context.Context, context.CancelFunc) {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	if t.ready.IsZero() {
		t.ready = time.Now()
	}
	t.pool.grantLocked()
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(ctx, deadline.Add(-t.pool.averageLocked()))
	}
	return ctx, func() {}
}

// grantLocked gives the free slots (the rights to run a hash) to turns that are ready: one to
// each peer, in the order of the peers. A peer that got a slot goes to the end of the order.
func (p *Pool) grantLocked() {
	for p.running < p.parallel {
		turn := p.nextLocked()
		if turn == nil {
			return
		}
		turn.leaveQueueLocked(running)
		p.waits.Add(time.Since(turn.ready))
		turn.peer.running++
		p.running++
		i := slices.Index(p.order, turn.peer)
		p.order = append(slices.Delete(p.order, i, i+1), turn.peer)
	}
}

// nextLocked returns the turn that runs the next hash; nil if no turn is ready.
func (p *Pool) nextLocked() *Turn {
	for _, peer := range p.order {
		if peer.caller.kind != stranger && peer.running >= maxHashesOfUser {
			continue
		}
		for _, turn := range peer.turns {
			if !turn.ready.IsZero() {
				return turn
			}
		}
	}
	return nil
}

// End ends the turn: the pool serves another caller instead. Later calls of End do nothing.
func (t *Turn) End() {
	p := t.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	switch t.state {
	case waiting:
		t.leaveQueueLocked(ended)
	case running:
		t.peer.running--
		p.running--
		p.grantLocked()
	}
	t.state = ended
	t.peer.forgetLocked(p)
}

// forgetLocked removes a peer from the pool if the peer has no turn in the pool.
func (from *peer) forgetLocked(p *Pool) {
	if len(from.turns)+from.running == 0 && p.peers[from.caller] == from {
		delete(p.peers, from.caller)
		i := slices.Index(p.order, from)
		p.order = slices.Delete(p.order, i, i+1)
	}
}
