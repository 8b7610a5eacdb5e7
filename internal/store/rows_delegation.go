package store

import (
	"database/sql"
	"strconv"
	"time"
)

// delegatedNotBefore names the setting of [Tx.DelegatedNotBefore], in microseconds since 1970.
const delegatedNotBefore = "delegated_not_before"

const notBeforeColumn = `COALESCE((SELECT CAST(value AS BIGINT) FROM settings WHERE settings.name = '` + delegatedNotBefore + `'), 0)`

// DelegatedNotBefore returns the earliest claim `iat` of delegated tokens that verifiers accept;
// the zero time if no key was ever withdrawn.
func (tx *Tx) DelegatedNotBefore() (time.Time, error) {
	var at int64
	err := tx.queryRow(into(&at), `SELECT `+notBeforeColumn)
	return timeOrZero(at), err
}

// RaiseDelegatedNotBefore raises the setting that DelegatedNotBefore returns, to least. If the
// setting is least or later, RaiseDelegatedNotBefore changes nothing.
func (tx *Tx) RaiseDelegatedNotBefore(least time.Time) error {
	return tx.raiseSetting(delegatedNotBefore, micros(least))
}

func timeOrZero(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return fromMicros(us)
}

// MostStanding is the largest number of accounts that one call of [Tx.Standing] reads.
const MostStanding = 6

// Standing holds the users, the session and the settings that a delegated token (a token by
// which a service acts for a user) depends on, as of one moment.
type Standing struct {
	// Users holds the users by id, deleted users included, without PasswordHash, CreatedAt and
	// UpdatedAt. A missing user is left out.
	Users     map[string]*User
	Session   *Session  // has UserID, BornVersion and EndedAt alone; nil: there is no such session
	NotBefore time.Time // the result of [Tx.DelegatedNotBefore]
	Head      Event     // has Seq and Tag of the newest event; Tag is empty before the first event
	Now       time.Time
}

// Standing reads up to MostStanding users by their ids and a session, by one statement of few
// columns: so minting a delegated token costs little more than the token's two signatures. The
// empty text as session names no session. Standing locks no row.
func (tx *Tx) Standing(session string, ids []string) (*Standing, error) {
	s := &Standing{Users: make(map[string]*User, len(ids))}
	args := []any{session}
	for _, id := range ids {
		args = append(args, id)
	}
	var notBefore int64
	var owner sql.NullString
	var born sql.NullInt64
	var ended timeColumn
	err := tx.queryRows(func(r row) error {
		u := &User{}
		err := r.Scan(&u.ID, &u.Username, (*wordsColumn)(&u.Roles), &u.Disabled, &u.Version, &u.RevokedBelow, (*timeColumn)(&u.DeletedAt),
			&u.Kind, (*wordsColumn)(&u.Audiences), (*wordsColumn)(&u.DelegatesTo), &u.Floor, &notBefore,
			&s.Head.Seq, &s.Head.Tag, &owner, &born, &ended)
		s.Users[u.ID] = u
		return err
	}, standing[len(ids)], args...)
	s.NotBefore, s.Now = timeOrZero(notBefore), tx.Now()
	if owner.Valid {
		s.Session = &Session{ID: session, UserID: owner.String, BornVersion: born.Int64, EndedAt: time.Time(ended)}
	}
	return s, err
}

// standing holds the SQL of [Tx.Standing] for each number of ids, from 0 to MostStanding.
var standing = func() (list [MostStanding + 1]string) {
	for n := range list {
		places := "''" // the id of no user
		for i := range n {
			places += ", $" + strconv.Itoa(i+2)
		}
		list[n] = `SELECT users.id, username, roles, disabled, ver, revoked_below, deleted_at, kind, audiences, delegates_to,
	` + floorColumn + `, ` + notBeforeColumn + `, (SELECT seq FROM head WHERE head.id = 1),
	(SELECT tag FROM events WHERE events.seq = (SELECT seq FROM head WHERE head.id = 1)), s.user_id, s.born_ver, s.ended_at
	FROM users LEFT JOIN sessions s ON s.id = $1 WHERE users.id IN (` + places + `)`
	}
	return list
}()
