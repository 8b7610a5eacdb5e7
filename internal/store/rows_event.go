package store

import (
	"strconv"
	"time"
)

// EventKind tells a verifier what to do after an event.
type EventKind string

// An event has one of these kinds.
const (
	// SessionEnded makes verifiers refuse the access tokens of a session as revoked.
	SessionEnded EventKind = "session-ended"
	// VersionStale makes verifiers refuse a user's access tokens with a version below
	// [Event].Version as stale: the client refreshes, and gets a token that is
	// accepted.
	VersionStale EventKind = "version-stale"
	// VersionRevoked makes verifiers refuse a user's access tokens with a version below
	// [Event].Version as revoked: the sessions have ended.
	VersionRevoked EventKind = "version-revoked"
	// KeysChanged makes the servers read the signing keys again, and send them to
	// verifiers.
	KeysChanged EventKind = "keys-changed"
)

// Event is a row of the table events: a numbered change that every verifier must get.
type Event struct {
	Seq       int64  // the number, in the order of commits and without gaps
	Tag       []byte // random, so that an event of a restored database differs from the lost event with the same number
	Kind      EventKind
	Subject   string // the id of the session or the user
	Version   int64  // the event concerns the user's access tokens with a lower version
	ExpiresAt time.Time
}

func (e *Event) columns() []any {
	return []any{&e.Seq, &e.Tag, &e.Kind, &e.Subject, &e.Version, (*timeColumn)(&e.ExpiresAt)}
}

// Head returns the number of the newest event that this transaction sees.
func (tx *Tx) Head() (int64, error) {
	var seq int64
	err := tx.queryRow(into(&seq), `SELECT seq FROM head WHERE id = 1`)
	return seq, err
}

// HeadInto stores the number and the tag of the newest event in seq and tag, before
// [Store.Write] returns. The newest event may be an event of this transaction. The tag is empty
// before the first event.
func (tx *Tx) HeadInto(seq *int64, tag *[]byte) error {
	return tx.queryAtCommit(into(seq, tag),
		`SELECT seq, (SELECT tag FROM events WHERE events.seq = head.seq) FROM head WHERE id = 1`)
}

// notifyChannel is the channel of PostgreSQL's NOTIFY, by which a replica tells the others that
// it has appended an event or has called [Tx.AskReplicas].
const notifyChannel = "watchword_events"

// AppendEvent stores an event under the next number. e.Seq is set when Write returns.
//
// The stored expiry is e.ExpiresAt plus the longest lifetime of an access token. If the horizon
// (see [Tx.Horizon]) is later than e.ExpiresAt, the clock was ahead at some time: in this case the
// stored expiry is the horizon plus the lifetime, and at most a day later than otherwise. The
// statement reads the lifetime and the horizon after it has locked the row of the table head.
// Every transaction that appends an event waits for this lock, so the statement sees a longer
// lifetime that another transaction has set. The lock is the last lock of the transaction, and
// lasts only for the commit.
func (tx *Tx) AppendEvent(e *Event) error {
	err := tx.queryAtCommit(into(&e.Seq), `UPDATE head SET seq = seq + 1 WHERE id = 1 RETURNING seq`)
	if err != nil {
		return err
	}
	tx.run.hint()
	margin := e.ExpiresAt.Sub(tx.Now())
	return tx.queryAtCommit(nil, `INSERT INTO events (seq, tag, kind, subject, version, expires_at, program)
		SELECT seq, $1, $2, $3, CAST($4 AS BIGINT),
			CASE WHEN horizon.at <= CAST($5 AS BIGINT) THEN CAST($5 AS BIGINT)
				WHEN horizon.at + CAST($6 AS BIGINT) < CAST($7 AS BIGINT) THEN horizon.at + CAST($6 AS BIGINT)
				ELSE CAST($7 AS BIGINT) END
			+ COALESCE((SELECT CAST(value AS BIGINT) FROM settings WHERE name = $8), 0),
			CAST($10 AS BIGINT)
		FROM head, (SELECT COALESCE((SELECT CAST(value AS BIGINT) FROM settings WHERE name = $9), 0) AS at) AS horizon WHERE id = 1`,
		e.Tag, string(e.Kind), e.Subject, e.Version, micros(e.ExpiresAt), margin.Microseconds(), micros(e.ExpiresAt.Add(farAhead)), maxLifetime, horizon, program)
}

// farAhead bounds by how much the database keeps an event longer because the clock was ahead.
// Verifiers, too, keep an event longer by at most farAhead.
const farAhead = 24 * time.Hour

// horizon names the setting with the time that [Tx.Horizon] returns, in microseconds since
// 1970.
const horizon = "horizon"

// Horizon returns a time at or before which every access token of this installation was minted.
func (tx *Tx) Horizon() (time.Time, error) {
	d, err := tx.DurationSetting(horizon)
	return fromMicros(d.Microseconds()), err
}

// RaiseHorizon raises the time that [Tx.Horizon] returns, to at least `to`. A server is allowed to
// mint a token at a time after the old horizon only once the transaction of RaiseHorizon is
// durable.
func (tx *Tx) RaiseHorizon(to time.Time) error { return tx.raiseSetting(horizon, micros(to)) }

// maxLifetime names the setting for the longest lifetime that this installation ever
// gave to an access token, in microseconds.
const maxLifetime = "max_access_ttl"

// MaxLifetime returns the longest lifetime that this installation ever gave to an
// access token, and zero before the first token.
func (tx *Tx) MaxLifetime() (time.Duration, error) { return tx.DurationSetting(maxLifetime) }

// SetMaxLifetime stores the lifetime that MaxLifetime returns. The caller must append
// an event in the same transaction: the lock on the row of the table head then orders
// the new lifetime and the events of other transactions.
func (tx *Tx) SetMaxLifetime(longest time.Duration) error {
	return tx.SetDurationSetting(maxLifetime, longest)
}

// DurationSetting reads a setting that holds a number of microseconds. For a missing setting,
// DurationSetting returns zero.
func (tx *Tx) DurationSetting(name string) (time.Duration, error) {
	value, err := tx.Setting(name)
	if err != nil || value == "" {
		return 0, err
	}
	us, err := strconv.ParseInt(value, 10, 64)
	return time.Duration(us) * time.Microsecond, err
}

// SetDurationSetting writes d into a setting as a number of microseconds.
func (tx *Tx) SetDurationSetting(name string, d time.Duration) error {
	return tx.SetSetting(name, strconv.FormatInt(d.Microseconds(), 10))
}

// Events lists up to limit events with numbers above after, in the order of their
// numbers.
func (tx *Tx) Events(after int64, limit int) ([]*Event, error) {
	return queryAll(tx, (*Event).columns,
		`SELECT seq, tag, kind, subject, version, expires_at FROM events WHERE seq > $1 ORDER BY seq LIMIT $2`, after, limit)
}

// PruneEvents deletes up to limit events that expired before a time, and returns the number of
// deleted events. The newest event stays: by the random tag of the newest event, a reader of
// the events sees whether the database was replaced by an older copy.
func (tx *Tx) PruneEvents(expired time.Time, limit int) (int64, error) {
	return tx.deleteFound(`DELETE FROM events WHERE seq = $1`,
		`SELECT seq FROM events WHERE expires_at <= $1 AND seq < (SELECT seq FROM head WHERE id = 1) ORDER BY expires_at LIMIT $2`,
		micros(expired), limit)
}
