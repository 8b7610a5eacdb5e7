package store

import (
	"database/sql"
	"strings"
	"time"
)

// User is a user's row.
type User struct {
	ID           string
	Username     string
	PasswordHash string // in PHC form
	Roles        []string
	Disabled     bool
	Version      int64 // access tokens that carry a lower one are stale
	RevokedBelow int64 // sessions born below have ended
	CreatedAt    time.Time
	UpdatedAt    time.Time
	DeletedAt    time.Time // zero: not deleted
}

const userColumns = `id, username, password_hash, roles, disabled, ver, revoked_below, created_at, updated_at, deleted_at`

func (u *User) scan(r row) error {
	into, finish := u.columns()
	err := r.Scan(into...)
	finish()
	return err
}

// columns is where userColumns go to, and what is to be done then.
func (u *User) columns() (into []any, finish func()) {
	var roles string
	var created, updated int64
	var deleted sql.NullInt64
	into = []any{&u.ID, &u.Username, &u.PasswordHash, &roles, &u.Disabled, &u.Version, &u.RevokedBelow, &created, &updated, &deleted}
	return into, func() {
		u.Roles = strings.Fields(roles)
		u.CreatedAt, u.UpdatedAt, u.DeletedAt = fromMicros(created), fromMicros(updated), fromNullMicros(deleted)
	}
}

// User finds a user by id, deleted ones too. ErrNotFound.
func (tx *Tx) User(id string) (*User, error) {
	u := &User{}
	return u, tx.queryLocked("users", u.scan, `SELECT `+userColumns+` FROM users WHERE id = $1`, id)
}

// UserByName finds a user who is not deleted by their folded name. ErrNotFound.
func (tx *Tx) UserByName(username string) (*User, error) {
	u := &User{}
	return u, tx.queryRow(u.scan, `SELECT `+userColumns+` FROM users WHERE username = $1 AND deleted_at IS NULL`, username)
}

// Users lists users who are not deleted, in order of id, from the one behind `after` on.
func (tx *Tx) Users(after string, limit int) ([]*User, error) {
	var users []*User
	err := tx.queryRows(func(r row) error {
		u := &User{}
		users = append(users, u)
		return u.scan(r)
	}, `SELECT `+userColumns+` FROM users WHERE id > $1 AND deleted_at IS NULL ORDER BY id LIMIT $2`, after, limit)
	return users, err
}

// InsertUser adds a user. ErrExists: the name is taken.
func (tx *Tx) InsertUser(u *User) error {
	n, err := tx.exec(`INSERT INTO users (`+userColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING`,
		u.ID, u.Username, u.PasswordHash, strings.Join(u.Roles, " "), u.Disabled, u.Version, u.RevokedBelow,
		micros(u.CreatedAt), micros(u.UpdatedAt), nullMicros(u.DeletedAt))
	if err == nil && n == 0 {
		return ErrExists
	}
	return err
}

// UpdateUser writes a user's row as it shall be. ErrExists: the name is taken,
// and the transaction is to be given up. The caller has read the row in it.
func (tx *Tx) UpdateUser(u *User) error {
	_, err := tx.exec(`UPDATE users SET username = $2, password_hash = $3, roles = $4, disabled = $5, ver = $6,
		revoked_below = $7, updated_at = $8, deleted_at = $9 WHERE id = $1`,
		u.ID, u.Username, u.PasswordHash, strings.Join(u.Roles, " "), u.Disabled, u.Version, u.RevokedBelow,
		micros(u.UpdatedAt), nullMicros(u.DeletedAt))
	return err
}

// RaiseUsers raises the version of up to limit users, deleted ones too, and ends
// their sessions: it becomes `least`, or one more than it is where that is greater.
// It goes in order of id, from the one behind `after` on, and returns the last one
// and how many they were.
func (tx *Tx) RaiseUsers(after string, limit int, least int64) (last string, n int, err error) {
	last = after
	const raised = `CASE WHEN ver >= $1 THEN ver + 1 ELSE $1 END`
	err = tx.queryRows(func(r row) error {
		var id string
		err := r.Scan(&id)
		last, n = max(last, id), n+1
		return err
	}, `UPDATE users SET ver = `+raised+`, revoked_below = `+raised+`, updated_at = $2
		WHERE id IN (SELECT id FROM users WHERE id > $3 ORDER BY id LIMIT $4) RETURNING id`, least, micros(tx.Now()), after, limit)
	return last, n, err
}
