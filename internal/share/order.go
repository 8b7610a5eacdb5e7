package share

import (
	"container/heap"
	"hash/maphash"
	"net/netip"
	"strings"
	"time"
)

// roundLength is the time between two draws of lots, which decide between peers that hold
// equally many places. Ten seconds are longer than a login waits in the queue for its hash
// (three seconds), and an honest client that has lost a draw tries again soon.
const roundLength = 10 * time.Second

const (
	peerBits = 64 // the prefix length of an IPv6 network that is a peer
	siteBits = 48 // the prefix length of the site of an IPv6 peer
)

// Network returns the name of the peer to which an address belongs: the IPv4 address, or the /64
// of the IPv6 address, since an IPv6 host can use any of the 2^64 addresses of its /64. For the
// loopback address of IPv6, Network returns the address itself. Network ignores the zone of an
// address.
func Network(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() && !addr.IsLoopback() {
		return netip.PrefixFrom(addr, peerBits).Masked().String()
	}
	return addr.String()
}

// group stands for a peer, for the peers of one site (see [siteOf]), or for all sites. Pool.mu
// guards a group. While a group holds a place of the pool, the group is in the heap of its parent
// (parent.members).
type group struct {
	pool    *Pool
	name    string
	parent  *group            // of a peer: its site; of a site: the group of all sites
	named   map[string]*group // members by name: the peers or sites that hold a place of the pool
	members order             // the groups with this group as parent; nil for a peer
	index   int               // the index of this group in parent.members

	strangers, others places // of a peer: places taken as a [Stranger], and places taken otherwise
	known             bool   // true if the group is a peer from which the server has a proof; see [Known]
	weight            int    // the sum of the weights of all places of the group
	lot               uint64 // the random number that the group has drawn in this round
}

// siteOf returns the site of a peer: the /48 of an IPv6 network of 64 bits. Every other kind of
// peer makes up a site alone. An IPv4 /24 makes up no site: the network has 256 peers at most,
// often of several owners.
func siteOf(name string) string {
	if !strings.Contains(name, "/") { // an IPv4 address: without this line, each call of an IPv4 client would pay for a parse that fails
		return name
	}
	network, err := netip.ParsePrefix(name)
	if err != nil || !network.Addr().Is6() || network.Bits() != peerBits {
		return name
	}
	return netip.PrefixFrom(network.Addr(), siteBits).Masked().String()
}

// newDraw returns a function that draws the lot (a random number) of the peer or site with a
// name, for one round of ten seconds. No client can predict the lots.
func newDraw() func(round int64, name string) uint64 {
	seed := maphash.MakeSeed()
	type ticket struct {
		round int64
		name  string
	}
	return func(round int64, name string) uint64 { return maphash.Comparable(seed, ticket{round, name}) }
}

// peerLocked returns the group of the peer with a name. If the peer holds no place yet,
// peerLocked makes a group for the peer, and for the site of the peer if necessary.
func (p *Pool) peerLocked(name string) *group {
	if from := p.peers[name]; from != nil {
		p.noteKnownLocked(from)
		return from
	}
	at := siteOf(name)
	site := p.sites[at]
	if site == nil {
		site = &group{pool: p, name: at, parent: &p.all, named: p.sites, lot: p.draw(p.round, at)}
	}
	return &group{pool: p, name: name, parent: site, named: p.peers, known: p.Known.Has(name), lot: p.draw(p.round, name)}
}

// drawLocked draws new lots for all peers and sites if roundLength has passed since the last
// draw, and looks up which peers are in Pool.Known now.
func (p *Pool) drawLocked() {
	round := time.Now().UnixNano() / int64(roundLength)
	if round == p.round {
		return
	}
	p.round = round
	for _, site := range p.all.members {
		site.lot = p.draw(round, site.name)
		for _, from := range site.members {
			from.known, from.lot = p.Known.Has(from.name), p.draw(round, from.name)
		}
		heap.Init(&site.members)
	}
	heap.Init(&p.all.members)
}

// noteKnownLocked updates the order of the peers if a peer with a place has become known since
// the last draw of lots. noteKnownLocked returns true if the order has changed.
func (p *Pool) noteKnownLocked(from *group) bool {
	if from.known || !p.Known.Has(from.name) {
		return false
	}
	from.known = true
	from.weighLocked(0)
	return true
}

// outweighsLocked reports whether a site weighs more than every other site by at least the
// weight of two strangers' places.
func (p *Pool) outweighsLocked(site *group) bool {
	sites := p.all.members
	if sites[0] != site {
		return false
	}
	for _, other := range sites[1:min(3, len(sites))] { // a heap has the second greatest element at index 1 or 2
		if site.weight < other.weight+2*stranger {
			return false
		}
	}
	return true
}

// weighLocked adds `by` to the weight of a group and of the group's parents, and restores the
// order of the groups in each heap. A group with the weight 0 leaves the heap of its parent.
func (g *group) weighLocked(by int) {
	for ; g.parent != nil; g = g.parent {
		before, members := g.weight, &g.parent.members
		g.weight += by
		switch {
		case before == 0:
			g.named[g.name] = g
			heap.Push(members, g)
		case g.weight == 0:
			delete(g.named, g.name)
			heap.Remove(members, g.index)
		default:
			heap.Fix(members, g.index)
		}
	}
}

// first returns the peer of a group from which the pool takes a place first.
func (g *group) first() *group {
	for len(g.members) > 0 {
		g = g.members[0]
	}
	return g
}

// held returns the number of places of a peer.
func (g *group) held() int { return g.strangers.length + g.others.length }

// list returns the places of a peer with the given weight.
func (g *group) list(weight int) *places {
	if weight == stranger {
		return &g.strangers
	}
	return &g.others
}

// yields returns the place that a peer loses first when a client of another peer takes over a
// place.
func (g *group) yields() *Place {
	if g.strangers.length > 0 {
		return g.strangers.back
	}
	return g.others.back
}

// standing holds the values by which a pool decides which of two groups loses a place: see
// [standing.before].
type standing struct {
	stranger bool // true if the place that the group loses first is a stranger's place
	weight   int
	known    bool // true if the peer that loses the place is known; see [Known]
	lot      uint64
}

func (g *group) standing() standing {
	first := g.first()
	return standing{first.strangers.length > 0, g.weight, first.known, g.lot}
}

// with returns the standing that a group would have if the peer `from` of the group had one more
// place of the given weight.
func (g *group) with(weight int, from *group) standing {
	return standing{weight: g.weight + weight, known: from.known, lot: g.lot}
}

// losesTie reports whether the group with the standing a loses a place to the group with the
// standing b, if both groups have the same weight.
func (a standing) losesTie(b standing) bool {
	if a.known != b.known {
		return b.known
	}
	return a.lot < b.lot
}

// before reports whether the group with the standing a loses a place before the group with the
// standing b. If keeps is true (see [Limits.KeepOrdinary]), the groups with a stranger's place
// lose a place first.
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

// order holds groups as a heap (container/heap). The group that loses a place first comes
// first.
type order []*group

func (o order) Len() int { return len(o) }
func (o order) Less(i, j int) bool {
	return o[i].standing().before(o[j].standing(), o[i].pool.KeepOrdinary)
}
func (o order) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].index, o[j].index = i, j
}
func (o *order) Push(x any) {
	g := x.(*group)
	g.index = len(*o)
	*o = append(*o, g)
}
func (o *order) Pop() any {
	last := len(*o) - 1
	g := (*o)[last]
	(*o)[last] = nil
	*o = (*o)[:last]
	return g
}
