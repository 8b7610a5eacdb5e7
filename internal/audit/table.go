package audit

import "github.com/watchword-auth/watchword/internal/caller"

// kind identifies the refused calls that share a record.
type kind struct {
	event  Event
	source caller.Source
}

// isDelegation reports whether the kind counts delegations, and not refused calls.
func (k kind) isDelegation() bool { return k.event.Type == TokenDelegated && k.event.Reason == "" }

// tally counts the refused calls of one kind in one window (an hour).
type tally struct {
	kind    kind
	count   int64 // exact: the calls counted since the kind got its place
	written int64 // the part of count in the record
	logged  int64 // the part of count in the log
	floor   int64 // the weight that the kind inherited when the kind got a place in the table
	id      string
	// displaced is true after another kind has taken the kind's place in the table. The calls
	// in count belong to another tally from then on, and the kind's record must be deleted.
	displaced bool
}

func (t *tally) weight() int64 { return t.floor + t.count }

// table keeps the heaviest kinds of refused calls, in a bounded number of places. Each kind has
// an owner, the network or the user that makes the calls, and the places are divided among the
// owners. table follows Space-Saving, an algorithm that keeps heavy keys although only the keys
// with a place are counted: Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent
// and Top-k Elements in Data Streams", ICDT 2005.
//
// Owners: a new owner above maxOwners displaces the owner with the smallest weight and all
// kinds of that owner. The new owner inherits that weight. So an owner of more than 1/maxOwners
// of the calls has places in the table, also if the owner came late.
//
// Kinds of an owner: while places are free, a new kind takes a place. When all places are
// taken, the owner with the most kinds loses the lightest kind. So an owner with few kinds
// keeps the places that an owner with many kinds asks for. A new kind inherits the weight of
// the kind that the same owner lost last. So every owner can have maxPlaces/maxOwners places
// at least. With n places, an owner keeps each kind that has more than 1/n of the owner's
// calls.
//
// The inherited weights decide only which kind is displaced. Records hold the exact counts.
type table struct {
	maxOwners, maxPlaces int // maxPlaces is a multiple of maxOwners, at least twice maxOwners
	owners               map[string]*owner
	places               int // the number of entries that all owners hold together
}

// owner holds the kinds of one network or user.
type owner struct {
	weight  int64 // the calls of the owner, and the inherited weight
	floor   int64 // the weight that the owner's next kind inherits
	tallies map[kind]*tally
}

func newTable(maxOwners, maxPlaces int) *table {
	return &table{maxOwners: maxOwners, maxPlaces: maxPlaces, owners: map[string]*owner{}}
}

// add counts n calls of a kind. add returns the kinds that have lost their places in the table
// to this kind. If ownerGone is true, displaced holds all kinds of an owner that has lost its
// places. Otherwise displaced holds at most one kind.
func (t *table) add(name string, k kind, n int64) (displaced []*tally, ownerGone bool) {
	o := t.owners[name]
	if o == nil {
		o = &owner{tallies: map[kind]*tally{}}
		if len(t.owners) == t.maxOwners {
			displaced, o.weight = t.dropOwner()
			ownerGone = true
		}
		t.owners[name] = o
	}
	o.weight += n
	c := o.tallies[k]
	if c == nil {
		if t.places == t.maxPlaces {
			displaced = append(displaced, t.largest(o).dropKind())
			t.places--
		}
		c = &tally{kind: k, floor: o.floor}
		o.tallies[k] = c
		t.places++
	}
	c.count += n
	return displaced, ownerGone
}

// dropOwner removes the owner (a network or a user) with the smallest weight, and returns the
// owner's kinds.
func (t *table) dropOwner() (displaced []*tally, weight int64) {
	var lightest string
	var least *owner
	for name, o := range t.owners {
		if least == nil || o.weight < least.weight {
			lightest, least = name, o
		}
	}
	delete(t.owners, lightest)
	t.places -= len(least.tallies)
	for _, c := range least.tallies {
		displaced = append(displaced, c)
	}
	return displaced, least.weight
}

// largest returns the owner with the most kinds, where the owner `grows` counts with one kind more
// than it has: so largest returns `grows` unless another owner has still more kinds.
func (t *table) largest(grows *owner) *owner {
	found, most := grows, len(grows.tallies)+1
	for _, o := range t.owners {
		if o != grows && len(o.tallies) > most {
			found, most = o, len(o.tallies)
		}
	}
	return found
}

// dropKind removes the kind of an owner with the smallest weight (the fewest calls).
func (o *owner) dropKind() *tally {
	var lightest *tally
	for _, c := range o.tallies {
		if lightest == nil || c.weight() < lightest.weight() {
			lightest = c
		}
	}
	delete(o.tallies, lightest.kind)
	o.floor = lightest.weight()
	return lightest
}
