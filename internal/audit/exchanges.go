package audit

import (
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

// exchanges bounds the records of token exchanges as [countOwn] bounds those of logins: the
// first ownRecords exchanges of a service account in an hour have a record each, and further
// exchanges from one network share a record. Every replica counts separately.
//
// An exchange costs one statement, since exchanges remembers in memory what countOwn reads
// from the database: services exchange far more often than users log in. The memory is a few
// hundred bytes for each account with exchanges in this hour. A zero exchanges is ready for use.
type exchanges struct {
	mu       sync.Mutex
	hour     time.Time
	accounts map[string]*exchanged // the counts of each account, by user id
}

// exchanged holds the number and the shared records of the exchanges of one service account in
// the present hour.
type exchanged struct {
	single  int                      // the number of records that stand for one exchange each
	further map[caller.Source]string // the ids of the shared records by network
}

// insert inserts a record of an exchange, or counts the exchange in the shared record of the
// network.
func (x *exchanges) insert(tx *store.Tx, r *store.AuditRecord) error {
	network, id, single := x.find(r, tx.Now())
	if single {
		tx.OnCommit(func() { x.note(r.UserID, func(of *exchanged) { of.single++ }) })
		return tx.InsertAudit(r)
	}
	if id != "" { // the record can be gone: pruned, or lost with a PostgreSQL primary
		if raised, err := tx.RaiseAuditCountIfThere(id); err != nil || raised {
			return err
		}
	}
	shared := *r
	shared.Source, shared.Detail = string(network), furtherOwn
	tx.OnCommit(func() { x.note(r.UserID, func(of *exchanged) { of.further[network] = shared.ID }) })
	return tx.InsertAudit(&shared)
}

// find returns in which record an exchange counts: in a record of its own (single), or in the
// shared record of a network with the given id; id is empty if the network has no shared record
// yet.
func (x *exchanges) find(r *store.AuditRecord, now time.Time) (network caller.Source, id string, single bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if hour := now.Truncate(windowLength); !hour.Equal(x.hour) {
		x.hour, x.accounts = hour, map[string]*exchanged{}
	}
	of := x.ofLocked(r.UserID)
	network = caller.Source(caller.Source(r.Source).Network())
	if of.further[network] == "" && len(of.further) >= ownSources {
		network = manySources
	}
	return network, of.further[network], of.single < ownRecords
}

func (x *exchanges) note(userID string, change func(*exchanged)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change(x.ofLocked(userID))
}

func (x *exchanges) ofLocked(userID string) *exchanged {
	of := x.accounts[userID]
	if of == nil {
		of = &exchanged{further: map[caller.Source]string{}}
		x.accounts[userID] = of
	}
	return of
}
