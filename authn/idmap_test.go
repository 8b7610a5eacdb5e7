package authn

import (
	"crypto/rand"
	"encoding/base64"
	"sync"
	"testing"
)

func randomID() string {
	id := make([]byte, 12)
	rand.Read(id)
	return base64.RawURLEncoding.EncodeToString(id)
}

// The map finds every entry and no other id, while the map grows and after most entries are
// forgotten.
func TestIDMap(t *testing.T) {
	var mu sync.RWMutex
	m := newIDMap[int]()
	var ids []string
	check := func(from int) {
		t.Helper()
		for i, id := range ids {
			if v, ok := m.get(id); ok != (i >= from) || ok && v != i {
				t.Fatalf("entry %d: %d, %v", i, v, ok)
			}
		}
		for range 20_000 {
			if id := randomID(); m.has(id) {
				t.Fatalf("found %s, an id without an entry", id)
			}
		}
		if got := m.len(); got != len(ids)-from {
			t.Fatalf("%d entries, want %d", got, len(ids)-from)
		}
	}
	for len(ids) < 50_000 {
		ids = append(ids, randomID())
		m.set(ids[len(ids)-1], len(ids)-1)
	}
	check(0)
	for _, from := range []int{45_000, 49_990, len(ids)} {
		m.forget(&mu, func(v int) bool { return v < from })
		check(from)
	}
}

// has returns whether an id has an entry.
func (m *idMap[V]) has(id string) bool {
	_, ok := m.get(id)
	return ok
}

// BenchmarkIDMap looks up ids without an entry, as nearly every look-up does.
func BenchmarkIDMap(b *testing.B) {
	ids := make([]string, 10_000)
	for i := range ids {
		ids[i] = randomID()
	}
	for name, n := range map[string]int{"entries=0": 0, "entries=1000000": 1_000_000} {
		m := newIDMap[int64]()
		for range n {
			m.set(randomID(), 1)
		}
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				m.get(ids[i%len(ids)])
			}
		})
	}
}

func TestIDMapTakesIDsOfAnyLength(t *testing.T) {
	m := newIDMap[int]()
	for i, id := range []string{"", "short", "0123456789abcdef", "a rather long id of some other issuer"} {
		m.set(id, i)
		if v, ok := m.get(id); !ok || v != i {
			t.Errorf("%q: %d, %v", id, v, ok)
		}
	}
}
