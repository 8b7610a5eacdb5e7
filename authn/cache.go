package authn

import (
	"encoding/binary"
	"math/bits"
	"strings"
	"sync"
	"sync/atomic"
)

// A cache remembers tokens with a good form and a good signature, so that each signature is
// checked once. At every use of a cached token, [bundle.judge] decides whether the token is
// still accepted.
//
// The key of an entry is the whole token, so a forged token never finds the entry of a good
// token. Only accepted tokens are stored, so forged tokens, however many, evict nothing.
// The cache first evicts entries not used since their last turn at the front of the queue
// (the CLOCK algorithm), so the busy tokens survive a flood of new tokens.
//
// A token that is in the cache is looked up without a lock, and nearly always without a write
// to memory that another core reads: cores that verify the same token do not wait for each other.
// Only put and size take locks.
type cache struct {
	// slots is a hash table of fixed size, since the budget bounds the number of entries. The
	// entries of one slot form a chain, by entry.chain. The lock of the slot's shard guards
	// every change of a chain, and get follows a chain while it changes: an entry that leaves
	// its chain keeps its own link, so get still finds the rest of the chain.
	slots  []atomic.Pointer[entry]
	shift  int // shifts a hash down to the index of a slot
	shards [cacheShards]cacheShard
	counts bool // whether get counts the entries that it finds; never changes
	found  tally
}

const (
	// cacheShards is the number of parts of the cache, each with a lock, so that cores seldom
	// wait for one lock. The number is a power of two.
	cacheShards = 32
	// entryBytes is the memory of an entry besides twice the token's length: an entry
	// holds the token, and the claims in about as many bytes.
	entryBytes = 768
)

// cacheShard holds the entries of all slots with the same index modulo cacheShards. mu guards
// every field except budget.
type cacheShard struct {
	mu      sync.Mutex
	hand    *entry // the entry that is evicted next, in a ring of all entries of the shard; nil if there is no entry
	entries int
	used    int      // the bytes that the entries take
	budget  int      // the bytes that the entries are allowed to take; never changes
	_       [64]byte // gives each shard a cache line of its own
}

// entry holds a cached token, and points at the key that checked the token's signature. If a
// later trust state has a new object for the key, or no longer has the key, judge refuses the
// entry. judge also refuses an entry that a slow check stores after the later trust state has
// come.
type entry struct {
	*authentic
	raw        string
	chain      atomic.Pointer[entry] // the next entry of the slot
	busy       atomic.Bool           // true if the entry was used since its last turn at the hand
	next, prev *entry                // the neighbors in the ring of all entries of the shard
}

// newCache makes a cache of at most budget bytes. If counts is true, the cache counts the tokens that
// get finds.
func newCache(budget int, counts bool) *cache {
	width := bits.Len(uint(max(cacheShards, budget/(2*entryBytes))))
	c := &cache{slots: make([]atomic.Pointer[entry], 1<<width), shift: 64 - width, counts: counts}
	for i := range c.shards {
		c.shards[i].budget = budget / cacheShards
	}
	return c
}

// slot chooses the slot of a token by a hash of the signature's end, since no client can
// choose the signature of a good token.
func (c *cache) slot(raw string) uint64 {
	var tail [8]byte
	if n := len(raw); n > 10 {
		copy(tail[:], raw[n-10:n-2])
	}
	return binary.LittleEndian.Uint64(tail[:]) * 0x9e3779b97f4a7c15 >> c.shift
}

// in returns the entry of a token in a slot; nil if the slot has no such entry.
func (c *cache) in(slot uint64, raw string) *entry {
	e := c.slots[slot].Load()
	for e != nil && e.raw != raw {
		e = e.chain.Load()
	}
	return e
}

// get returns the entry of a token, and nil if the cache has no entry.
func (c *cache) get(raw string) *authentic {
	e := c.in(c.slot(raw), raw)
	if e == nil {
		return nil
	}
	if c.counts {
		c.found.add()
	}
	if !e.busy.Load() { // a write at every use would keep cores waiting for the cache line
		e.busy.Store(true)
	}
	return e.authentic
}

// put stores a token, and returns the value to use from now on. If a concurrent call has
// stored the same token, put returns the value of the existing entry.
func (c *cache) put(raw string, t *authentic) *authentic {
	slot, size := c.slot(raw), entrySize(raw)
	s := &c.shards[slot%cacheShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := c.in(slot, raw); e != nil && e.key == t.key {
		return e.authentic
	} else if e != nil {
		c.removeLocked(s, e)
	}
	if size > s.budget {
		return t
	}
	for s.used+size > s.budget {
		c.evictLocked(s)
	}
	e := &entry{authentic: t, raw: strings.Clone(raw)} // raw may be part of a header, which would stay in memory whole
	if s.hand == nil {
		e.next, e.prev, s.hand = e, e, e
	} else { // just before the hand, so that the entry is the last to be evicted
		e.next, e.prev = s.hand, s.hand.prev
		e.prev.next, e.next.prev = e, e
	}
	s.entries, s.used = s.entries+1, s.used+size
	e.chain.Store(c.slots[slot].Load())
	c.slots[slot].Store(e) // the entry is complete before get can find it
	return t
}

// entrySize returns the number of bytes that an entry takes from the budget of its shard.
func entrySize(raw string) int { return entryBytes + 2*len(raw) }

// evictLocked removes the first entry of a shard that was not used since its last turn at the
// hand. An entry that was used gets another turn. s.mu must be held.
func (c *cache) evictLocked(s *cacheShard) {
	for s.hand.busy.CompareAndSwap(true, false) {
		s.hand = s.hand.next
	}
	c.removeLocked(s, s.hand)
}

// removeLocked removes an entry of a shard. s.mu must be held.
func (c *cache) removeLocked(s *cacheShard, e *entry) {
	link := &c.slots[c.slot(e.raw)]
	for link.Load() != e {
		link = &link.Load().chain
	}
	link.Store(e.chain.Load())
	s.entries, s.used = s.entries-1, s.used-entrySize(e.raw)
	if s.hand == e {
		s.hand = e.next
	}
	if s.hand == e { // e was the only entry of the shard
		s.hand = nil
	}
	e.prev.next, e.next.prev = e.next, e.prev
}

// size returns the number of entries, and the number of bytes that the entries take.
func (c *cache) size() (entries, bytes int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		entries, bytes = entries+s.entries, bytes+s.used
		s.mu.Unlock()
	}
	return entries, bytes
}

// A tally counts events of all cores. Each core nearly always adds to a part of its own, so
// that cores do not wait for each other's cache lines. The zero tally is ready for use.
type tally struct {
	parts [64]tallyPart
	own   sync.Pool     // a pool of *tallyPart: sync.Pool gives each core its own part
	given atomic.Uint32 // the number of parts that were given to a core; a Pool forgets, so one part may be given again
}

type tallyPart struct {
	n atomic.Uint64
	_ [56]byte // gives each part a cache line of its own
}

func (t *tally) add() {
	part, ok := t.own.Get().(*tallyPart)
	if !ok {
		part = &t.parts[t.given.Add(1)%uint32(len(t.parts))]
	}
	part.n.Add(1)
	t.own.Put(part)
}

// sum returns the number of events.
func (t *tally) sum() (n uint64) {
	for i := range t.parts {
		n += t.parts[i].n.Load()
	}
	return n
}
