package audit

import (
	"slices"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// ownRecords bounds the events of one user and one type that have a record each, in an
	// hour. A person makes some dozens of logins in a day.
	ownRecords = 100
	// ownSources bounds the networks with a record of their own, for each user and hour, after
	// the user has caused ownRecords events in this hour. Events from other networks share one
	// record.
	ownSources = 16
	// ownScan bounds the records of a user that countOwn reads for one event: more records than
	// all types of a user's own events together can have in an hour.
	ownScan = 2000

	furtherOwn = "further ones in this hour, each of which is counted"
)

// ownTypes lists the types of events that a user can cause without bound, on the user's own
// sessions.
var ownTypes = []Type{Login, Logout, SessionRevoked, UserSessionsRevoked, PasswordChanged, RefreshReused}

// countOwn counts an event in a shared record of the present hour, if the user has caused very
// many events of the type in this hour. countOwn returns true if the event is counted in a
// shared record. The count is raised in the transaction of the event, so every event is counted.
// The shared record keeps the type, the user and the network, and leaves the session out. Each
// event of an admin on another user has a separate record.
func countOwn(tx *store.Tx, r *store.AuditRecord) (bool, error) {
	if r.UserID == "" || r.ActorID != "" && r.ActorID != r.UserID || !slices.Contains(ownTypes, Type(r.Type)) {
		return false, nil
	}
	own, err := tx.OwnAudit(r, tx.Now().Truncate(windowLength), furtherOwn, ownScan)
	if err != nil || own.Single < ownRecords && !own.More {
		return false, err
	}
	network := caller.Source(caller.Source(r.Source).Network())
	if own.Shared[string(network)] == "" && len(own.Shared) >= ownSources {
		network = manySources
	}
	if id := own.Shared[string(network)]; id != "" {
		return true, tx.RaiseAuditCount(id)
	}
	shared := *r
	shared.Source, shared.SessionID, shared.Detail = string(network), "", furtherOwn
	return true, tx.InsertAudit(&shared)
}
