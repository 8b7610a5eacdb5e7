package authn

import (
	"iter"
	"slices"
	"sync"
)

const (
	// idLength is the length, in bytes, of the ids that the Watchword server makes. An idMap
	// also stores ids of other lengths, which take more memory.
	idLength = 16
	// batch is the number of entries that are added or deleted under one lock, in some tens of
	// microseconds. Between two batches other goroutines look up entries.
	batch = 256
)

// An idMap is a map with ids of sessions or users as keys. The map stores an id of 16 bytes
// (idLength) without a pointer: so a million entries cost the garbage collector nothing, and
// take about 56 bytes each.
//
// A lock of the map's owner guards the map, see [revocations]. A method with the lock as an
// argument takes the lock itself, and releases the lock after every 256 entries (batch); the
// caller must not hold the lock.
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
	} else {
		v, ok = m.usual[[idLength]byte([]byte(id))]
	}
	return v, ok
}

func (m *idMap[V]) set(id string, v V) {
	if len(id) != idLength {
		m.other[id] = v
	} else {
		m.usual[[idLength]byte([]byte(id))] = v
	}
}

func (m *idMap[V]) len() int { return len(m.usual) + len(m.other) }

// all yields the entries of the map. The body of the caller's loop runs without the lock.
func (m *idMap[V]) all(mu *sync.RWMutex) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		_ = inSteps(mu, m.usual, func(id [idLength]byte) string { return string(id[:]) }, yield) &&
			inSteps(mu, m.other, func(id string) string { return id }, yield)
	}
}

// inSteps yields the entries of m, and returns false if yield returns false. Only the steps
// from entry to entry run under the lock, so a slow yield blocks no other goroutine. An entry
// that is present from the beginning to the end is yielded once, whatever other goroutines add
// and delete between two steps: Go's range over a map promises this, and the lock keeps changes
// out of a step.
func inSteps[K comparable, V any](mu *sync.RWMutex, m map[K]V, name func(K) string, yield func(string, V) bool) bool {
	mu.RLock()
	for id, v := range m {
		mu.RUnlock()
		if !yield(name(id), v) {
			return false
		}
		mu.RLock()
	}
	mu.RUnlock()
	return true
}

// forget deletes the expired entries. Before the deletion, forget collects the ids of the expired
// entries, which takes memory until forget returns. Only the owner's writing goroutine may call
// forget.
func (m *idMap[V]) forget(mu *sync.RWMutex, expired func(V) bool) {
	forget(mu, m.usual, expired)
	forget(mu, m.other, expired)
}

func forget[K comparable, V any](mu *sync.RWMutex, m map[K]V, expired func(V) bool) {
	var ids []K
	for id, v := range m { // reads without the lock, since only this goroutine writes
		if expired(v) {
			ids = append(ids, id)
		}
	}
	inBatches(mu, ids, func(id K) { delete(m, id) })
}

// inBatches calls `do` for every element of the slice `all`, with mu locked for one batch at a
// time.
func inBatches[E any](mu *sync.RWMutex, all []E, do func(E)) {
	for some := range slices.Chunk(all, batch) {
		mu.Lock()
		for _, e := range some {
			do(e)
		}
		mu.Unlock()
	}
}
