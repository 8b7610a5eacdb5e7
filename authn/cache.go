package authn

import (
	"encoding/binary"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/watchword-auth/watchword/internal/token"
)

// A cache remembers tokens with a good form and a good signature, so that each signature is
// checked once. At every use of a cached token, [bundle.judge] decides whether the token is
// still accepted.
//
// The key of an entry is the whole token, so a forged token never finds the entry of a good
// token. Only accepted tokens are stored, so forged tokens, however many, evict nothing.
// The cache first evicts entries not used since their last turn at the front of the queue
// (the CLOCK algorithm), so the busy tokens survive a flood of new tokens.
type cache struct {
	shards [cacheShards]cacheShard
	// counts tells whether get counts the entries that it finds; counts never changes. Each
	// shard has a counter of its own, in the cache line of the lock that get has just written:
	// so a count moves no further cache line between cores.
	counts bool
}

const (
	// cacheShards is the number of parts of the cache, each with a lock, so that cores seldom
	// wait for one lock. A power of two.
	cacheShards    = 32
	cacheShardBits = 5
	// entryBytes is the memory of an entry besides twice the token's length: an entry
	// holds the token, and the claims in about as many bytes.
	entryBytes = 768
)

// cacheShard is the part of the cache behind one lock: mu guards every field from entries on.
type cacheShard struct {
	mu      sync.RWMutex
	found   atomic.Uint64 // the number of calls of get that found an entry, if the cache counts
	entries map[string]*entry
	hand    *entry   // the entry that is evicted next, in a ring of all entries; nil if there is no entry
	used    int      // the bytes that the entries take
	budget  int      // the bytes that the entries may take; never changes
	_       [64]byte // gives each shard a cache line of its own
}

// entry holds a cached token, and points at the key that checked the token's signature. If a
// later trust state has a new object for the key, or no longer has the key, judge refuses the
// entry. judge also refuses an entry that a slow check stores after the later trust state has
// come.
type entry struct {
	authentic
	raw        string
	busy       atomic.Bool // true if the entry was used since its last turn at the hand
	next, prev *entry      // in the ring: container/list would allocate once more
}

// newCache makes a cache of at most budget bytes.
func newCache(budget int, counts bool) *cache {
	c := &cache{counts: counts}
	for i := range c.shards {
		c.shards[i].entries, c.shards[i].budget = map[string]*entry{}, budget/cacheShards
	}
	return c
}

// shard chooses the shard of a token by a hash of the signature's end, since no client can
// choose the signature of a good token.
func (c *cache) shard(raw string) *cacheShard {
	var tail [8]byte
	if n := len(raw); n > 10 {
		copy(tail[:], raw[n-10:n-2])
	}
	return &c.shards[binary.LittleEndian.Uint64(tail[:])*0x9e3779b97f4a7c15>>(64-cacheShardBits)]
}

// get returns the entry of a token, and nil if the cache has no entry.
func (c *cache) get(raw string) *authentic {
	if len(raw) > token.MaxLength {
		return nil
	}
	s := c.shard(raw)
	s.mu.RLock()
	e := s.entries[raw]
	s.mu.RUnlock()
	if e == nil {
		return nil
	}
	if c.counts {
		s.found.Add(1)
	}
	if !e.busy.Load() { // a write at every use would keep cores waiting for the cache line
		e.busy.Store(true)
	}
	return &e.authentic
}

// put stores a token, and returns the value to use from now on. If a concurrent call has
// stored the same token, put returns the value of the existing entry.
func (c *cache) put(raw string, t authentic) *authentic {
	s := c.shard(raw)
	size := entrySize(raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[raw]; e != nil && e.key == t.key {
		return &e.authentic
	} else if e != nil {
		s.removeLocked(e)
	}
	if size > s.budget {
		return &t
	}
	for s.used+size > s.budget {
		s.evictLocked()
	}
	e := &entry{authentic: t, raw: strings.Clone(raw)} // raw may be part of a header, which would stay in memory whole
	s.entries[e.raw] = e
	s.used += size
	if s.hand == nil {
		e.next, e.prev, s.hand = e, e, e
	} else { // just before the hand, so that the entry is the last to be evicted
		e.next, e.prev = s.hand, s.hand.prev
		e.prev.next, e.next.prev = e, e
	}
	return &e.authentic
}

// entrySize returns the number of bytes that an entry takes from the budget of its shard.
func entrySize(raw string) int { return entryBytes + 2*len(raw) }

// evictLocked removes the first entry that was not used since its last turn at the hand. An
// entry that was used gets another turn. s.mu must be held.
func (s *cacheShard) evictLocked() {
	for s.hand.busy.CompareAndSwap(true, false) {
		s.hand = s.hand.next
	}
	s.removeLocked(s.hand)
}

func (s *cacheShard) removeLocked(e *entry) {
	delete(s.entries, e.raw)
	s.used -= entrySize(e.raw)
	if s.hand == e {
		s.hand = e.next
	}
	if s.hand == e { // the only entry
		s.hand = nil
	}
	e.prev.next, e.next.prev = e.next, e.prev
}

// size returns the number of entries, and the number of bytes that the entries take.
func (c *cache) size() (entries, bytes int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		entries, bytes = entries+len(s.entries), bytes+s.used
		s.mu.RUnlock()
	}
	return entries, bytes
}

// found returns how often get has found an entry; zero if the cache does not count.
func (c *cache) found() (n uint64) {
	for i := range c.shards {
		n += c.shards[i].found.Load()
	}
	return n
}
