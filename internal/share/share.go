// Package share divides a bounded number of things, called places, among peers: connections,
// requests, streams of the trust bundle, or waiting logins. A peer is a client network, or a
// client certificate; see [Network].
//
// While places are free, a peer can hold up to [Limits].PerPeer places. When all places are
// taken, a newcomer gets the place of the peer that holds most, if that peer holds more than
// the newcomer's peer would hold. So peers that come late get places too, and two peers never
// take a place from each other again and again.
//
// If all peers hold the same number of places, and more peers want a place than the pool has
// places (a tie), known peers ([Known]) keep their places, and lots decide among the unknown
// peers: the pool draws a random number for each peer every ten seconds, and a peer with a
// greater number gets the place of the peer with the smallest number. So each of n peers gets
// one of m places with a chance of m in n, however often a peer tries, and in whatever order
// the peers come.
//
// The owner of an IPv6 network commonly has 65,536 peers: the networks of 64 bits in one site,
// a network of 48 bits. So the pool divides the places among the sites first, and then the
// places of each site among the peers of the site.
//
// A place can be taken for a stranger: a client from which the server has seen neither a
// certificate nor a proof of an earlier visit. A stranger's place counts as two places, so the
// peers of strangers lose places first. Within a peer, the strangers lose their places first,
// the newest stranger before the older strangers. If all peers hold equally many places, a stranger
// gets only places of other strangers.
//
// [Turns] bounds the calls with the same key that run at a time. A key names a user, a session or a
// client network.
package share

import "sync"

// Kind says for what kind of client a place is taken.
type Kind int

const (
	// Ordinary stands for a client that the server serves before a Stranger, such as a client with
	// a certificate.
	Ordinary Kind = iota
	// Stranger stands for a client that has shown neither a certificate nor a proof of an
	// earlier visit. When all places are taken, a Stranger gets a place only from another peer.
	Stranger
	// Renewing stands for a stranger that can also get a place of its own peer: if no other
	// peer loses a place, the stranger that has held a place of this peer for the longest time
	// loses that place.
	Renewing
)

// A place has one of these weights. The peer with the greatest sum of weights loses a place first.
const (
	ordinary = 1
	stranger = 2
)

func (k Kind) weight() int {
	if k == Ordinary {
		return ordinary
	}
	return stranger
}

// Limits says how many places a [Pool] has, how many of them one peer can hold, and which
// clients keep their places.
type Limits struct {
	Places  int // the number of places of the pool
	PerPeer int // the number of places that one peer can hold at a time

	// KeepOrdinary makes the pool take away only the places of strangers. Ordinary places stay
	// until [Place.Release].
	KeepOrdinary bool
	// Known holds the peers that keep their places when all peers hold equally many places. A nil
	// Known holds no peer.
	Known *Known
}

// Pool holds a bounded number of places, and divides the places among peers. A Pool is safe for
// concurrent use.
type Pool struct {
	Limits
	draw func(round int64, name string) uint64

	mu    sync.Mutex // guards the fields below
	taken int
	stats Stats             // only Refused and Evicted are set
	round int64             // the round in which the lots were drawn
	peers map[string]*group // only peers that hold a place
	sites map[string]*group // only sites of peers that hold a place
	all   group             // the group that has all sites as members
}

// NewPool returns a pool in which all places are free.
func NewPool(limits Limits) *Pool {
	return &Pool{Limits: limits, draw: newDraw(), peers: map[string]*group{}, sites: map[string]*group{}}
}

// Place stands for one place of a [Pool], such as one connection, held by one peer. A Place is
// safe for concurrent use.
type Place struct {
	pool          *Pool
	peer          *group // nil once the place is given back or taken away; pool.mu guards peer
	weight        int
	before, after *Place // the neighbors in a list of the peer; pool.mu guards both links
	evicted       func()
}

// Take takes a place for a client of a peer. If all places are taken, Take takes away the place
// of another peer that holds more or has lost a tie, or the place of a stranger of the same
// peer. Take returns nil if the pool has no such place, and also if the peer holds PerPeer
// ordinary places. A nil Pool has no places.
//
// If the pool takes the place away for another client, the pool calls evicted once, in the
// goroutine of the other client's Take. evicted must return soon. The other client has the
// place from that moment, so evicted must end what the place stands for, such as a connection.
func (p *Pool) Take(peer string, kind Kind, evicted func()) *Place {
	if p == nil || p.Places <= 0 {
		return nil
	}
	p.mu.Lock()
	place, victim := p.takeLocked(peer, kind, evicted)
	if place == nil {
		p.stats.Refused++
	}
	if victim != nil {
		p.stats.Evicted++
	}
	p.mu.Unlock()
	if victim != nil {
		victim.evicted()
	}
	return place
}

