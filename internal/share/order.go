package share

import (
	"container/heap"
	"hash/maphash"
	"net/netip"
	"time"
)

// roundLength is how long the lots of a draw hold. A login that waits for its hash keeps
// its place for three seconds, and an honest client that has lost tries again soon.
const roundLength = 10 * time.Second

// site bits: see [siteOf].
const (
	peerBits = 64
	siteBits = 48
)

// site holds the peers of one owner; see [siteOf]. Pool.mu guards a site.
type site struct {
	name   string
	pool   *Pool
	peers  order[*peer] // that hold a place; the first gives way first
	weight int          // of all peers
	lot    uint64
	index  int // in Pool.first
}

// peer holds the places of one peer, the newest at the end. Pool.mu guards a peer.
type peer struct {
	name      string
	site      *site
	strangers places
	others    places
	known     bool
	lot       uint64
	index     int // in site.peers
}

// siteOf returns the site of a peer: the /48 of an IPv6 network of 64 bits. Any other peer
// is a site of its own. An IPv4 /24 has 256 peers at most, often of several owners.
func siteOf(name string) string {
	network, err := netip.ParsePrefix(name)
	if err != nil || !network.Addr().Is6() || network.Bits() != peerBits {
		return name
	}
	return netip.PrefixFrom(network.Addr(), siteBits).Masked().String()
}

// newDraw returns a function that draws the lot of a name in a round. No client can predict
// the lots.
func newDraw() func(round int64, name string) uint64 {
	seed := maphash.MakeSeed()
	type ticket struct {
		round int64
		name  string
	}
	return func(round int64, name string) uint64 { return maphash.Comparable(seed, ticket{round, name}) }
}

// peerLocked returns the peer with a name. A peer without a place is new, and so may be its
// site.
func (p *Pool) peerLocked(name string) *peer {
	if from := p.peers[name]; from != nil {
		p.noteKnownLocked(from)
		return from
	}
	from := &peer{name: name, known: p.known.Has(name), lot: p.draw(p.round, name)}
	at := siteOf(name)
	if from.site = p.sites[at]; from.site == nil {
		from.site = &site{name: at, pool: p, lot: p.draw(p.round, at)}
	}
	return from
}

// drawLocked draws new lots at the beginning of a round.
func (p *Pool) drawLocked() {
	round := time.Now().UnixNano() / int64(roundLength)
	if round == p.round {
		return
	}
	p.round = round
	for _, s := range p.first {
		s.lot = p.draw(round, s.name)
		for _, from := range s.peers {
			from.known, from.lot = p.known.Has(from.name), p.draw(round, from.name)
		}
		heap.Init(&s.peers)
	}
	heap.Init(&p.first)
}

// noteKnownLocked notes whether a peer with a place has become known since the draw, and
// reports whether it has.
func (p *Pool) noteKnownLocked(from *peer) bool {
	if from.known || !p.known.Has(from.name) {
		return false
	}
	from.known = true
	p.fixLocked(from)
	return true
}

// outweighsLocked reports whether a site weighs so much more than every other site that two
// more places of a stranger would not even the sites out.
func (p *Pool) outweighsLocked(s *site) bool {
	if p.first[0] != s {
		return false
	}
	for _, other := range p.first[1:min(3, len(p.first))] { // one of the two is the next in a heap
		if s.weight < other.weight+2*stranger {
			return false
		}
	}
	return true
}

// fixLocked restores the order after a change of a peer with a place.
func (p *Pool) fixLocked(from *peer) {
	heap.Fix(&from.site.peers, from.index)
	heap.Fix(&p.first, from.site.index)
}

func (p *peer) held() int   { return p.strangers.length + p.others.length }
func (p *peer) weight() int { return stranger*p.strangers.length + ordinary*p.others.length }

// list returns the peer's places of a weight.
func (p *peer) list(weight int) *places {
	if weight == stranger {
		return &p.strangers
	}
	return &p.others
}

// yields returns the place of the peer that gives way first.
func (p *peer) yields() *Place {
	if p.strangers.length > 0 {
		return p.strangers.back
	}
	return p.others.back
}

// standing decides which of two peers, or of two sites, gives way.
type standing struct {
	stranger bool // the place that gives way first is a stranger's
	weight   int
	known    bool // of the peer that gives way first
	lot      uint64
}

func (p *peer) standing() standing {
	return standing{p.strangers.length > 0, p.weight(), p.known, p.lot}
}

func (s *site) standing() standing {
	first := s.peers[0]
	return standing{first.strangers.length > 0, s.weight, first.known, s.lot}
}

// standingOf returns the standing of the peer with one more place.
func (p *peer) standingOf(weight int) standing {
	return standing{weight: p.weight() + weight, known: p.known, lot: p.lot}
}

// standingOf returns the standing of the site when a peer has one more place.
func (s *site) standingOf(from *peer, weight int) standing {
	return standing{weight: s.weight + weight, known: from.known, lot: s.lot}
}

// losesTie reports whether a, of the same weight as b, gives way to b.
func (a standing) losesTie(b standing) bool {
	if a.known != b.known {
		return b.known
	}
	return a.lot < b.lot
}

// before reports whether a gives way before b. If the pool keeps ordinary places, those with
// a stranger's place come first.
func (a standing) before(b standing, keeps bool) bool {
	switch {
	case keeps && a.stranger != b.stranger:
		return a.stranger
	case a.weight != b.weight:
		return a.weight > b.weight
	case a.stranger != b.stranger:
		return a.stranger
	}
	return a.losesTie(b)
}

// Before and At are exported for [order], since staticcheck takes them for unused otherwise.
func (p *peer) Before(other *peer) bool {
	return p.standing().before(other.standing(), p.site.pool.keeps)
}
func (s *site) Before(other *site) bool { return s.standing().before(other.standing(), s.pool.keeps) }
func (p *peer) At() *int                { return &p.index }
func (s *site) At() *int                { return &s.index }

// order is a heap (container/heap). The element that gives way first comes first.
type order[T interface {
	Before(T) bool
	At() *int
}] []T

func (o order[T]) Len() int           { return len(o) }
func (o order[T]) Less(i, j int) bool { return o[i].Before(o[j]) }
func (o order[T]) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	*o[i].At(), *o[j].At() = i, j
}
func (o *order[T]) Push(x any) {
	element := x.(T)
	*element.At() = len(*o)
	*o = append(*o, element)
}
func (o *order[T]) Pop() any {
	last := len(*o) - 1
	x := (*o)[last]
	var none T
	(*o)[last] = none
	*o = (*o)[:last]
	return x
}
