package store

import (
	"strconv"
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
	err := tx.queryRow(func(r row) error { return r.Scan(&seq) }, `SELECT seq FROM head WHERE id = 1`)
	return seq, err
}

// HeadInto fills in, by the time that Write returns, the number and the tag of the
// newest event that this transaction sees, its own among them. There is no tag
// where there was no event.
func (tx *Tx) HeadInto(seq *int64, tag *[]byte) error {
	return tx.queryAtCommit(func(r row) error { return r.Scan(seq, tag) },
		`SELECT seq, (SELECT tag FROM events WHERE events.seq = head.seq) FROM head WHERE id = 1`)
}

// notify is a channel of PostgreSQL.
const notify = "watchword_events"

// AppendEvent gives an event the next number and stores it; the number is in the
// event when Write returns. ExpiresAt is given without the longest lifetime of an
// access token, and is stored with it: this is read behind the lock that all
// appenders queue for, so that none misses a longer one which another has set.
// That lock is the transaction's last, and held for no more than the commit.
func (tx *Tx) AppendEvent(e *Event) error {
	err := tx.queryAtCommit(func(r row) error { return r.Scan(&e.Seq) }, `UPDATE head SET seq = seq + 1 WHERE id = 1 RETURNING seq`)
	if err != nil {
		return err
	}
	tx.run.hint()
	return tx.queryAtCommit(nil, `INSERT INTO events (seq, tag, kind, subject, version, expires_at)
		SELECT seq, $1, $2, $3, CAST($4 AS BIGINT), CAST($5 AS BIGINT) + COALESCE((SELECT CAST(value AS BIGINT) FROM settings WHERE name = $6), 0)
		FROM head WHERE id = 1`,
		e.Tag, string(e.Kind), e.Subject, e.Version, micros(e.ExpiresAt), maxLifetime)
}

// maxLifetime is the setting that holds the longest lifetime, in microseconds,
// that an access token of this installation was ever given.
const maxLifetime = "max_access_ttl"

// MaxLifetime is the longest lifetime that an access token was ever given; zero,
// where none was.
func (tx *Tx) MaxLifetime() (time.Duration, error) {
	value, err := tx.Setting(maxLifetime)
	if err != nil || value == "" {
		return 0, err
	}
	us, err := strconv.ParseInt(value, 10, 64)
	return time.Duration(us) * time.Microsecond, err
}

// SetMaxLifetime writes it. An event goes with it, in the same transaction.
func (tx *Tx) SetMaxLifetime(longest time.Duration) error {
	return tx.SetSetting(maxLifetime, strconv.FormatInt(longest.Microseconds(), 10))
}

// Events lists up to limit events with a higher number than `after`, in order.
func (tx *Tx) Events(after int64, limit int) ([]*Event, error) {
	var events []*Event
	err := tx.queryRows(func(r row) error {
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
	return tx.deleteFound(`DELETE FROM events WHERE seq = $1`,
		`SELECT seq FROM events WHERE expires_at <= $1 AND seq < (SELECT seq FROM head WHERE id = 1) ORDER BY expires_at LIMIT $2`,
		micros(tx.Now()), limit)
}
