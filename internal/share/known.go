package share

import "sync"

// Known holds the client networks (peers) from which the server has received a proof: a right
// password, a valid token, or a certificate. A known peer keeps its places in a [Pool] when all
// peers hold equally many places; see [Limits.Known].
//
// Each proof belongs to an owner, such as the id of a user. The number of remembered proofs is
// bounded, and the bound is divided among the owners. So if an owner has proofs from very many
// networks, Known forgets proofs of this owner first.
//
// A nil Known knows no peer. Known is safe for concurrent use.
type Known struct {
	places *Pool // holds one place for each proof; the owners are the peers of this pool

	mu    sync.RWMutex
	peers map[string]*proof
}

type proof struct {
	place *Place
	gone  bool // true after the pool has taken away the proof's place; Known.mu guards gone
}

// perOwner bounds the proofs of one owner, such as one user. The smallest [Pool] with known
// peers, the queue for password hashes, has 56 places. So the known peers of one owner cannot
// hold every place of a pool.
const perOwner = 32

// NewKnown returns a Known with room for a number of peers. The proofs of one owner can fill half
// of the room, and are at most perOwner.
func NewKnown(places int) *Known {
	return &Known{places: NewPool(Limits{Places: places, PerPeer: min(perOwner, max(1, places/2))}), peers: map[string]*proof{}}
}

// Has reports whether k remembers a proof from a peer (a client network).
func (k *Known) Has(peer string) bool {
	if k == nil {
		return false
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.peers[peer] != nil
}

// Add makes a peer known by a proof of an owner. If the owner has as many proofs as an owner
// can have, Add removes the owner's oldest proof.
func (k *Known) Add(peer, owner string) {
	if k == nil || k.Has(peer) {
		return
	}
	p := &proof{}
	p.place = k.places.Take(owner, Renewing, func() { k.remove(peer, p) })
	if p.place == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case p.gone:
	case k.peers[peer] != nil: // another call of Add was faster
		p.place.Release()
	default:
		k.peers[peer] = p
	}
}

// remove removes a proof for which the pool has no place any more, so that the peer is no
// longer known by this proof.
func (k *Known) remove(peer string, p *proof) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p.gone = true
	if k.peers[peer] == p {
		delete(k.peers, peer)
	}
}
