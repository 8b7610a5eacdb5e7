package store

import (
	"encoding/json"
	"hash/fnv"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// Session is a row of the table sessions.
type Session struct {
	ID          string
	UserID      string
	BornVersion int64 // the field Version of the user at the login
	Audience    []string
	CreatedAt   time.Time
	RefreshedAt time.Time
	EndedAt     time.Time // zero if the session has not been ended
	Generations Generations
}

// Generations holds the numbers by which a refresh token that was used before is recognized.
// The file generation.go of package session describes the numbers.
type Generations struct {
	Current    int64
	Spent      int64
	SpentAt    time.Time
	Low        int64
	EarlierLow int64
	Late       int64
	LateAt     time.Time
	Repeated   int64
	Run        int64
}

const sessionColumns = `id, user_id, born_ver, audience, created_at, refreshed_at, ended_at,
	current, spent, spent_at, low, earlier_low, late, late_at, repeated, run`

// columns returns pointers to the fields, in the order of sessionColumns.
func (s *Session) columns() []any {
	g := &s.Generations
	return []any{&s.ID, &s.UserID, &s.BornVersion, (*stringsColumn)(&s.Audience),
		(*timeColumn)(&s.CreatedAt), (*timeColumn)(&s.RefreshedAt), (*timeColumn)(&s.EndedAt),
		&g.Current, &g.Spent, (*timeColumn)(&g.SpentAt), &g.Low, &g.EarlierLow, &g.Late, (*timeColumn)(&g.LateAt), &g.Repeated, &g.Run}
}

// parseStrings parses a JSON array of strings. An array without escapes is cut into
// pieces, since every refresh parses an audience and json.Unmarshal takes longer. Every
// audience that this program stores is an array without escapes.
func parseStrings(array string) (list []string, err error) {
	inside, ok1 := strings.CutPrefix(array, `["`)
	inside, ok2 := strings.CutSuffix(inside, `"]`)
	list = strings.Split(inside, `","`)
	if ok1 && ok2 && !strings.Contains(inside, `\`) && strings.Count(inside, `"`) == 2*(len(list)-1) {
		return list, nil
	}
	return list, json.Unmarshal([]byte(array), &list)
}

// Session returns the session with an id, and locks the row in a transaction that
// writes. Errors: ErrNotFound.
func (tx *Tx) Session(id string) (*Session, error) {
	s := &Session{}
	return s, tx.queryLocked("sessions", into(s.columns()...), `SELECT `+sessionColumns+` FROM sessions WHERE id = $1`, id)
}

// SessionAndUser returns a session and the session's user by one statement. A
// transaction that writes locks the row of the session only. Errors: ErrNotFound.
func (tx *Tx) SessionAndUser(id string) (*Session, *User, error) {
	s, u := &Session{}, &User{}
	return s, u, tx.queryLocked("s", into(append(s.columns(), u.columns()...)...), sessionAndUser, id)
}

var sessionAndUser = `SELECT ` + qualified("s", sessionColumns) + `, ` + qualified("u", userColumns) + `, ` + floorColumn +
	` FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.id = $1`

// qualified puts a table's alias before the name of each column.
func qualified(alias, columns string) string {
	return alias + "." + strings.Join(strings.Fields(columns), " "+alias+".")
}

// SessionPlace is the place of a session in the list of a user's sessions. The list is in order
// of age: by the user's version at the login, then by time, then by id. The version comes
// first, since a clock may be set back and a version never falls. The zero value is the place
// before the newest session.
type SessionPlace struct {
	BornVersion int64
	CreatedAt   time.Time
	ID          string
}

// Place returns the place of a session.
func (s *Session) Place() SessionPlace { return SessionPlace{s.BornVersion, s.CreatedAt, s.ID} }

// Sessions lists up to limit sessions of a user that were not ended, neither alone nor
// with all sessions of the user, the newest first, beginning after the place `after`. A
// session past its lifetime is listed, too. Sessions reads only the rows that it lists.
func (tx *Tx) Sessions(u *User, after SessionPlace, limit int) ([]*Session, error) {
	version, created := after.BornVersion, micros(after.CreatedAt)
	if after == (SessionPlace{}) {
		version, created = math.MaxInt64, math.MaxInt64
	}
	return queryAll(tx, (*Session).columns, `SELECT `+sessionColumns+` FROM sessions
		WHERE user_id = $1 AND ended_at IS NULL AND born_ver >= $2 AND (born_ver, created_at, id) < ($3, $4, $5)
		ORDER BY born_ver DESC, created_at DESC, id DESC LIMIT $6`,
		u.ID, u.RevokedBelow, version, created, after.ID, limit)
}

// SessionsBeyond lists those sessions of [Tx.Sessions] that are too many if a user is allowed
// to keep `most` sessions. SessionsBeyond lists at most limit sessions, the oldest first. A
// transaction that writes locks the rows. SessionsBeyond reads at most most+2*limit rows.
func (tx *Tx) SessionsBeyond(u *User, most, limit int) (sessions []*Session, err error) {
	return sessions, tx.fail(tx.run.query(func(r row) error {
		s := &Session{}
		sessions = append(sessions, s)
		return r.Scan(s.columns()...)
	}, lockOf("sessions"), `SELECT `+sessionColumns+` FROM sessions WHERE user_id = $1 AND ended_at IS NULL AND born_ver >= $2
		ORDER BY born_ver, created_at, id LIMIT (SELECT count(*) FROM (
			SELECT 1 FROM sessions WHERE user_id = $1 AND ended_at IS NULL AND born_ver >= $2
			ORDER BY born_ver, created_at, id LIMIT $4 OFFSET $3) AS beyond)`, // the order makes PostgreSQL count by the index
		u.ID, u.RevokedBelow, most, limit))
}

// IsRecent reports whether a session is among the newest n sessions of its user, ended or
// not. IsRecent reads at most 2*n rows: n in each of two indexes.
func (tx *Tx) IsRecent(s *Session, n int) (bool, error) {
	var live, ended int
	err := tx.queryRow(into(&live, &ended), `SELECT (`+newerSessions("IS NULL")+`), (`+newerSessions("IS NOT NULL")+`)`,
		s.UserID, s.BornVersion, micros(s.CreatedAt), s.ID, n)
	return live+ended < n, err
}

// newerSessions returns SQL that counts the sessions newer than a given session, up to n.
func newerSessions(ended string) string {
	return `SELECT count(*) FROM (SELECT 1 FROM sessions
		WHERE user_id = $1 AND ended_at ` + ended + ` AND (born_ver, created_at, id) > ($2, $3, $4)
		ORDER BY born_ver, created_at, id LIMIT $5) AS newer` // the order makes PostgreSQL count by the index
}

// InsertSession adds a session.
func (tx *Tx) InsertSession(s *Session) error {
	audience, err := json.Marshal(s.Audience)
	if err != nil {
		return err
	}
	g := s.Generations
	tx.wrote = true
	return tx.fail(tx.run.insertSession(
		s.ID, s.UserID, s.BornVersion, string(audience), micros(s.CreatedAt), micros(s.RefreshedAt), nullMicros(s.EndedAt),
		g.Current, g.Spent, micros(g.SpentAt), g.Low, g.EarlierLow, g.Late, micros(g.LateAt), g.Repeated, g.Run))
}

// SessionRow returns the number of a session's row on SQLite: the rowid. The number is a hash of the
// session's id, so that [Store.Spend] finds the row by the number alone, and skips the index of ids. With a
// million sessions, a new session hits the number of another session once in 70 billion
// logins, and then the login fails. The hash has 56 bits: SQLite stores 56 bits in 8 bytes, and
// 64 bits in 9.
func SessionRow(id string) int64 {
	h := fnv.New64a()
	io.WriteString(h, id)
	return int64(h.Sum64() >> 8)
}

// insertSession also chooses the number of the row, by the id: the first of the values.
func (t sqliteTx) insertSession(columns ...any) error {
	return t.queueExec(`INSERT INTO sessions (`+sessionColumns+`, rowid)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`,
		append(columns, SessionRow(columns[0].(string)))...)
}

func (t *pgTx) insertSession(columns ...any) error {
	return t.queueExec(`INSERT INTO sessions (`+sessionColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`, columns...)
}

// AdvanceSession stores the [Generations] of a session's refresh tokens after a refresh, and
// [Tx.Now] as the time of the refresh. The caller must have read the row in the same transaction.
func (tx *Tx) AdvanceSession(id string, g Generations) error {
	return tx.queueExec(`UPDATE sessions SET refreshed_at = $2, current = $3, spent = $4, spent_at = $5,
		low = $6, earlier_low = $7, late = $8, late_at = $9, repeated = $10, run = $11 WHERE id = $1`,
		id, micros(tx.Now()), g.Current, g.Spent, micros(g.SpentAt), g.Low, g.EarlierLow, g.Late, micros(g.LateAt), g.Repeated, g.Run)
}

// CountRepeat stores the fields Repeated and Run of a session. The caller must have read
// the row in the same transaction.
func (tx *Tx) CountRepeat(id string, g Generations) error {
	return tx.queueExec(`UPDATE sessions SET repeated = $2, run = $3 WHERE id = $1`, id, g.Repeated, g.Run)
}

// EndSession marks a session as ended now, unless the session has ended before. The
// caller must have read the row in the same transaction.
func (tx *Tx) EndSession(id string) error {
	return tx.queueExec(`UPDATE sessions SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL`, id, micros(tx.Now()))
}

// EndedBeyond lists the ids of sessions of a user that have ended and are too many. EndedBeyond
// spares the newest `most` sessions that have ended alone, and the newest `most` sessions that
// have ended with all sessions of the user, and lists up to limit older sessions of each kind.
// For each kind, EndedBeyond reads most+limit entries of an index.
func (tx *Tx) EndedBeyond(u *User, most, limit int) ([]string, error) {
	return queryColumn[string](tx, `SELECT id FROM (`+endedBeyond("ended_at IS NOT NULL")+`) AS alone
		UNION ALL SELECT id FROM (`+endedBeyond("ended_at IS NULL AND born_ver < $4")+`) AS together`, u.ID, most, limit, u.RevokedBelow)
}

// DeleteSessions deletes sessions that have ended. The caller must have read in the same
// transaction that the sessions have ended.
func (tx *Tx) DeleteSessions(ids []string) (err error) {
	slices.Sort(ids) // PruneSessions locks rows in the same order, so no two transactions wait for each other in a circle
	for _, id := range ids {
		if err == nil {
			err = tx.queueExec(`DELETE FROM sessions WHERE id = $1`, id)
		}
	}
	return err
}

// endedBeyond returns SQL for the ids of a user's sessions that meet a condition, without the
// newest $2 of these sessions.
func endedBeyond(condition string) string {
	return `SELECT id FROM sessions WHERE user_id = $1 AND ` + condition + `
		ORDER BY born_ver DESC, created_at DESC, id DESC LIMIT $3 OFFSET $2`
}

// PruneSessions reads up to limit sessions in order of id, beginning after the id
// `after`, and deletes the sessions for which keep returns false. PruneSessions returns
// the last id that it has read, and "" at the end of the table.
func (tx *Tx) PruneSessions(after string, limit int, keep func(*Session) bool) (string, error) {
	sessions, err := queryAll(tx, (*Session).columns,
		`SELECT `+sessionColumns+` FROM sessions WHERE id > $1 ORDER BY id LIMIT $2`, after, limit)
	for _, s := range sessions {
		if err == nil && !keep(s) { // the DELETE spares a session that was refreshed after the read
			err = tx.queueExec(`DELETE FROM sessions WHERE id = $1 AND refreshed_at = $2`, s.ID, micros(s.RefreshedAt))
		}
	}
	if len(sessions) == 0 || len(sessions) < limit {
		return "", err
	}
	return sessions[len(sessions)-1].ID, err
}
