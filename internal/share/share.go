// Package share divides a bounded number of places among peers: connections, requests,
// streams of watchers, or waiting logins. A peer is a client network, or a client
// certificate; see [caller.Source.Network].
//
// Each peer has a share of the places. While places are free, a peer may hold more than
// the share, up to a bound for each peer. When no place is free, a newcomer gets the place
// of the peer that holds most, if that peer holds at least two more than the newcomer. So
// the first peers to come cannot keep the others out, and two peers never take places from
// each other in turn.
package share

import (
	"container/heap"
	"sync"
)

// Pool is a number of places. A Pool is safe for concurrent use.
type Pool struct {
	places  int
	perPeer int

	mu    sync.Mutex // guards the fields below
	taken int
	peers map[string]*peer // only peers that hold a place
	most  byHeld           // the same peers; the first holds most
}

// NewPool returns a pool in which all places are free. places bounds the places held at a
// time, and perPeer bounds those of one peer.
func NewPool(places, perPeer int) *Pool {
	return &Pool{places: places, perPeer: perPeer, peers: map[string]*peer{}}
}

// Place is a place of a pool, held by one peer. A Place is safe for concurrent use.
type Place struct {
	pool    *Pool
	peer    *peer // nil after the place was given back or taken away; pool.mu guards it
	index   int   // in peer.held; pool.mu guards it
	evicted func()
}

// peer holds the places of one peer. Pool.mu guards it.
type peer struct {
	name  string
	held  []*Place
	index int // in Pool.most
}

// Take takes a place for a peer. Take returns nil if the peer holds as many places as a
// peer may hold, or if no place is free and no other peer holds at least two places more.
//
// If the pool takes the place away for another peer, the pool calls evicted once, in the
// goroutine of that other peer's Take. evicted must return soon. The place counts as free
// from the moment of the call, so evicted must end what the place stands for.
func (p *Pool) Take(name string, evicted func()) *Place {
	place, victim := p.take(name, evicted)
	if victim != nil {
		victim.evicted()
	}
	return place
}

// take takes a place, and returns the place that another peer loses by it, if any.
func (p *Pool) take(name string, evicted func()) (place, victim *Place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := p.peers[name]
	if from == nil {
		from = &peer{name: name}
	}
	if len(from.held) >= p.perPeer || p.places <= 0 {
		return nil, nil
	}
	if p.taken == p.places {
		heaviest := p.most[0]
		if len(heaviest.held) < len(from.held)+2 {
			return nil, nil
		}
		victim = heaviest.held[len(heaviest.held)-1]
		p.removeLocked(victim)
	}
	place = &Place{pool: p, peer: from, index: len(from.held), evicted: evicted}
	from.held = append(from.held, place)
	p.taken++
	if len(from.held) == 1 {
		p.peers[name] = from
		heap.Push(&p.most, from)
	} else {
		heap.Fix(&p.most, from.index)
	}
	return place, victim
}

// Release gives the place back. Release does nothing if the place was given back or taken
// away before.
func (pl *Place) Release() {
	pl.pool.mu.Lock()
	defer pl.pool.mu.Unlock()
	if pl.peer != nil {
		pl.pool.removeLocked(pl)
	}
}

// removeLocked frees a place. The last place of the peer moves to the index of the freed
// place.
func (p *Pool) removeLocked(pl *Place) {
	from, last := pl.peer, len(pl.peer.held)-1
	from.held[pl.index] = from.held[last]
	from.held[pl.index].index = pl.index
	from.held[last] = nil
	from.held = from.held[:last]
	pl.peer = nil
	p.taken--
	if last == 0 {
		delete(p.peers, from.name)
		heap.Remove(&p.most, from.index)
	} else {
		heap.Fix(&p.most, from.index)
	}
}

// Held returns the number of places held by all peers.
func (p *Pool) Held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// byHeld is a heap (container/heap) of peers. The peer with most places comes first.
type byHeld []*peer

func (h byHeld) Len() int           { return len(h) }
func (h byHeld) Less(i, j int) bool { return len(h[i].held) > len(h[j].held) }
func (h byHeld) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *byHeld) Push(x any) {
	x.(*peer).index = len(*h)
	*h = append(*h, x.(*peer))
}
func (h *byHeld) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return x
}
