package share

import (
	"fmt"
	"hash/crc64"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestOnePeerHasAShare(t *testing.T) {
	t.Parallel()
	p := NewPool(Limits{Places: 10, PerPeer: 3})
	for i := range 3 {
		if p.Take("a", Ordinary, func() { t.Error("evicted while places are free") }) == nil {
			t.Fatalf("no place for %d", i)
		}
	}
	if p.Take("a", Ordinary, nil) != nil {
		t.Error("a fourth place for a peer that may hold three")
	}
}

// earlier draws a greater lot for a name that comes earlier in the alphabet.
func earlier(_ int64, name string) uint64 { return uint64('z' - name[0]) }

func TestNewcomerTakesFromTheHeaviest(t *testing.T) {
	t.Parallel()
	p := NewPool(Limits{Places: 5, PerPeer: 5})
	p.draw = earlier
	lost := map[string]int{}
	take := func(name string) *Place { return p.Take(name, Ordinary, func() { lost[name]++ }) }
	for _, name := range []string{"a", "a", "a", "a", "b"} {
		if take(name) == nil {
			t.Fatal("no place although places are free")
		}
	}
	if take("b") == nil || take("c") == nil { // the peers' places go from 4 and 1 to 3 and 2, and then to 2, 2 and 1
		t.Fatal("a light peer was refused beside a heavy one")
	}
	if lost["a"] != 2 || lost["b"]+lost["c"] != 0 {
		t.Errorf("lost: %v", lost)
	}
	if take("c") != nil { // a change from 2, 2, 1 to 2, 1, 2 would only trade places
		t.Error("two peers take places from each other")
	}
	if take("d") == nil {
		t.Error("a newcomer was refused although a peer holds two")
	}
	if p.Held() != 5 {
		t.Errorf("%d places held", p.Held())
	}
}

// A stranger gives way before the other clients of its peer, and its peer before peers of
// clients that are no strangers. The newest stranger gives way first.
func TestStrangersGiveWayFirst(t *testing.T) {
	t.Parallel()
	p := NewPool(Limits{Places: 6, PerPeer: 6})
	p.draw = earlier
	var lost []string
	take := func(kind Kind, peer, name string) {
		t.Helper()
		if p.Take(peer, kind, func() { lost = append(lost, name) }) == nil {
			t.Fatalf("no place for %s; lost: %v", name, lost)
		}
	}
	take(Stranger, "a", "a's first stranger")
	take(Stranger, "b", "b's stranger")
	take(Stranger, "c", "c's stranger")
	take(Stranger, "a", "a's second stranger")
	take(Ordinary, "a", "a's ordinary client")
	take(Ordinary, "d", "d's ordinary client") // all places are taken: the weights of a to d are 5, 2, 2 and 1
	take(Stranger, "e", "e's stranger")
	take(Ordinary, "f", "f's ordinary client")
	take(Ordinary, "g", "g's ordinary client")
	// Only b, c, a's ordinary client, d, f and g have a place. A stranger would weigh as
	// much as any other peer, and h has the smallest lot.
	if p.Take("h", Stranger, nil) != nil {
		t.Error("a stranger took the place of a peer that holds no more")
	}
	take(Ordinary, "h", "h's ordinary client")
	want := []string{"a's second stranger", "a's first stranger", "e's stranger", "c's stranger"}
	if !slices.Equal(lost, want) {
		t.Errorf("lost: %q, want %q", lost, want)
	}
}

// At the bound of its peer, a client that is no stranger gets the place of a stranger.
func TestStrangersGiveWayWithinAPeer(t *testing.T) {
	t.Parallel()
	p := NewPool(Limits{Places: 10, PerPeer: 2})
	lost := 0
	p.Take("a", Stranger, func() { lost++ })
	p.Take("a", Stranger, func() { lost++ })
	if p.Take("a", Stranger, nil) != nil {
		t.Error("a third place for a peer that may hold two")
	}
	for i := range 2 {
		if p.Take("a", Ordinary, nil) == nil || lost != i+1 {
			t.Errorf("%d strangers gave way to %d other clients", lost, i+1)
		}
	}
	if p.Take("a", Ordinary, nil) != nil || p.Held() != 2 {
		t.Errorf("%d places for a peer that may hold two", p.Held())
	}
}

// model models a pool, written with loops over all places.
type model struct {
	places, perPeer int
	keeps           bool
	held            []*modelPlace // the held places, in the order of taking
	known           map[string]bool
}

type modelPlace struct {
	peer   string
	weight int
	place  *Place
}

// lotOf stands for a draw.
func lotOf(round int64, name string) uint64 {
	return crc64.Checksum([]byte(name), crc64.MakeTable(crc64.ECMA))
}

// of returns what the peers with a condition hold.
func (m *model) of(is func(peer string) bool) (n, weight int, strangers bool) {
	for _, pl := range m.held {
		if is(pl.peer) {
			n, weight, strangers = n+1, weight+pl.weight, strangers || pl.weight == stranger
		}
	}
	return n, weight, strangers
}

func same(peer string) func(string) bool { return func(other string) bool { return other == peer } }
func within(peer string) func(string) bool {
	return func(other string) bool { return siteOf(other) == siteOf(peer) }
}

// first returns the peer, of those for which is holds, that loses a place first; empty if there
// is none.
func (m *model) first(is func(peer string) bool, group func(peer string) func(string) bool, lot func(peer string) uint64) (first string) {
	rank := func(peer string) []int {
		_, weight, _ := m.of(group(peer))
		_, _, strangers := m.of(same(peer))
		keeps := 0
		if m.keeps && !strangers {
			keeps = 1
		}
		return []int{keeps, -weight, toInt(!strangers), toInt(m.known[peer]), int(lot(peer) >> 1)}
	}
	for _, pl := range m.held {
		if is(pl.peer) && (first == "" || slices.Compare(rank(pl.peer), rank(first)) < 0) {
			first = pl.peer
		}
	}
	return first
}

func toInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// takesFrom returns the place that a peer takes over from another one, if it may.
func (m *model) takesFrom(loser, peer string, weight int, group func(peer string) func(string) bool, lot func(peer string) uint64) *modelPlace {
	victim := m.yields(loser)
	_, his, _ := m.of(group(loser))
	_, mine, _ := m.of(group(peer))
	mine += weight
	wins := lot(peer) > lot(loser)
	if m.known[peer] != m.known[loser] {
		wins = m.known[peer]
	}
	if m.keeps && victim.weight != stranger || his < mine || his == mine && (victim.weight < weight || !wins) {
		return nil
	}
	return victim
}

// take returns whether a client gets a place, and which place is taken away for it.
func (m *model) take(peer string, weight int, renews bool) (victim *modelPlace, ok bool) {
	n, _, _ := m.of(same(peer))
	switch {
	case m.places == 0:
		return nil, false
	case n < m.perPeer && len(m.held) < m.places:
		return nil, true
	case n < m.perPeer:
		lotOfSite := func(peer string) uint64 { return lotOf(0, siteOf(peer)) }
		lot := func(peer string) uint64 { return lotOf(0, peer) }
		// The first peer within each site, and the first site of these.
		first := m.first(func(p string) bool { return p == m.first(within(p), same, lot) }, within, lotOfSite)
		if siteOf(first) != siteOf(peer) {
			victim = m.takesFrom(first, peer, weight, within, lotOfSite)
		}
		mate := m.first(within(peer), same, lot)
		if victim == nil && mate != "" && mate != peer && (m.yields(mate).weight >= weight || m.outweighs(peer)) {
			victim = m.takesFrom(mate, peer, weight, same, lot)
		}
		if victim != nil {
			return victim, true
		}
	}
	if v := m.yields(peer); weight == ordinary && v != nil && v.weight == stranger {
		return v, true
	}
	if oldest := m.oldestStranger(peer); renews && oldest != nil {
		return oldest, true
	}
	return nil, false
}

// outweighs reports whether the site of a peer weighs far more than every other site.
func (m *model) outweighs(peer string) bool {
	_, mine, _ := m.of(within(peer))
	return !slices.ContainsFunc(m.held, func(pl *modelPlace) bool {
		_, weight, _ := m.of(within(pl.peer))
		return siteOf(pl.peer) != siteOf(peer) && mine < weight+2*stranger
	})
}

func (m *model) oldestStranger(peer string) *modelPlace {
	for _, pl := range m.held {
		if pl.peer == peer && pl.weight == stranger {
			return pl
		}
	}
	return nil
}

// yields returns the newest stranger of a peer, or the newest place of the peer if the peer has
// no stranger.
func (m *model) yields(peer string) (found *modelPlace) {
	for _, pl := range m.held {
		if pl.peer == peer && (found == nil || pl.weight >= found.weight) {
			found = pl
		}
	}
	return found
}

func (m *model) remove(gone *modelPlace) {
	m.held = slices.DeleteFunc(m.held, func(pl *modelPlace) bool { return pl == gone })
}

// peers are networks: two sites with several, and others that stand alone.
var peers = []string{"2001:db8:1:1::/64", "2001:db8:1:2::/64", "2001:db8:1:3::/64", "2001:db8:2:1::/64", "2001:db8:2:2::/64", "192.0.2.1", "192.0.2.2", "name"}

// The pool does what the model does, under any sequence of calls.
func TestPoolAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &model{
			places: rapid.IntRange(0, 8).Draw(t, "places"), perPeer: rapid.IntRange(1, 8).Draw(t, "per peer"),
			known: map[string]bool{},
		}
		known := NewKnown(100)
		p := NewPool(Limits{Places: m.places, PerPeer: m.perPeer, Known: known})
		p.draw = lotOf
		m.keeps = rapid.Bool().Draw(t, "keeps")
		p.KeepOrdinary = m.keeps
		var all, evicted []*modelPlace
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				mine := &modelPlace{
					peer:   rapid.SampledFrom(peers).Draw(t, "peer"),
					weight: rapid.SampledFrom([]int{ordinary, stranger}).Draw(t, "weight"),
				}
				renews := mine.weight == stranger && rapid.Bool().Draw(t, "renews")
				want, may := m.take(mine.peer, mine.weight, renews)
				evicted = nil
				kind := Ordinary
				switch {
				case renews:
					kind = Renewing
				case mine.weight == stranger:
					kind = Stranger
				}
				mine.place = p.Take(mine.peer, kind, func() { evicted = append(evicted, mine) })
				if may != (mine.place != nil) || (want == nil) != (len(evicted) == 0) || len(evicted) > 1 {
					t.Fatalf("place %v, want one: %v; evicted %v, want %v", mine.place, may, evicted, want)
				}
				if want != nil && evicted[0] != want {
					t.Fatalf("%v gave way, want %v", *evicted[0], *want)
				}
				m.remove(want)
				if mine.place != nil {
					m.held, all = append(m.held, mine), append(all, mine)
				}
			},
			"release": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip()
				}
				pl := rapid.SampledFrom(all).Draw(t, "place")
				pl.place.Release() // pl may be a place that was released or evicted before
				m.remove(pl)
			},
			"set stranger": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip()
				}
				pl := rapid.SampledFrom(all).Draw(t, "place")
				weight := rapid.SampledFrom([]int{ordinary, stranger}).Draw(t, "weight")
				pl.place.SetStranger(weight == stranger)
				if pl.weight != weight && slices.Contains(m.held, pl) { // pl becomes the newest place of its peer
					m.remove(pl)
					pl.weight = weight
					m.held = append(m.held, pl)
				}
			},
			"known": func(t *rapid.T) {
				name := rapid.SampledFrom(peers).Draw(t, "peer")
				known.Add(name, "owner")
				m.known[name] = true
			},
			"": func(t *rapid.T) {
				if len(m.held) != p.Held() || p.Held() > max(0, m.places) || len(p.sites) != len(p.all.members) {
					t.Fatalf("%d held, the pool says %d; %d sites, %d in the heap", len(m.held), p.Held(), len(p.sites), len(p.all.members))
				}
				for name, from := range p.peers {
					if n, weight, _ := m.of(same(name)); n != from.held() || weight != from.weight || n > m.perPeer {
						t.Fatalf("%s holds %d with weight %d, want %d and %d", name, from.held(), from.weight, n, weight)
					}
				}
			},
		})
	})
}

