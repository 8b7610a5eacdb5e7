package authn

import (
	"iter"
	"sync"
	"time"
)

// idLength is how long ids are. Others are possible, and take more memory.
const idLength = 16

// An idMap is a map from ids. It keeps ids of the usual length in the map itself,
// without a pointer, so that a million of them cost the collector nothing and some
// 56 bytes each.
type idMap[V any] struct {
	usual map[[idLength]byte]V
	other map[string]V
}

func newIDMap[V any]() idMap[V] {
	return idMap[V]{usual: map[[idLength]byte]V{}, other: map[string]V{}}
}

func (m *idMap[V]) get(id string) (v V, ok bool) {
	if len(id) != idLength {
		v, ok = m.other[id]
		return v, ok
	}
	v, ok = m.usual[[idLength]byte([]byte(id))]
	return v, ok
}

func (m *idMap[V]) set(id string, v V) {
	if len(id) != idLength {
		m.other[id] = v
		return
	}
	m.usual[[idLength]byte([]byte(id))] = v
}

// all are the entries, for who does not hold the lock: see inSteps.
func (m *idMap[V]) all(mu *sync.RWMutex) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for id, v := range inSteps(mu, m.usual) {
			if !yield(string(id[:]), v) {
				return
			}
		}
		for id, v := range inSteps(mu, m.other) {
			if !yield(id, v) {
				return
			}
		}
	}
}

func (m *idMap[V]) len() int { return len(m.usual) + len(m.other) }

const (
	// pruneEvery is rare enough to cost nothing, and often enough: an entry
	// lives for minutes at least.
	pruneEvery = time.Minute
	// batch entries are deleted or copied under one lock, which takes some tens of
	// microseconds. Judgements get in between.
	batch = 256
)

// inSteps are the entries of a map that mu guards. The lock is held for a batch at a
// time, nothing is allocated meanwhile, and no entry is handed out. An entry that is
// there from beginning to end comes once, whatever comes and goes in between: a
// range promises so much, and the lock keeps its steps apart from every change.
func inSteps[K comparable, V any](mu *sync.RWMutex, m map[K]V) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		ids, values := make([]K, 0, batch), make([]V, 0, batch)
		handOut := func() bool {
			for i := range ids {
				if !yield(ids[i], values[i]) {
					return false
				}
			}
			ids, values = ids[:0], values[:0]
			return true
		}
		mu.RLock()
		for id, v := range m {
			if ids, values = append(ids, id), append(values, v); len(ids) < batch {
				continue
			}
			mu.RUnlock()
			if !handOut() {
				return
			}
			mu.RLock()
		}
		mu.RUnlock()
		handOut()
	}
}

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
	b.ended.forget(&b.mu, func(keep int64) bool { return keep < over })
	b.raised.forget(&b.mu, func(r raised) bool { return r.keep < over })
}

// forget deletes what is over.
func (m *idMap[V]) forget(mu sync.Locker, over func(V) bool) {
	forget(mu, m.usual, over)
	forget(mu, m.other, over)
}

// forget deletes from m what is over.
func forget[K comparable, V any](mu sync.Locker, m map[K]V, over func(V) bool) {
	var ids []K
	flush := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, id := range ids {
			delete(m, id)
		}
		ids = ids[:0]
	}
	for id, v := range m {
		if !over(v) {
			continue
		}
		if ids = append(ids, id); len(ids) == batch {
			flush() // deleting while ranging is fine: this goroutine does both
		}
	}
	flush()
}
