package store

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Session is a session's row.
type Session struct {
	ID          string
	UserID      string
	BornVersion int64 // the user's Version at login
	Audience    []string
	CreatedAt   time.Time
	RefreshedAt time.Time
	EndedAt     time.Time // zero: not ended by anyone
	Generations Generations
}

// Generations is how far a session's refresh token has come. Package session
// says what the numbers mean.
type Generations struct {
	Current    int64
	Spent      int64
	SpentAt    time.Time
	Low        int64
	EarlierLow int64
	Late       int64
	LateAt     time.Time
}

const sessionColumns = `id, user_id, born_ver, audience, created_at, refreshed_at, ended_at,
	current, spent, spent_at, low, earlier_low, late, late_at`

func (s *Session) scan(r row) error {
	into, finish := s.columns()
	if err := r.Scan(into...); err != nil {
		return err
	}
	return finish()
}

// columns is where sessionColumns go to, and what is to be done then.
func (s *Session) columns() (into []any, finish func() error) {
	var audience string
	var created, refreshed, spentAt, lateAt int64
	var ended sql.NullInt64
	g := &s.Generations
	into = []any{&s.ID, &s.UserID, &s.BornVersion, &audience, &created, &refreshed, &ended,
		&g.Current, &g.Spent, &spentAt, &g.Low, &g.EarlierLow, &g.Late, &lateAt}
	return into, func() error {
		s.CreatedAt, s.RefreshedAt, s.EndedAt = fromMicros(created), fromMicros(refreshed), fromNullMicros(ended)
		g.SpentAt, g.LateAt = fromMicros(spentAt), fromMicros(lateAt)
		var err error
		if s.Audience, err = parseStrings(audience); err != nil {
			return fmt.Errorf("session %s: audience: %w", s.ID, err)
		}
		return nil
	}
}

// parseStrings reads a JSON array of strings. Where nothing is escaped, as is
// so of audiences, it is cut into pieces, for every refresh comes here.
func parseStrings(array string) (list []string, err error) {
	inside, ok1 := strings.CutPrefix(array, `["`)
	inside, ok2 := strings.CutSuffix(inside, `"]`)
	list = strings.Split(inside, `","`)
	if ok1 && ok2 && !strings.Contains(inside, `\`) && strings.Count(inside, `"`) == 2*(len(list)-1) {
		return list, nil
	}
	return list, json.Unmarshal([]byte(array), &list)
}

// Session finds a session by id. ErrNotFound.
func (tx *Tx) Session(id string) (*Session, error) {
	s := &Session{}
	return s, tx.queryLocked("sessions", s.scan, `SELECT `+sessionColumns+` FROM sessions WHERE id = $1`, id)
}

// SessionAndUser finds a session and whose it is, in one statement. The session
// stays as it is, and the user may change meanwhile. ErrNotFound.
func (tx *Tx) SessionAndUser(id string) (*Session, *User, error) {
	s, u := &Session{}, &User{}
	err := tx.queryLocked("s", func(r row) error {
		session, finishSession := s.columns()
		user, finishUser := u.columns()
		if err := r.Scan(append(session, user...)...); err != nil {
			return err
		}
		finishUser()
		return finishSession()
	}, sessionAndUser, id)
	return s, u, err
}

var sessionAndUser = `SELECT ` + qualified("s", sessionColumns) + `, ` + qualified("u", userColumns) +
	` FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.id = $1`

// of names the columns of a table by its alias.
func qualified(alias, columns string) string {
	return alias + "." + strings.Join(strings.Fields(columns), " "+alias+".")
}

// Sessions lists a user's sessions that nobody has ended, in order of id, from
// the one behind `after` on; those that only grew old are among them.
func (tx *Tx) Sessions(userID, after string, limit int) ([]*Session, error) {
	var sessions []*Session
	err := tx.queryRows(func(r row) error {
		s := &Session{}
		sessions = append(sessions, s)
		return s.scan(r)
	}, `SELECT `+sessionColumns+` FROM sessions WHERE user_id = $1 AND id > $2 AND ended_at IS NULL ORDER BY id LIMIT $3`,
		userID, after, limit)
	return sessions, err
}

// InsertSession adds a session.
func (tx *Tx) InsertSession(s *Session) error {
	audience, err := json.Marshal(s.Audience)
	if err != nil {
		return err
	}
	g := s.Generations
	return tx.queueExec(`INSERT INTO sessions (`+sessionColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		s.ID, s.UserID, s.BornVersion, string(audience), micros(s.CreatedAt), micros(s.RefreshedAt), nullMicros(s.EndedAt),
		g.Current, g.Spent, micros(g.SpentAt), g.Low, g.EarlierLow, g.Late, micros(g.LateAt))
}

// AdvanceSession writes a session's generations and marks it refreshed now.
// The caller has read the row in this transaction.
func (tx *Tx) AdvanceSession(id string, g Generations) error {
	return tx.queueExec(`UPDATE sessions SET refreshed_at = $2, current = $3, spent = $4, spent_at = $5,
		low = $6, earlier_low = $7, late = $8, late_at = $9 WHERE id = $1`,
		id, micros(tx.Now()), g.Current, g.Spent, micros(g.SpentAt), g.Low, g.EarlierLow, g.Late, micros(g.LateAt))
}

// EndSession marks a session as ended now. The caller has read the row in this
// transaction.
func (tx *Tx) EndSession(id string) error {
	return tx.queueExec(`UPDATE sessions SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL`, id, micros(tx.Now()))
}

// PruneSessions looks at up to limit sessions, in order of id from the one
// behind `after` on, and deletes those that keep refuses. It returns the last
// id that it looked at: empty, when the end was reached.
func (tx *Tx) PruneSessions(after string, limit int, keep func(*Session) bool) (string, error) {
	var last string
	var dead []*Session
	n := 0
	err := tx.queryRows(func(r row) error {
		s := &Session{}
		if err := s.scan(r); err != nil {
			return err
		}
		n, last = n+1, s.ID
		if !keep(s) {
			dead = append(dead, s)
		}
		return nil
	}, `SELECT `+sessionColumns+` FROM sessions WHERE id > $1 ORDER BY id LIMIT $2`, after, limit)
	for _, s := range dead {
		if err == nil { // unless it was refreshed since it was read
			err = tx.queueExec(`DELETE FROM sessions WHERE id = $1 AND refreshed_at = $2`, s.ID, micros(s.RefreshedAt))
		}
	}
	if n < limit {
		last = ""
	}
	return last, err
}
