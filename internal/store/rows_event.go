package store

import (
	"strconv"
	"time"
)

// EventKind tells what an event means to a verifier.
type EventKind string

// The kinds of events.
const (
	// SessionEnded revokes the access tokens of a session.
	SessionEnded EventKind = "session-ended"
	// VersionStale outdates a user's access tokens below a version.
	VersionStale EventKind = "version-stale"
	// VersionRevoked revokes a user's access tokens below a version.
	VersionRevoked EventKind = "version-revoked"
	// KeysChanged tells verifiers to read the signing keys again.
	KeysChanged EventKind = "keys-changed"
)

// Event is a row of the table events: a numbered change for all verifiers.
type Event struct {
	Seq       int64  // in the order of commits, without gaps
	Tag       []byte // random; differs between two histories with the same numbers
	Kind      EventKind
	Subject   string // the session's or the user's id
	Version   int64  // of a user; the event concerns tokens below
	ExpiresAt time.Time
}

func (e *Event) columns() []any {
	return []any{&e.Seq, &e.Tag, &e.Kind, &e.Subject, &e.Version, (*timeColumn)(&e.ExpiresAt)}
}

// Head returns the number of the newest event, as seen by this transaction.
func (tx *Tx) Head() (int64, error) {
	var seq int64
	err := tx.queryRow(into(&seq), `SELECT seq FROM head WHERE id = 1`)
	return seq, err
}

// HeadInto sets, before Write returns, the number and the tag of the newest event, the
// events of this transaction included. The tag is empty while there are no events.
func (tx *Tx) HeadInto(seq *int64, tag *[]byte) error {
	return tx.queryAtCommit(into(seq, tag),
		`SELECT seq, (SELECT tag FROM events WHERE events.seq = head.seq) FROM head WHERE id = 1`)
}

// notifyChannel is the channel of PostgreSQL's NOTIFY.
const notifyChannel = "watchword_events"

// AppendEvent stores an event under the next number. e.Seq is set when Write returns.
//
// The stored expiry is e.ExpiresAt plus the longest lifetime of an access token. The
// statement reads that lifetime after locking the head row, for which all appenders
// queue: so no appender misses a longer lifetime set by another. The lock is the
// transaction's last, and lasts no longer than the commit.
func (tx *Tx) AppendEvent(e *Event) error {
	err := tx.queryAtCommit(into(&e.Seq), `UPDATE head SET seq = seq + 1 WHERE id = 1 RETURNING seq`)
	if err != nil {
		return err
	}
	tx.run.hint()
	return tx.queryAtCommit(nil, `INSERT INTO events (seq, tag, kind, subject, version, expires_at)
		SELECT seq, $1, $2, $3, CAST($4 AS BIGINT), CAST($5 AS BIGINT) + COALESCE((SELECT CAST(value AS BIGINT) FROM settings WHERE name = $6), 0)
		FROM head WHERE id = 1`,
		e.Tag, string(e.Kind), e.Subject, e.Version, micros(e.ExpiresAt), maxLifetime)
}

// maxLifetime is the setting for the longest lifetime ever given to an access token of
// this installation, in microseconds.
const maxLifetime = "max_access_ttl"

// MaxLifetime returns the longest lifetime ever given to an access token, and zero
// before the first.
func (tx *Tx) MaxLifetime() (time.Duration, error) { return tx.DurationSetting(maxLifetime) }

// SetMaxLifetime writes the lifetime for MaxLifetime. The caller must append an event
// in the same transaction.
func (tx *Tx) SetMaxLifetime(longest time.Duration) error {
	return tx.SetDurationSetting(maxLifetime, longest)
}

// DurationSetting reads a setting that holds microseconds. A setting never written is
// zero.
func (tx *Tx) DurationSetting(name string) (time.Duration, error) {
	value, err := tx.Setting(name)
	if err != nil || value == "" {
		return 0, err
	}
	us, err := strconv.ParseInt(value, 10, 64)
	return time.Duration(us) * time.Microsecond, err
}

// SetDurationSetting writes a setting in microseconds.
func (tx *Tx) SetDurationSetting(name string, d time.Duration) error {
	return tx.SetSetting(name, strconv.FormatInt(d.Microseconds(), 10))
}

// Events lists up to limit events numbered above after, in order.
func (tx *Tx) Events(after int64, limit int) ([]*Event, error) {
	return queryAll(tx, (*Event).columns,
		`SELECT seq, tag, kind, subject, version, expires_at FROM events WHERE seq > $1 ORDER BY seq LIMIT $2`, after, limit)
}

// PruneEvents deletes up to limit expired events, and returns their number. The newest
// event stays: a reader of the tail compares the tag to notice another history.
func (tx *Tx) PruneEvents(limit int) (int64, error) {
	return tx.deleteFound(`DELETE FROM events WHERE seq = $1`,
		`SELECT seq FROM events WHERE expires_at <= $1 AND seq < (SELECT seq FROM head WHERE id = 1) ORDER BY expires_at LIMIT $2`,
		micros(tx.Now()), limit)
}
