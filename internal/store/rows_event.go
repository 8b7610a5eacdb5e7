package store

import (
	"time"
)

// EventKind is what an event says.
type EventKind string

// The kinds of events.
const (
	// SessionEnded revokes the access tokens of a session.
	SessionEnded EventKind = "session-ended"
	// VersionStale outdates a user's access tokens below a version.
	VersionStale EventKind = "version-stale"
	// VersionRevoked revokes a user's access tokens below a version.
	VersionRevoked EventKind = "version-revoked"
	// KeysChanged says that signing keys must be read again.
	KeysChanged EventKind = "keys-changed"
)

// Event is one numbered change that verifiers must learn of.
type Event struct {
	Seq       int64  // no gaps; the order of commits
	Tag       []byte // random: tells two histories with the same numbers apart
	Kind      EventKind
	Subject   string // the session's or the user's id
	Version   int64  // of a user: tokens below are concerned
	ExpiresAt time.Time
}

// Head is the number of the newest event that this transaction sees.
func (tx *Tx) Head() (int64, error) {
	var seq int64
	err := tx.one(func(r row) error { return r.Scan(&seq) }, `SELECT seq FROM head WHERE id = 1`)
	return seq, err
}

// AppendEvent gives an event the next number and stores it.
func (tx *Tx) AppendEvent(e *Event) error {
	err := tx.one(func(r row) error { return r.Scan(&e.Seq) }, `UPDATE head SET seq = seq + 1 WHERE id = 1 RETURNING seq`)
	if err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO events (seq, tag, kind, subject, version, expires_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		e.Seq, e.Tag, string(e.Kind), e.Subject, e.Version, micros(e.ExpiresAt))
	return err
}

// Events lists up to limit events with a higher number than `after`, in order.
func (tx *Tx) Events(after int64, limit int) ([]*Event, error) {
	var events []*Event
	err := tx.each(func(r row) error {
		e := &Event{}
		var expires int64
		err := r.Scan(&e.Seq, &e.Tag, &e.Kind, &e.Subject, &e.Version, &expires)
		e.ExpiresAt = fromMicros(expires)
		events = append(events, e)
		return err
	}, `SELECT seq, tag, kind, subject, version, expires_at FROM events WHERE seq > $1 ORDER BY seq LIMIT $2`, after, limit)
	return events, err
}

// PruneEvents deletes up to limit events that have expired, and reports how many.
// The newest stays: by its tag a reader of the tail sees whether the history
// behind it is still the same.
func (tx *Tx) PruneEvents(limit int) (int64, error) {
	return tx.exec(`DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE expires_at <= $1 AND seq < (SELECT seq FROM head WHERE id = 1) ORDER BY expires_at LIMIT $2)`,
		micros(tx.now), limit)
}
