// Package share divides a bounded number of places among peers: connections, requests,
// streams of watchers, or waiting logins. A peer is a client network, or a client
// certificate; see [caller.Source.Network].
//
// Each peer has a share of the places. While places are free, a peer may hold more than
// the share, up to a bound for each peer. When no place is free, a newcomer gets the place
// of the peer that holds most, if that peer holds more than the newcomer's peer would hold.
// So the first peers to come cannot keep the others out, and two peers never take places
// from each other in turn.
//
// A place may be taken for a stranger: a client that has shown the server nothing, such as
// a certificate or a proof of an earlier visit. A stranger's place counts as two, so the
// peers of strangers give way first. Within a peer, the strangers give way first, and the
// newest of them before the older ones.
package share

import (
	"container/heap"
	"container/list"
	"sync"
)

// The weights of a place. The peer with the greatest sum gives way first.
const (
	ordinary = 1
	stranger = 2
)

// Pool is a number of places. A Pool is safe for concurrent use.
type Pool struct {
	places  int
	perPeer int
	keeps   bool // ordinary places are never taken away

	mu    sync.Mutex // guards the fields below
	taken int
	takes uint64           // the places taken so far
	peers map[string]*peer // only peers that hold a place
	most  byWeight         // the same peers; the first gives way first
}

// NewPool returns a pool in which all places are free. places bounds the places held at a
// time, and perPeer bounds those of one peer.
func NewPool(places, perPeer int) *Pool {
	return &Pool{places: places, perPeer: perPeer, peers: map[string]*peer{}}
}

// OfStrangers returns the pool, which from now on takes away the places of strangers alone.
// Call OfStrangers before the pool is used.
func (p *Pool) OfStrangers() *Pool {
	p.keeps = true
	return p
}

// Place is a place of a pool, held by one peer. A Place is safe for concurrent use.
type Place struct {
	pool    *Pool
	peer    *peer // nil after the place was given back or taken away; pool.mu guards it
	weight  int
	element *list.Element // in a list of the peer; pool.mu guards it
	evicted func()
}

// peer holds the places of one peer, the newest at the end. Pool.mu guards a peer.
type peer struct {
	name      string
	strangers list.List // of *Place
	others    list.List // of *Place
	newest    uint64    // the value of Pool.takes when the peer took its newest place
	index     int       // in Pool.most
}

func (p *peer) held() int   { return p.strangers.Len() + p.others.Len() }
func (p *peer) weight() int { return stranger*p.strangers.Len() + ordinary*p.others.Len() }

// list returns the peer's places of a weight.
func (p *peer) list(weight int) *list.List {
	if weight == stranger {
		return &p.strangers
	}
	return &p.others
}

// yields returns the place of the peer that gives way first.
func (p *peer) yields() *Place {
	if p.strangers.Len() > 0 {
		return p.strangers.Back().Value.(*Place)
	}
	return p.others.Back().Value.(*Place)
}

// Take takes a place for a peer. If no place is free, Take takes away the place of a peer
// that holds more, or of a stranger of the same peer. Take returns nil if the pool has no
// such place, or if the peer holds as many places as a peer may hold and none of them is a
// stranger's.
//
// If the pool takes the place away for another client, the pool calls evicted once, in the
// goroutine of that other client's Take. evicted must return soon. The place counts as free
// from the moment of the call, so evicted must end what the place stands for.
func (p *Pool) Take(name string, evicted func()) *Place {
	return p.takeAndEvict(name, ordinary, false, evicted)
}

// TakeStranger is like [Pool.Take], for a stranger. A stranger never gets the place of
// another client of the same peer.
func (p *Pool) TakeStranger(name string, evicted func()) *Place {
	return p.takeAndEvict(name, stranger, false, evicted)
}

// TakeRenewing is like [Pool.TakeStranger]. But if the peer may hold no more places, the
// peer's stranger with the oldest place gives way: its place was of no use for longest.
func (p *Pool) TakeRenewing(name string, evicted func()) *Place {
	return p.takeAndEvict(name, stranger, true, evicted)
}

func (p *Pool) takeAndEvict(name string, weight int, renews bool, evicted func()) *Place {
	place, victim := p.take(name, weight, renews, evicted)
	if victim != nil {
		victim.evicted()
	}
	return place
}

// take takes a place, and returns the place that another client loses by it, if any.
func (p *Pool) take(name string, weight int, renews bool, evicted func()) (place, victim *Place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := p.peers[name]
	if from == nil {
		from = &peer{name: name}
	}
	victim, ok := p.roomLocked(from, weight, renews)
	if !ok {
		return nil, nil
	}
	if victim != nil {
		p.removeLocked(victim)
	}
	place = &Place{pool: p, peer: from, weight: weight, evicted: evicted}
	place.element = from.list(weight).PushBack(place)
	p.taken++
	p.takes++
	from.newest = p.takes
	if from.held() == 1 {
		p.peers[name] = from
		heap.Push(&p.most, from)
	} else {
		heap.Fix(&p.most, from.index)
	}
	return place, victim
}

// roomLocked reports whether a peer may take a place, and returns the place that must be
// taken away first; nil if a place is free.
func (p *Pool) roomLocked(from *peer, weight int, renews bool) (victim *Place, ok bool) {
	below := from.held() < p.perPeer
	switch {
	case p.places <= 0:
		return nil, false
	case below && p.taken < p.places:
		return nil, true
	case below && p.most[0].weight() > from.weight()+weight && (!p.keeps || p.most[0].strangers.Len() > 0):
		return p.most[0].yields(), true
	case weight == ordinary && from.strangers.Len() > 0:
		return from.yields(), true
	case renews && from.strangers.Len() > 0:
		return from.strangers.Front().Value.(*Place), true
	}
	return nil, false
}

// SetStranger says that the place counts from now on as a stranger's, the newest of its
// peer, or as an ordinary one. SetStranger does nothing if the place was given back or taken
// away before.
func (pl *Place) SetStranger(is bool) {
	pl.pool.mu.Lock()
	defer pl.pool.mu.Unlock()
	weight := ordinary
	if is {
		weight = stranger
	}
	if pl.peer == nil || pl.weight == weight {
		return
	}
	pl.peer.list(pl.weight).Remove(pl.element)
	pl.weight = weight
	pl.element = pl.peer.list(weight).PushBack(pl)
	heap.Fix(&pl.pool.most, pl.peer.index)
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

// removeLocked frees a place.
func (p *Pool) removeLocked(pl *Place) {
	from := pl.peer
	from.list(pl.weight).Remove(pl.element)
	pl.peer = nil
	p.taken--
	if from.held() == 0 {
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

// byWeight is a heap (container/heap) of peers. The peer with the greatest weight comes
// first. Of peers with the same weight, the one that took a place last comes first: a peer
// that was there before a flood keeps its place.
type byWeight []*peer

func (h byWeight) Len() int { return len(h) }
func (h byWeight) Less(i, j int) bool {
	if a, b := h[i].weight(), h[j].weight(); a != b {
		return a > b
	}
	return h[i].newest > h[j].newest
}
func (h byWeight) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *byWeight) Push(x any) {
	x.(*peer).index = len(*h)
	*h = append(*h, x.(*peer))
}
func (h *byWeight) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return x
}
