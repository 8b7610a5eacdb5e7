package authn

import (
	"iter"
	"sync"
	"time"
)

// idLength is how long ids are. Others are possible, and take more memory.
const idLength = 16

// An idMap is a map from ids. It keeps ids of the usual length in the map itself,
// without a pointer, so that a million of them cost the collector nothing and
// less than a hundred bytes each.
type idMap[V any] struct {
	usual map[[idLength]byte]V
	other map[string]V
}

func newIDMap[V any]() idMap[V] {
	return idMap[V]{usual: map[[idLength]byte]V{}, other: map[string]V{}}
}

func (m idMap[V]) get(id string) (v V, ok bool) {
	if len(id) == idLength {
		v, ok = m.usual[[idLength]byte([]byte(id))]
		return v, ok
	}
	v, ok = m.other[id]
	return v, ok
}

func (m idMap[V]) set(id string, v V) {
	if len(id) == idLength {
		m.usual[[idLength]byte([]byte(id))] = v
		return
	}
	m.other[id] = v
}

// all are the entries. One that is there from beginning to end comes once, also
// where others come and go in between.
func (m idMap[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for id, v := range m.usual {
			if !yield(string(id[:]), v) {
				return
			}
		}
		for id, v := range m.other {
			if !yield(id, v) {
				return
			}
		}
	}
}

func (m idMap[V]) len() int { return len(m.usual) + len(m.other) }

const (
	// pruneEvery is rare enough to cost nothing, and often enough: an entry
	// lives for minutes at least.
	pruneEvery = time.Minute
	// pruneBatch entries are deleted under one lock, which takes some tens of
	// microseconds. Judgements get in between.
	pruneBatch = 256
)

// prune forgets what can concern no token any more. Searching needs no lock,
// since nobody else writes.
func (b *bundle) prune(now time.Time) {
	if now.Before(b.nextPrune) {
		return
	}
	b.nextPrune = now.Add(pruneEvery)
	b.forget(now)
}

// forget is prune whenever it is called.
func (b *bundle) forget(now time.Time) {
	over := now.Unix()
	forget(&b.mu, b.ended.usual, func(keep int64) bool { return keep < over })
	forget(&b.mu, b.ended.other, func(keep int64) bool { return keep < over })
	forget(&b.mu, b.raised.usual, func(r raised) bool { return r.keep < over })
	forget(&b.mu, b.raised.other, func(r raised) bool { return r.keep < over })
}

// forget deletes from m what is over.
func forget[K comparable, V any](mu sync.Locker, m map[K]V, over func(V) bool) {
	var batch []K
	flush := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, id := range batch {
			delete(m, id)
		}
		batch = batch[:0]
	}
	for id, v := range m {
		if !over(v) {
			continue
		}
		if batch = append(batch, id); len(batch) == pruneBatch {
			flush() // deleting while ranging is fine: this goroutine does both
		}
	}
	flush()
}
