package audit

import (
	"cmp"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
)

const (
	// maxPlaces bounds the kinds, and maxOwners the owners (networks or users), in each table
	// of a window; see [table]. Each of 16 owners has room for four kinds at least.
	maxPlaces = 64
	maxOwners = 16
	// maxServices and maxDelegations bound the table of delegations. The bounds are higher than for
	// refused calls, since admins create the services and audiences of honest delegations. A flush
	// writes all kinds with new calls in one transaction.
	maxServices    = 64
	maxDelegations = 256
)

// manySources is the source in a record that counts refused calls of several sources.
const manySources caller.Source = "many"

// window counts the refused calls of an hour, each call in exactly one tally. When
// a kind loses its place in a table, the calls of the kind move to a coarser tally.
//
//	named      calls that name a user; the owner is the acting user, or else the network
//	 │   └───▶ strangers, without the user, if the network itself has too many kinds
//	 ▼
//	users      type, reason and the user, of many sources
//	 │         strangers  calls that name no user; the owner is the network
//	 ▼             ▼
//	totals     type and reason; the program bounds the number of both
//
// Repeats of refresh tokens have the table repeats; the owner is the user. The count of a
// repeat that loses its place moves to totals. Repeats take no place of a refused call.
//
// Delegations have the table delegations; the owner is the service. The count of a delegation that
// loses its place moves to totals, too.
//
// Calls that name a user have separate tables, so that calls of strangers leave the places of
// these tables free. A network that guesses at ten thousand users fills only the network's own
// places, and the further guesses are counted in a record of the network. Guesses of ten
// thousand networks at one user are on record with the user.
type window struct {
	began                            time.Time
	named, users, strangers, repeats *table
	delegations                      *table
	totals                           map[kind]*tally
	lost                             []string // ids of the records of displaced kinds, to be deleted
	merged                           uint64   // the number of displaced kinds
}

func newWindow(began time.Time) *window {
	places := func() *table { return newTable(maxOwners, maxPlaces) }
	return &window{began: began, named: places(), users: places(), strangers: places(), repeats: places(), totals: map[kind]*tally{}, delegations: newTable(maxServices, maxDelegations)}
}

// countDelegation counts a delegation, of any source.
func (w *window) countDelegation(e Event) {
	displaced, _ := w.delegations.add(e.ActorID, kind{event: e}, 1)
	w.addTotals(displaced)
}

// count counts a refused call, or a repeat of a refresh token, in the tables of the window.
func (w *window) count(e Event, source caller.Source) {
	k := kind{e, caller.Source(source.Network())}
	switch {
	case e.Type == RefreshRepeated:
		displaced, _ := w.repeats.add(e.UserID, k, 1)
		w.addTotals(displaced)
		return
	case !e.namesUser():
		w.addStranger(k, 1)
		return
	}
	displaced, ownerGone := w.named.add(cmp.Or(e.ActorID, string(k.source)), k, 1)
	for _, c := range displaced {
		w.displace(c)
		if ownerGone || c.kind.event.ActorID != "" {
			w.addUser(c.kind.event, c.count)
		} else {
			w.addStranger(kind{Event{Type: c.kind.event.Type, Reason: c.kind.event.Reason}, c.kind.source}, c.count)
		}
	}
}

func (w *window) addStranger(k kind, n int64) {
	displaced, _ := w.strangers.add(string(k.source), k, n)
	w.addTotals(displaced)
}

// addUser counts calls in the table users: for the acting user, or for the user concerned if
// the caller is unknown.
func (w *window) addUser(e Event, n int64) {
	coarse := Event{Type: e.Type, Reason: e.Reason, ActorID: e.ActorID, ActorName: e.ActorName}
	if e.ActorID == "" {
		coarse.UserID, coarse.UserName = e.UserID, e.UserName
	}
	displaced, _ := w.users.add(cmp.Or(e.ActorID, e.UserID), kind{coarse, manySources}, n)
	w.addTotals(displaced)
}

func (w *window) addTotals(displaced []*tally) {
	for _, c := range displaced {
		w.displace(c)
		k := kind{Event{Type: c.kind.event.Type, Reason: c.kind.event.Reason}, manySources}
		if w.totals[k] == nil {
			w.totals[k] = &tally{kind: k}
		}
		w.totals[k].count += c.count
	}
}

func (w *window) displace(c *tally) {
	c.displaced = true
	w.merged++
	if c.id != "" {
		w.lost = append(w.lost, c.id)
	}
}

// tallies lists the tallies of the window.
func (w *window) tallies() (all []*tally) {
	for _, t := range []*table{w.named, w.users, w.strangers, w.repeats, w.delegations} {
		for _, s := range t.owners {
			for _, c := range s.tallies {
				all = append(all, c)
			}
		}
	}
	for _, c := range w.totals {
		all = append(all, c)
	}
	return all
}
