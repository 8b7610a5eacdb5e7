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

// The filter never denies what is there, and denies nearly all of what is not:
// while the map grows, and when most of it has been forgotten.
func TestAnIDMapFindsWhatItHasAndNothingElse(t *testing.T) {
	var mu sync.RWMutex
	m := newIDMap[int]()
	var ids []string
	inVain := func() (n int) {
		const looks = 20_000
		for range looks {
			id := randomID()
			key := [idLength]byte([]byte(id))
			if _, ok := m.get(id); ok {
				t.Fatalf("%s was never put in", id)
			}
			if m.filter.mayHave(&key) {
				n++
			}
		}
		return n * 100 / looks
	}
	check := func(from int) {
		t.Helper()
		for i, id := range ids {
			if v, ok := m.get(id); ok != (i >= from) || ok && v != i {
				t.Fatalf("entry %d: %d, %v", i, v, ok)
			}
		}
		if n := inVain(); n > 100/bitsPerEntry+3 {
			t.Errorf("%d of 100 that are not there are looked up, of %d entries", n, m.len())
		}
	}
	for len(ids) < 50_000 {
		more := min(1000, 1+len(ids)/3)
		m.makeRoom(&mu, more)
		for range more {
			m.set(randomIDInto(&ids), len(ids)-1)
		}
	}
	check(0)
	for _, from := range []int{45_000, 49_990, len(ids)} {
		m.forget(&mu, func(v int) bool { return v < from })
		check(from)
	}
	if room := m.filter.room(); room > 1024 {
		t.Errorf("the filter of an empty map has room for %d", room)
	}
}

func randomIDInto(ids *[]string) string {
	id := randomID()
	*ids = append(*ids, id)
	return id
}

// A look-up of an id that is not there: of nearly every session.
func BenchmarkIDMap(b *testing.B) {
	ids := make([]string, 10_000)
	for i := range ids {
		ids[i] = randomID()
	}
	for name, n := range map[string]int{"of none": 0, "of a million": 1_000_000} {
		m := newIDMap[int64]()
		m.makeRoom(new(sync.Mutex), n)
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

// Ids of another length are possible, and no reason to forget them.
func TestAnIDMapTakesIDsOfAnyLength(t *testing.T) {
	m := newIDMap[int]()
	for i, id := range []string{"", "short", "0123456789abcdef", "a rather long id of some other issuer"} {
		m.set(id, i)
		if v, ok := m.get(id); !ok || v != i {
			t.Errorf("%q: %d, %v", id, v, ok)
		}
	}
}
