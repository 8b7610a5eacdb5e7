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
	// ownScan bounds the records of a user that one event reads: more than all types of a
	// user's own events can have in an hour.
	ownScan = 2000

	furtherOwn = "further ones in this hour, each of which is counted"
)

// ownTypes are the events that a user causes without bound, on the user's own sessions.
var ownTypes = []Type{Login, Logout, SessionRevoked, UserSessionsRevoked, PasswordChanged, RefreshReused}

// countOwn counts an event in a shared record of the present hour, if the user has caused very
// many events of the type in this hour. countOwn returns true if the event is counted in a
// shared record. The count is raised in the transaction of the event, so every event counts.
// The record keeps the type, the user and the network, and leaves the session out. Each event
// of an admin on another user has a separate record.
func countOwn(tx *store.Tx, r *store.AuditRecord) (bool, error) {
	if r.UserID == "" || r.ActorID != "" && r.ActorID != r.UserID || !slices.Contains(ownTypes, Type(r.Type)) {
		return false, nil
	}
	filter := store.AuditFilter{UserID: r.UserID, Type: r.Type, Start: tx.Now().Truncate(windowLength)}
	records, next, err := tx.Audit(filter, ownScan, ownScan)
	if err != nil {
		return false, err
	}
	single, further := 0, map[caller.Source]string{} // the ids of the records by network
	for _, of := range records {
		switch {
		case of.UserID != r.UserID || of.Success != r.Success || of.ActorID != r.ActorID: // of an admin, or refused
		case of.Detail == furtherOwn:
			further[caller.Source(of.Source)] = of.ID
		default:
			single++
		}
	}
	if single < ownRecords && next == "" {
		return false, nil
	}
	network := caller.Source(caller.Source(r.Source).Network())
	if further[network] == "" && len(further) >= ownSources {
		network = manySources
	}
	if id := further[network]; id != "" {
		return true, tx.RaiseAuditCount(id)
	}
	shared := *r
	shared.Source, shared.SessionID, shared.Detail = string(network), "", furtherOwn
	return true, tx.InsertAudit(&shared)
}
