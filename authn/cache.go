package authn

import (
	"encoding/binary"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/watchword-auth/watchword/internal/token"
)

// A cache remembers tokens whose form and signature were good, so that they are
// checked once. It says nothing of whether a token is good now: judge does, at
// every use.
//
// It is keyed by the whole token, so nobody can find another that is taken for
// it. Only tokens that were accepted come in, so forged ones, however many, push
// nothing out; and of good ones those go first that were used only once since
// the hand came by (the CLOCK algorithm), so that a flood of new tokens passes
// through without taking the busy ones along.
type cache struct{ shards [cacheShards]cacheShard }

const (
	// cacheShards keep cores from waiting for one lock. A power of two.
	cacheShards    = 32
	cacheShardBits = 5
	// entryBytes is what an entry takes besides twice its token: the token is
	// kept as it is, and its claims as they were read.
	entryBytes = 768
)

type cacheShard struct {
	mu      sync.RWMutex
	entries map[string]*entry
	hand    *entry // in a ring of all entries; nil: there are none
	used    int    // bytes
	budget  int
	_       [64]byte // a cache line of its own
}

// entry is a cached token. It points at the very key that checked it: when that
// is no longer the trusted one, the entry is worth nothing, whoever put it in and
// however late.
type entry struct {
	authentic
	raw        string
	busy       atomic.Bool // used since the hand came by
	next, prev *entry
}

func newCache(budget int) *cache {
	c := &cache{}
	for i := range c.shards {
		c.shards[i].entries, c.shards[i].budget = map[string]*entry{}, budget/cacheShards
	}
	return c
}

// shard goes by the signature's end, which nobody can choose for a good token.
func (c *cache) shard(raw string) *cacheShard {
	var tail [8]byte
	if n := len(raw); n > 10 {
		copy(tail[:], raw[n-10:n-2])
	}
	return &c.shards[binary.LittleEndian.Uint64(tail[:])*0x9e3779b97f4a7c15>>(64-cacheShardBits)]
}

// get returns what is known of a token, nil if nothing is.
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
	if !e.busy.Load() {
		e.busy.Store(true)
	}
	return &e.authentic
}

// put remembers a token, and returns what is to be used of it from now on.
func (c *cache) put(raw string, t authentic) *authentic {
	s := c.shard(raw)
	size := entrySize(raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[raw]; e != nil && e.key == t.key {
		return &e.authentic
	} else if e != nil {
		s.remove(e)
	}
	if size > s.budget {
		return &t
	}
	for s.used+size > s.budget {
		s.evict()
	}
	e := &entry{authentic: t, raw: strings.Clone(raw)} // a part of a header would keep all of it
	s.entries[e.raw] = e
	s.used += size
	if s.hand == nil {
		e.next, e.prev, s.hand = e, e, e
	} else { // behind the hand: the last that it comes to
		e.next, e.prev = s.hand, s.hand.prev
		e.prev.next, e.next.prev = e, e
	}
	return &e.authentic
}

func entrySize(raw string) int { return entryBytes + 2*len(raw) }

// evict removes the first entry that was not used since the hand came by.
func (s *cacheShard) evict() {
	for s.hand.busy.CompareAndSwap(true, false) {
		s.hand = s.hand.next
	}
	s.remove(s.hand)
}

func (s *cacheShard) remove(e *entry) {
	delete(s.entries, e.raw)
	s.used -= entrySize(e.raw)
	if s.hand == e {
		s.hand = e.next
	}
	if s.hand == e {
		s.hand = nil
	}
	e.prev.next, e.next.prev = e.next, e.prev
}

// size is the number of entries and the bytes that they are counted for.
func (c *cache) size() (entries, bytes int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		entries, bytes = entries+len(s.entries), bytes+s.used
		s.mu.RUnlock()
	}
	return entries, bytes
}
