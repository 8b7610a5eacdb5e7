package audit

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/watchword-auth/watchword/internal/caller"
)

// model holds what a table is told, without bounds.
type model struct {
	total     int64
	owners    map[string]int64          // all calls of an owner
	sinceIn   map[string]map[kind]int64 // the calls of an owner by kind, since the owner has its share
	displaced int64                     // the number of calls of kinds that lost their entry
}

func testKind(owner string, n int) kind {
	return kind{Event{Type: Login, UserID: fmt.Sprint(n)}, caller.Source(owner)}
}

// add tells the table and the model of calls, and compares the displaced kinds.
func (m *model) add(t *rapid.T, table *table, owner string, k kind, n int64) {
	m.total += n
	m.owners[owner] += n
	displaced, ownerGone := table.add(owner, k, n)
	for _, c := range displaced {
		m.displaced += c.count
		if ownerGone {
			delete(m.sinceIn, string(c.kind.source))
		}
	}
	if !ownerGone && len(displaced) > 1 {
		t.Fatalf("%d kinds displaced at once", len(displaced))
	}
	if m.sinceIn[owner] == nil {
		m.sinceIn[owner] = map[kind]int64{}
	}
	m.sinceIn[owner][k] += n
}

// The table of refused calls counts every call once, keeps its bounds, and keeps an entry for
// every heavy owner and kind: an owner (a network or a user) with more than total/maxOwners
// calls, and a kind with more than 1/places of the calls of its owner, where places is the
// number of entries that each owner can claim.
func TestATableKeepsWhatIsHeavy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		maxOwners := rapid.IntRange(2, 4).Draw(t, "owners")
		maxPlaces := maxOwners * rapid.IntRange(2, 4).Draw(t, "places of each")
		table := newTable(maxOwners, maxPlaces)
		m := &model{owners: map[string]int64{}, sinceIn: map[string]map[kind]int64{}}
		callers, kinds := rapid.IntRange(1, 8).Draw(t, "callers"), rapid.IntRange(1, 30).Draw(t, "kinds")
		for range rapid.IntRange(1, 400).Draw(t, "calls") {
			// The square of a uniform number: a few callers and kinds are heavy, and most are light.
			i, j := rapid.IntRange(0, callers*callers-1).Draw(t, "caller"), rapid.IntRange(0, kinds*kinds-1).Draw(t, "kind")
			owner := fmt.Sprint("owner", root(i))
			m.add(t, table, owner, testKind(owner, root(j)), rapid.Int64Range(1, 3).Draw(t, "n"))
			m.check(t, table)
		}
	})
}

func root(n int) (r int) {
	for (r+1)*(r+1) <= n {
		r++
	}
	return r
}

func (m *model) check(t *rapid.T, table *table) {
	kept, places := m.displaced, 0
	for _, s := range table.owners {
		places += len(s.tallies)
		for _, c := range s.tallies {
			kept += c.count
		}
	}
	if kept != m.total || places != table.places || places > table.maxPlaces || len(table.owners) > table.maxOwners {
		t.Fatalf("%d calls counted of %d; %d places, %d by the counter; %d owners", kept, m.total, places, table.places, len(table.owners))
	}
	for owner, n := range m.owners {
		if s := table.owners[owner]; s == nil && n*int64(table.maxOwners) > m.total {
			t.Fatalf("%s has no share, with %d of %d calls", owner, n, m.total)
		}
	}
	each := int64(table.maxPlaces / min(len(m.owners), table.maxOwners))
	for owner, counts := range m.sinceIn {
		var all int64
		for _, n := range counts {
			all += n
		}
		for k, n := range counts {
			c := table.owners[owner].tallies[k]
			switch {
			case c == nil && n*each > all:
				t.Fatalf("a kind of %s has no place, with %d of %d calls and %d places", owner, n, all, each)
			case c != nil && (c.count > n || c.weight() < n):
				t.Fatalf("a kind of %d calls has the count %d and the weight %d", n, c.count, c.weight())
			}
		}
	}
}

// An owner (a network or a user) that makes ever new kinds of calls takes no entry that another
// owner needs.
func TestAnOwnerTakesNoPlacesOfOthers(t *testing.T) {
	table := newTable(4, 16)
	for n := range 10_000 {
		table.add("flood", testKind("flood", n), 100)
	}
	if n := len(table.owners["flood"].tallies); n != 16 {
		t.Errorf("alone, the flood has %d places of 16", n)
	}
	for n := range 4 {
		for _, owner := range []string{"a", "b", "c"} {
			table.add(owner, testKind(owner, n), 1)
		}
		for m := range 10_000 {
			table.add("flood", testKind("flood", m), 100)
		}
	}
	var places []string
	for _, owner := range []string{"flood", "a", "b", "c"} {
		places = append(places, fmt.Sprint(len(table.owners[owner].tallies)))
	}
	if got := strings.Join(places, " "); got != "4 4 4 4" {
		t.Errorf("the places of the flood and of three others: %s", got)
	}
}
