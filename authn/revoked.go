package authn

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

func (m idMap[V]) len() int { return len(m.usual) + len(m.other) }