// Clients that lose their place come back at once. They get the places of others only for
// a while: no clients take places from each other in turn.
func TestClientsThatComeBackTakeNoPlacesInTurn(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := NewPool(Limits{Places: rapid.IntRange(1, 8).Draw(t, "places"), PerPeer: 8})
		p.draw = lotOf
		type client struct {
			peer   string
			weight int
		}
		waiting := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) client {
			return client{rapid.SampledFrom(peers).Draw(t, "peer"), rapid.IntRange(ordinary, stranger).Draw(t, "weight")}
		}), 0, 30).Draw(t, "clients")
		for tries := 0; len(waiting) > 0; tries++ {
			if tries > 10_000 {
				t.Fatal("clients take places from each other without end")
			}
			c := waiting[0]
			waiting = waiting[1:]
			kind := Ordinary
			if c.weight == stranger {
				kind = Stranger
			}
			p.Take(c.peer, kind, func() { waiting = append(waiting, c) })
		}
	})
}

func TestPoolByManyGoroutines(t *testing.T) {
	t.Parallel()
	p := NewPool(Limits{Places: 20, PerPeer: 10})
	var tasks sync.WaitGroup
	for i := range 8 {
		tasks.Go(func() {
			for range 2000 {
				if place := p.Take(fmt.Sprint("peer ", i%4), Ordinary, func() {}); place != nil {
					place.Release()
				}
			}
		})
	}
	tasks.Wait()
	if p.Held() != 0 || len(p.peers) != 0 || len(p.sites) != 0 || len(p.all.members) != 0 {
		t.Errorf("%d places, %d peers, %d sites remain", p.Held(), len(p.peers), len(p.sites))
	}
}

func BenchmarkTake(b *testing.B) {
	p := NewPool(Limits{Places: 1000, PerPeer: 100})
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprint("192.0.2.", i)
		for range 5 {
			p.Take(names[i], Ordinary, func() {})
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.Take(names[i%100], Ordinary, func() {}).Release()
	}
}
