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
// A tie: all peers hold the same, and there are more peers than places. Then known peers
// ([Known]) keep their places, and the others draw lots: every peer draws a random number
// for ten seconds, and a peer with a greater number gets the place of the peer with the
// smallest. So each of n peers gets one of m places with a chance of m in n, however often
// a peer asks, and whichever peer comes first.
//
// The owner of an IPv6 network commonly has 65,536 peers: the networks of 64 bits in one
// site, a network of 48 bits. So the sites of peers share the places first, and the peers of
// a site share what the site has.
//
// A place may be taken for a stranger: a client that has shown the server nothing, such as
// a certificate or a proof of an earlier visit. A stranger's place counts as two, so the
// peers of strangers give way first. Within a peer, the strangers give way first, and the
// newest of them before the older ones. A tie takes no place that is not a stranger's from
// a peer, to give the place to a stranger.
//
// [Turns] bounds the calls of one user, or of one session, that run at a time.
package share

import (
	"container/heap"
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
	keeps   bool   // ordinary places are never taken away
	known   *Known // nil: no peer is known
	draw    func(round int64, name string) uint64

	mu    sync.Mutex // guards the fields below
	taken int
	round int64            // of the lots
	peers map[string]*peer // only peers that hold a place
	sites map[string]*site // only sites of these peers
	first order[*site]     // the same sites; the first gives way first
}

// NewPool returns a pool in which all places are free. places bounds the places held at a
// time, and perPeer bounds those of one peer.
func NewPool(places, perPeer int) *Pool {
	return &Pool{places: places, perPeer: perPeer, draw: newDraw(), peers: map[string]*peer{}, sites: map[string]*site{}}
}

// OfStrangers returns the pool, which from now on takes away the places of strangers alone.
// Call OfStrangers before the pool is used.
func (p *Pool) OfStrangers() *Pool {
	p.keeps = true
	return p
}

// Knowing returns the pool, in which known peers keep their places at a tie from now on.
// Call Knowing before the pool is used.
func (p *Pool) Knowing(known *Known) *Pool {
	p.known = known
	return p
}

// Place is a place of a pool, held by one peer. A Place is safe for concurrent use.
type Place struct {
	pool          *Pool
	peer          *peer // nil after the place was given back or taken away; pool.mu guards it
	weight        int
	before, after *Place // in a list of the peer; pool.mu guards them
	evicted       func()
}

// Take takes a place for a peer. A nil Pool has no places. If no place is free, Take takes
// away the place of a peer that holds more or has lost a tie, or of a stranger of the same
// peer. Take returns nil if the pool has no such place, or if the peer holds as many places
// as a peer may hold and none of them is a stranger's.
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
	if p == nil || p.places <= 0 {
		return nil, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	from := p.peerLocked(name)
	if from.held() >= p.perPeer || p.taken >= p.places {
		p.drawLocked()
		if victim = p.victimLocked(from, weight, renews); victim == nil {
			return nil, nil
		}
		p.removeLocked(victim)
	}
	place = &Place{pool: p, peer: from, weight: weight, evicted: evicted}
	from.list(weight).pushBack(place)
	p.addLocked(from, weight)
	return place, victim
}

// victimLocked returns the place that a peer may take over; nil if there is none.
func (p *Pool) victimLocked(from *peer, weight int, renews bool) *Place {
	if from.held() < p.perPeer {
		if victim := p.othersLocked(from, weight); victim != nil {
			return victim
		}
	}
	switch {
	case from.strangers.length == 0:
		return nil
	case weight == ordinary:
		return from.yields()
	case renews:
		return from.strangers.front
	}
	return nil
}

// othersLocked returns the place of another peer that a peer may take over; nil if there is
// none. The site that gives way first loses a place to another site. Within the peer's own
// site, the peer that gives way first loses a place.
func (p *Pool) othersLocked(from *peer, weight int) *Place {
	for p.noteKnownLocked(p.first[0].peers[0]) {
	}
	heaviest := p.first[0]
	if top := heaviest.peers[0].yields(); heaviest != from.site &&
		p.mayTake(top, heaviest.standing(), weight, from.site.standingOf(from, weight)) {
		return top
	}
	if p.sites[from.site.name] != from.site {
		return nil // the site holds no place
	}
	for p.noteKnownLocked(from.site.peers[0]) {
	}
	first := from.site.peers[0]
	switch top := first.yields(); {
	case first == from:
	case top.weight < weight && !p.outweighsLocked(from.site): // the site would hold more than its share
	case p.mayTake(top, first.standing(), weight, from.standingOf(weight)):
		return top
	}
	return nil
}

// mayTake reports whether a newcomer may take over a place. loser is the present standing
// of the place's holder, and winner is the standing that the newcomer would have.
func (p *Pool) mayTake(place *Place, loser standing, weight int, winner standing) bool {
	switch {
	case p.keeps && place.weight != stranger:
		return false
	case loser.weight != winner.weight:
		return loser.weight > winner.weight
	}
	return place.weight >= weight && loser.losesTie(winner)
}

// SetStranger says that the place counts from now on as a stranger's, the newest of its
// peer, or as an ordinary one. SetStranger does nothing, and returns false, if the place was
// given back or taken away before.
func (pl *Place) SetStranger(is bool) bool {
	pl.pool.mu.Lock()
	defer pl.pool.mu.Unlock()
	weight := ordinary
	if is {
		weight = stranger
	}
	if pl.peer == nil || pl.weight == weight {
		return pl.peer != nil
	}
	from := pl.peer
	from.list(pl.weight).remove(pl)
	from.site.weight += weight - pl.weight
	pl.weight = weight
	from.list(weight).pushBack(pl)
	pl.pool.fixLocked(from)
	return true
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

// addLocked counts a place that a peer has taken.
func (p *Pool) addLocked(from *peer, weight int) {
	p.taken++
	from.site.weight += weight
	if from.held() > 1 {
		p.fixLocked(from)
		return
	}
	p.peers[from.name] = from
	heap.Push(&from.site.peers, from)
	if len(from.site.peers) > 1 {
		heap.Fix(&p.first, from.site.index)
		return
	}
	p.sites[from.site.name] = from.site
	heap.Push(&p.first, from.site)
}

// removeLocked frees a place.
func (p *Pool) removeLocked(pl *Place) {
	from := pl.peer
	from.list(pl.weight).remove(pl)
	pl.peer = nil
	p.taken--
	from.site.weight -= pl.weight
	if from.held() > 0 {
		p.fixLocked(from)
		return
	}
	delete(p.peers, from.name)
	heap.Remove(&from.site.peers, from.index)
	if len(from.site.peers) > 0 {
		heap.Fix(&p.first, from.site.index)
		return
	}
	delete(p.sites, from.site.name)
	heap.Remove(&p.first, from.site.index)
}

// Held returns the number of places held by all peers.
func (p *Pool) Held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}