// takeLocked takes a place of the pool for a client of the peer with the given name. victim is
// the place that another client loses by the call; nil if a place was free. The caller calls
// victim.evicted after unlocking p.mu.
func (p *Pool) takeLocked(name string, kind Kind, evicted func()) (place, victim *Place) {
	from := p.peerLocked(name)
	if from.held() >= p.PerPeer || p.taken >= p.Places {
		p.drawLocked()
		if victim = p.victimLocked(from, kind); victim == nil {
			return nil, nil
		}
		victim.leaveLocked()
	}
	place = &Place{pool: p, weight: kind.weight(), evicted: evicted}
	place.enterLocked(from)
	return place, victim
}

// victimLocked returns the place that a peer is allowed to take over; nil if the pool has no
// such place.
func (p *Pool) victimLocked(from *group, kind Kind) *Place {
	if from.held() < p.PerPeer {
		if victim := p.othersLocked(from, kind.weight()); victim != nil {
			return victim
		}
	}
	switch {
	case kind == Ordinary:
		return from.strangers.back
	case kind == Renewing:
		return from.strangers.front
	}
	return nil
}

// othersLocked returns the place of another peer that a peer is allowed to take over; nil if
// the pool has no such place. A peer of another site first takes a place of the site that is
// first in p.all.members. Otherwise the peer takes a place of the first peer in its own site.
func (p *Pool) othersLocked(from *group, weight int) *Place {
	for p.noteKnownLocked(p.all.first()) {
	}
	heaviest := p.all.members[0]
	if heaviest != from.parent && p.mayTake(heaviest, weight, from.parent.with(weight, from)) {
		return heaviest.first().yields()
	}
	site := from.parent
	if site.weight == 0 {
		return nil
	}
	for p.noteKnownLocked(site.first()) {
	}
	first := site.first()
	if first == from || !p.mayTake(first, weight, from.with(weight, from)) {
		return nil
	}
	if first.yields().weight < weight && !p.outweighsLocked(site) {
		return nil // the site's weight would grow, beyond the site's part of the pool
	}
	return first.yields()
}

// mayTake reports whether a newcomer is allowed to take over a place of a group. The parameter
// winner holds the standing that the newcomer's group would have with the place.
func (p *Pool) mayTake(of *group, weight int, winner standing) bool {
	place, loser := of.first().yields(), of.standing()
	switch {
	case p.KeepOrdinary && place.weight == ordinary:
		return false
	case loser.weight != winner.weight:
		return loser.weight > winner.weight
	}
	return place.weight >= weight && loser.losesTie(winner)
}

// SetStranger makes the place a stranger's place, the newest of the peer, or makes the place
// ordinary. SetStranger does nothing, and returns false, if the place was given back or taken
// away before.
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
	by := weight - pl.weight
	pl.peer.list(pl.weight).remove(pl)
	pl.peer.list(weight).pushBack(pl)
	pl.weight = weight
	pl.peer.weighLocked(by)
	return true
}

// Release gives the place back. Release does nothing if the place was given back or taken
// away before.
func (pl *Place) Release() {
	pl.pool.mu.Lock()
	defer pl.pool.mu.Unlock()
	if pl.peer != nil {
		pl.leaveLocked()
	}
}

// enterLocked adds a new place to the places of a peer.
func (pl *Place) enterLocked(peer *group) {
	pl.peer = peer
	pl.pool.taken++
	peer.list(pl.weight).pushBack(pl)
	peer.weighLocked(pl.weight)
}

// leaveLocked removes the place from the places of its peer, so that another peer can take a
// place.
func (pl *Place) leaveLocked() {
	pl.peer.list(pl.weight).remove(pl)
	pl.peer.weighLocked(-pl.weight)
	pl.peer = nil
	pl.pool.taken--
}

// Held returns the number of places held by all peers.
func (p *Pool) Held() int { return p.Stats().Held }

// Stats holds the numbers of a pool, for metrics.
type Stats struct {
	Held, Places int
	Refused      uint64 // the number of clients that got no place
	Evicted      uint64 // the number of places taken away for other clients
}

// Stats returns the numbers of the pool. A nil Pool has the zero Stats.
func (p *Pool) Stats() Stats {
	if p == nil {
		return Stats{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := p.stats
	stats.Held, stats.Places = p.taken, p.Places
	return stats
}
