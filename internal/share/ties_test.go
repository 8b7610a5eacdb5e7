package share

import (
	"fmt"
	"hash/fnv"
	"testing"
	"testing/synctest"
	"time"
)

// fair draws lots that depend on the round and the name alone.
func fair(round int64, name string) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, round, " ", name)
	return h.Sum64() * 0x9e3779b97f4a7c15
}

// keepTrying lets peers take a place again and again, until none of them gets one.
func keepTrying(p *Pool, names []string, held map[string]*Place) {
	for changed := true; changed; {
		changed = false
		for _, name := range names {
			if held[name] != nil {
				continue
			}
			if held[name] = p.Take(name, Stranger, func() { held[name] = nil }); held[name] != nil {
				changed = true
			}
		}
	}
}

func networks(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("192.0.%d.%d", i/256, i%256))
	}
	return names
}

// With more attacking networks than places, each of which tries without end, a newcomer gets a
// place in its share of the rounds: in more than half of the rounds beside 100 attackers, if
// there are 56 places.
func TestATieIsDrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const places, attackers, rounds = 56, 100, 200
		p := NewPool(Limits{Places: places, PerPeer: places})
		p.draw = fair
		held := map[string]*Place{}
		names := networks(attackers)
		keepTrying(p, names, held)
		served := 0
		for range rounds {
			time.Sleep(roundLength)
			keepTrying(p, append(names, "honest"), held)
			if held["honest"] != nil {
				served++
			}
			if p.Held() != places {
				t.Fatalf("%d places are held", p.Held())
			}
		}
		t.Logf("a place in %d of %d rounds", served, rounds)
		if served < rounds*places/(attackers+1)-rounds/10 || served > rounds*places/(attackers+1)+rounds/10 {
			t.Errorf("a place in %d of %d rounds, want about %d", served, rounds, rounds*places/(attackers+1))
		}
	})
}

// If all peers hold equally many places (a tie), a known peer gets a place, and loses none to
// strangers, whatever lots the peers draw.
func TestAKnownPeerWinsATie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := NewKnown(10)
		p := NewPool(Limits{Places: 56, PerPeer: 56, Known: known})
		p.draw = fair
		held := map[string]*Place{}
		names := networks(100)
		held["early"] = p.Take("early", Stranger, func() { t.Error("a known peer has lost its place") })
		known.Add("early", "alice") // early has become known after taking its place
		keepTrying(p, names, held)
		known.Add("late", "bob")
		if held["late"] = p.Take("late", Stranger, func() { t.Error("a known peer has lost its place") }); held["late"] == nil {
			t.Fatal("a known peer got no place")
		}
		for range 100 {
			time.Sleep(roundLength)
			keepTrying(p, names, held)
		}
	})
}

// A site (an IPv6 network of 48 bits) with 65,536 networks has one share of the places: a peer
// of another site takes a place of it, and loses none to it.
func TestASiteHasOneShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool(Limits{Places: 56, PerPeer: 56})
		p.draw = fair
		held := map[string]*Place{}
		var names []string
		for i := range 200 {
			names = append(names, fmt.Sprintf("2001:db8:1:%x::/64", i+1))
		}
		keepTrying(p, names, held)
		for i := range 20 {
			name := fmt.Sprintf("2001:db8:%x:1::/64", i+100)
			if p.Take(name, Stranger, func() { t.Errorf("%s has lost its place to the site", name) }) == nil {
				t.Errorf("%s got no place", name)
			}
		}
		for range 20 {
			time.Sleep(roundLength)
			keepTrying(p, names, held)
		}
		// Within the site, the networks share what is left.
		if p.sites["2001:db8:1::/48"].weight != 36*stranger || len(p.sites["2001:db8:1::/48"].members) != 36 {
			t.Errorf("the site holds %d, by %d networks", p.sites["2001:db8:1::/48"].weight, len(p.sites["2001:db8:1::/48"].members))
		}
	})
}

// At a tie, a stranger takes only the places of other strangers: any other place may belong to a
// call in progress.
func TestATieEndsNoCall(t *testing.T) {
	t.Parallel()
	for round := range int64(20) {
		p := NewPool(Limits{Places: 2, PerPeer: 2})
		p.draw = func(_ int64, name string) uint64 { return fair(round, name) }
		calls := []*Place{p.Take("a", Stranger, nil), p.Take("a", Stranger, nil)}
		for _, call := range calls {
			call.SetStranger(false)
		}
		if p.Take("b", Stranger, nil) != nil { // the two calls of peer a weigh as much as the new stranger, peer b
			t.Error("a call has lost its place to a stranger")
		}
	}
}

// The number of remembered proofs (earlier visits of a network) is bounded. If an owner has too
// many proofs, a new proof of the owner replaces an older one of the same owner.
func TestKnownIsBounded(t *testing.T) {
	t.Parallel()
	const places = 10
	k := NewKnown(places)
	k.Add("alice's", "alice")
	k.Add("alice's", "bob") // the pool knows the network of this proof already
	for _, name := range networks(1000) {
		k.Add(name, "mallory")
	}
	for _, owner := range networks(places / 2) {
		k.Add("of "+owner, owner)
	}
	if !k.Has("alice's") {
		t.Error("one owner's proofs have pushed out the proof of another")
	}
	names := append(networks(1000), "alice's")
	for _, owner := range networks(places / 2) {
		names = append(names, "of "+owner)
	}
	known := 0
	for _, name := range names {
		if k.Has(name) {
			known++
		}
	}
	if known != places || known != len(k.peers) || k.places.Held() != places {
		t.Errorf("%d peers are known, %d in the map, and %d places held", known, len(k.peers), k.places.Held())
	}
	if !k.Has("of 192.0.0.0") {
		t.Error("a newcomer's proof found no place beside an owner of many")
	}
	var none *Known
	none.Add("a", "b")
	if none.Has("a") {
		t.Error("a nil Known knows a peer")
	}
}

// Running calls, which keep their places, do not protect strangers of peers with fewer places: a
// newcomer gets a place of the strangers.
func TestRunningCallsHideNoStranger(t *testing.T) {
	p := NewPool(Limits{Places: 512, PerPeer: 256, KeepOrdinary: true})
	for range 40 {
		if p.Take("busy", Ordinary, func() { t.Error("a running call has lost its place") }) == nil {
			t.Fatal("no place for a call")
		}
	}
	for i := range 472 {
		if p.Take(fmt.Sprint("stranger-", i%25), Stranger, func() {}) == nil {
			t.Fatal("no place for a stranger")
		}
	}
	for i := range 10 {
		if p.Take(fmt.Sprint("newcomer-", i), Stranger, func() { t.Error("a newcomer has lost its place") }) == nil {
			t.Errorf("newcomer %d found no place", i)
		}
	}
}
