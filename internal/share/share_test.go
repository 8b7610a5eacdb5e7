package share

import (
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestOnePeerHasAShare(t *testing.T) {
	t.Parallel()
	p := NewPool(10, 3)
	for i := range 3 {
		if p.Take("a", func() { t.Error("evicted while places are free") }) == nil {
			t.Fatalf("no place for %d", i)
		}
	}
	if p.Take("a", nil) != nil {
		t.Error("a fourth place for a peer that may hold three")
	}
}

func TestNewcomerTakesFromTheHeaviest(t *testing.T) {
	t.Parallel()
	p := NewPool(5, 5)
	lost := map[string]int{}
	take := func(name string) *Place { return p.Take(name, func() { lost[name]++ }) }
	for _, name := range []string{"a", "a", "a", "a", "b"} {
		if take(name) == nil {
			t.Fatal("no place although places are free")
		}
	}
	if take("b") == nil || take("c") == nil { // 4,1 to 3,2 to 2,2,1
		t.Fatal("a light peer was refused beside a heavy one")
	}
	if lost["a"] != 2 || lost["b"]+lost["c"] != 0 {
		t.Errorf("lost: %v", lost)
	}
	if take("c") != nil { // 2,2,1 to 2,1,2 would only trade places
		t.Error("two peers take places from each other")
	}
	if take("d") == nil {
		t.Error("a newcomer was refused although a peer holds two")
	}
	if p.Held() != 5 {
		t.Errorf("%d places held", p.Held())
	}
}

// The pool keeps its promises under any sequence of calls: never more places than there
// are, never more for one peer than allowed, and a refusal only of a peer that has its
// share.
func TestPoolAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		places, perPeer := rapid.IntRange(0, 8).Draw(t, "places"), rapid.IntRange(1, 8).Draw(t, "per peer")
		p := NewPool(places, perPeer)
		held := map[string]int{}
		var all []*Place
		gone := map[*Place]bool{}
		total := func() (sum, most int) {
			for _, n := range held {
				sum, most = sum+n, max(most, n)
			}
			return sum, most
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				name := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "peer")
				_, most := total()
				full := p.Held() == places
				before := held[name]
				var place *Place
				place = p.Take(name, func() { held[name]--; gone[place] = true })
				may := before < perPeer && places > 0 && (!full || most >= before+2)
				if may != (place != nil) {
					t.Fatalf("place: %v, want %v; held %v", place != nil, may, held)
				}
				if place != nil {
					held[name]++
					all = append(all, place)
				}
			},
			"release": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip()
				}
				place := rapid.SampledFrom(all).Draw(t, "place")
				if !gone[place] {
					held[place.peer.name]--
					gone[place] = true
				}
				place.Release()
			},
			"": func(t *rapid.T) {
				sum, most := total()
				if sum != p.Held() || sum > max(0, places) || most > perPeer {
					t.Fatalf("held %v, the pool says %d", held, p.Held())
				}
				if len(p.peers) != len(p.most) {
					t.Fatalf("%d peers, %d in the heap", len(p.peers), len(p.most))
				}
			},
		})
	})
}

func TestPoolByManyGoroutines(t *testing.T) {
	t.Parallel()
	p := NewPool(20, 10)
	var tasks sync.WaitGroup
	for i := range 8 {
		tasks.Go(func() {
			for range 2000 {
				if place := p.Take(fmt.Sprint("peer ", i%4), func() {}); place != nil {
					place.Release()
				}
			}
		})
	}
	tasks.Wait()
	if p.Held() != 0 || len(p.peers) != 0 || len(p.most) != 0 {
		t.Errorf("%d places, %d peers, %d in the heap remain", p.Held(), len(p.peers), len(p.most))
	}
}

func BenchmarkTake(b *testing.B) {
	p := NewPool(1000, 100)
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprint("192.0.2.", i)
		for range 5 {
			p.Take(names[i], func() {})
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.Take(names[i%100], func() {}).Release()
	}
}
