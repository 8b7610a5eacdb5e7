package password

import (
	"context"
	"slices"
	"time"
)

// Caller says which peer asks for a hash. A peer is a network of strangers, or a signed-in
// user. Equal Callers are one peer. The zero Caller is Stranger("").
type Caller struct {
	kind kind
	name string
}

type kind int

const (
	stranger kind = iota
	user
	admin
)

// Stranger returns a caller without a verified access token. All strangers of a network
// are one peer.
func Stranger(network string) Caller { return Caller{stranger, network} }

// User returns a signed-in user, a peer of its own: so users can change passwords during a
// flood of logins from their network. A user has a slot for at most two turns at a time, on
// a machine of any size.
func User(id string) Caller { return Caller{user, id} }

// Admin returns a signed-in user that acts with the role admin. An Admin is like a User,
// and may use the last places of the queue, which are for Admin callers alone: so an admin
// can help during a flood of logins.
func Admin(id string) Caller { return Caller{admin, id} }

const maxHashesOfUser = 2 // at a time

// peer holds the turns of one peer. Pool.mu guards it.
type peer struct {
	caller  Caller
	turns   []*Turn // without a slot, in order of arrival
	running int     // turns with a slot
}

// Turn is one caller's use of a [Pool]: first a place in the queue, and from the first
// hash on a slot. The turn keeps the slot until End, so a caller that needs a second hash
// does not wait again. Between two hashes of a turn, do nothing that may take long.
//
// A Turn is for one goroutine. Call End as soon as the last hash has been made.
type Turn struct {
	pool *Pool
	peer *peer

	// Pool.mu guards the fields below.
	state   state
	ready   bool          // the caller waits for the slot
	settled chan struct{} // closed when the turn gets a slot or loses its place
}

type state int

const (
	waiting   state = iota // has a place in the queue
	running                // has a slot
	displaced              // has lost its place to another peer
	ended
)

// Enter takes a place in the queue. Enter does not wait. If the database is needed before
// the hash, call Enter first: then a flood of logins causes a bounded number of reads. A
// turn that is not ready yet holds no other turn up.
//
// Errors: [ErrOverloaded] if the queue has no place for the caller, or if ctx's deadline
// comes before the estimated end of the hash; ctx.Err() if ctx has ended.
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
	if p.lateLocked(ctx, p.waitLocked(from), p.waiting+p.running) || !p.makeRoomLocked(from) {
		return nil, ErrOverloaded
	}
	if p.peers[caller] == nil {
		p.peers[caller] = from
		p.order = append(p.order, from)
	}
	t := &Turn{pool: p, peer: from, settled: make(chan struct{})}
	from.turns = append(from.turns, t)
	p.countLocked(from, 1)
	return t, nil
}

// countLocked adds n to the number of turns without a slot.
func (p *Pool) countLocked(from *peer, n int) {
	p.waiting += n
	if from.caller.kind == admin {
		p.admins += n
	}
}

// lateLocked reports whether ctx's deadline comes before the estimated end of a hash that
// begins after a wait. others is the number of other turns. A turn alone in the pool is
// never late: a useless hash then delays no other caller, and corrects an average that has
// become too high.
func (p *Pool) lateLocked(ctx context.Context, wait time.Duration, others int) bool {
	deadline, ok := ctx.Deadline()
	return ok && others > 0 && time.Until(deadline) < wait+p.averageLocked()
}

// waitLocked estimates the time until the next turn of a peer gets a slot.
func (p *Pool) waitLocked(from *peer) time.Duration {
	ahead := p.running
	for _, other := range p.order { // each peer gets a slot before a peer gets the next one
		ahead += min(len(other.turns), len(from.turns)+1)
	}
	return time.Duration(max(0, ahead-p.parallel+1)) * p.averageLocked() / time.Duration(max(1, p.parallel))
}

// makeRoomLocked reports whether the queue has a place for a turn of a peer. If the queue
// is full, makeRoomLocked first takes the place of the newest turn of the heaviest peer, if
// that peer has at least two turns more.
func (p *Pool) makeRoomLocked(from *peer) bool {
	isAdmin := from.caller.kind == admin
	if p.waiting < p.places && (isAdmin || p.waiting-p.admins < p.places-p.reserved) {
		return true
	}
	var heaviest *peer
	for _, other := range p.order {
		if other.caller.kind == admin && !isAdmin && p.admins <= p.reserved {
			continue // the turns of admins are in reserved places
		}
		if heaviest == nil || len(other.turns) > len(heaviest.turns) {
			heaviest = other
		}
	}
	if heaviest == nil || len(heaviest.turns) < len(from.turns)+2 {
		return false
	}
	heaviest.turns[len(heaviest.turns)-1].loseLocked(displaced)
	return true
}

// loseLocked takes a turn's place in the queue away.
func (t *Turn) loseLocked(to state) {
	i := slices.Index(t.peer.turns, t)
	t.peer.turns = slices.Delete(t.peer.turns, i, i+1)
	t.pool.countLocked(t.peer, -1)
	t.state = to
	close(t.settled)
}

// Wait waits until the turn has a slot. If the turn has a slot, Wait checks the deadline
// alone. The first hash of the turn calls Wait by itself.
//
// Errors: [ErrOverloaded] if the turn has lost its place, or if ctx's deadline comes before
// the end of a hash; ctx.Err() if ctx ends.
func (t *Turn) Wait(ctx context.Context) error {
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
		return ErrOverloaded
	}
	return nil
}

// getReady lets the turn take part in the distribution of slots, and returns a context that
// ends when a hash can no longer end before ctx's deadline. A caller that still waits at
// that time gets a refusal with the time to wait, and no end of the call without an answer.
func (t *Turn) getReady(ctx context.Context) (context.Context, context.CancelFunc) {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	t.ready = true
	t.pool.grantLocked()
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(ctx, deadline.Add(-t.pool.averageLocked()))
	}
	return ctx, func() {}
}

// grantLocked gives the free slots to turns that are ready: one for each peer, in the order
// of the peers. A peer that got a slot goes to the end of the order.
func (p *Pool) grantLocked() {
	for p.running < p.parallel {
		turn := p.nextLocked()
		if turn == nil {
			return
		}
		turn.loseLocked(running)
		turn.peer.running++
		p.running++
		i := slices.Index(p.order, turn.peer)
		p.order = append(slices.Delete(p.order, i, i+1), turn.peer)
	}
}

// nextLocked returns the turn for the next slot; nil if no turn is ready.
func (p *Pool) nextLocked() *Turn {
	for _, peer := range p.order {
		if peer.caller.kind != stranger && peer.running >= maxHashesOfUser {
			continue
		}
		for _, turn := range peer.turns {
			if turn.ready {
				return turn
			}
		}
	}
	return nil
}

// End gives the turn's place or slot back. Later calls of End do nothing.
func (t *Turn) End() {
	p := t.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	switch t.state {
	case waiting:
		t.loseLocked(ended)
	case running:
		t.peer.running--
		p.running--
		p.grantLocked()
	}
	t.state = ended
	if len(t.peer.turns)+t.peer.running == 0 && p.peers[t.peer.caller] == t.peer {
		delete(p.peers, t.peer.caller)
		i := slices.Index(p.order, t.peer)
		p.order = slices.Delete(p.order, i, i+1)
	}
}
