package store

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// UserKind is the kind of an account: what the account signs in by.
type UserKind int

// An account has one of these kinds. The zero UserKind stands for a user.
const (
	KindUser    UserKind = iota // signs in with a password, and has sessions
	KindService                 // a service account: signs in with a token of a trusted issuer
)

// String returns the kind as the column kind holds it.
func (k UserKind) String() string {
	if k == KindService {
		return "SERVICE"
	}
	return "USER"
}

// Scan implements sql.Scanner, for both drivers.
func (k *UserKind) Scan(value any) error {
	for _, known := range []UserKind{KindUser, KindService} {
		if value == known.String() {
			*k = known
			return nil
		}
	}
	return fmt.Errorf("a column should hold the kind of an account, and holds %v", value)
}

// User is a row of the table users: a user or a service account.
type User struct {
	ID           string
	Kind         UserKind // the kind of an account never changes
	Username     string
	PasswordHash string // the hash in PHC form; empty for a service account
	Roles        []string
	Audiences    []string // of a service account: the service's names in the claim aud of tokens, sorted
	DelegatesTo  []string // of a service account: the names of the services to which it is allowed to carry its callers' identity, sorted
	Disabled     bool
	Version      int64 // access tokens with a lower version are stale
	RevokedBelow int64 // sessions with a lower BornVersion have ended
	Floor        int64 // no column of users: the floor for versions (see [Tx.HoldFloor]) when the row was read
	CreatedAt    time.Time
	UpdatedAt    time.Time
	DeletedAt    time.Time // zero if the user was not deleted
}

const userColumns = `id, username, password_hash, roles, disabled, ver, revoked_below, created_at, updated_at, deleted_at,
	kind, audiences, delegates_to`

// userSelect lists the columns of a statement that reads users, in the order of
// [User.columns].
const userSelect = userColumns + `, ` + floorColumn

// TokenVersion returns the version for a new access token of the user: the greater of the row's
// version and the floor for versions. Verifiers may know versions that the database has lost,
// and the floor is above these versions. So verifiers accept a token with the returned version.
func (u *User) TokenVersion() int64 { return max(u.Version, u.Floor) }

// columns returns pointers to the fields, in the order of userColumns and the floor.
func (u *User) columns() []any {
	return []any{&u.ID, &u.Username, &u.PasswordHash, (*wordsColumn)(&u.Roles), &u.Disabled, &u.Version, &u.RevokedBelow,
		(*timeColumn)(&u.CreatedAt), (*timeColumn)(&u.UpdatedAt), (*timeColumn)(&u.DeletedAt),
		&u.Kind, (*wordsColumn)(&u.Audiences), (*wordsColumn)(&u.DelegatesTo), &u.Floor}
}

// User returns the user with an id, even a deleted user, and locks the row in a
// transaction that writes. Errors: ErrNotFound.
func (tx *Tx) User(id string) (*User, error) {
	u := &User{}
	return u, tx.queryLocked("users", into(u.columns()...), `SELECT `+userSelect+` FROM users WHERE id = $1`, id)
}

// UserByName returns the user with a name in its folded form. Deleted users are left out. For
// an unknown name the statement returns a row with as many columns, so that the time of the
// read does not tell which users exist. Errors: ErrNotFound.
func (tx *Tx) UserByName(username string) (*User, error) {
	u := &User{}
	if err := tx.queryRow(into(u.columns()...), userByName, username); err != nil {
		return u, err
	}
	if u.ID == "" {
		return &User{}, ErrNotFound
	}
	return u, nil
}

const userByName = `SELECT COALESCE(u.id, ''), COALESCE(u.username, $1), COALESCE(u.password_hash, ''), COALESCE(u.roles, 'reader'),
	COALESCE(u.disabled, FALSE), COALESCE(u.ver, 0), COALESCE(u.revoked_below, 0), COALESCE(u.created_at, 0), COALESCE(u.updated_at, 0),
	u.deleted_at, COALESCE(u.kind, 'USER'), COALESCE(u.audiences, ''), COALESCE(u.delegates_to, ''), ` + floorColumn + ` FROM (SELECT 1 AS one) AS always LEFT JOIN users u ON u.username = $1 AND u.deleted_at IS NULL`

// Users lists accounts of every kind in order of id, beginning after the id `after`. Deleted
// users are left out.
func (tx *Tx) Users(after string, limit int) ([]*User, error) {
	return queryAll(tx, (*User).columns,
		`SELECT `+userSelect+` FROM users WHERE id > $1 AND deleted_at IS NULL ORDER BY id LIMIT $2`, after, limit)
}

// UsersOf is like [Tx.Users] for the accounts of one kind.
func (tx *Tx) UsersOf(kind UserKind, after string, limit int) ([]*User, error) {
	return queryAll(tx, (*User).columns,
		`SELECT `+userSelect+` FROM users WHERE id > $1 AND deleted_at IS NULL AND kind = '`+kind.String()+`' ORDER BY id LIMIT $2`, after, limit)
}

// AnotherAdmin reports whether an enabled user other than the user with the id has the role
// admin. AnotherAdmin ignores service accounts. A change that depends on the answer must call
// [Tx.Exclusive] first. The conditions on deleted_at, disabled, roles and kind repeat the
// conditions of the index users_admins word for word, so that both engines use the index; the
// condition on id makes SQLite search in the index.
func (tx *Tx) AnotherAdmin(id string) (bool, error) {
	found, err := queryColumn[string](tx, `SELECT id FROM users WHERE deleted_at IS NULL AND NOT disabled
		AND replace(' ' || roles || ' ', ' admin ', '') <> ' ' || roles || ' ' AND kind = 'USER' AND id > '' AND id <> $1 ORDER BY id LIMIT 1`, id)
	return len(found) > 0, err
}

// InsertUser adds a user. Errors: ErrExists if the id or the name is taken. After
// ErrExists the transaction can continue.
func (tx *Tx) InsertUser(u *User) error {
	inserted, err := queryColumn[string](tx, `INSERT INTO users (`+userColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT DO NOTHING RETURNING id`,
		u.ID, u.Username, u.PasswordHash, strings.Join(u.Roles, " "), u.Disabled, u.Version, u.RevokedBelow,
		micros(u.CreatedAt), micros(u.UpdatedAt), nullMicros(u.DeletedAt),
		u.Kind.String(), strings.Join(u.Audiences, " "), strings.Join(u.DelegatesTo, " "))
	if err == nil && len(inserted) == 0 {
		return ErrExists
	}
	if err != nil {
		return err
	}
	return tx.noteUsername(u)
}

// noteUsername keeps the name of a user in the table usernames: [Tx.UserIDs] finds the user by
// the name even after the user gets another name or is deleted.
func (tx *Tx) noteUsername(u *User) error {
	return tx.queueExec(`INSERT INTO usernames (username, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, u.Username, u.ID)
}

// UserIDs lists the ids of up to limit users that have a name or had the name, deleted
// users included.
func (tx *Tx) UserIDs(username string, limit int) ([]string, error) {
	return queryColumn[string](tx, `SELECT id FROM users WHERE username = $1 AND deleted_at IS NULL
		UNION SELECT user_id FROM usernames WHERE username = $1 LIMIT $2`, username, limit)
}

// UpdateUser writes every column except kind and created_at. The caller must have read the row
// in the same transaction. Errors: ErrExists if the name is taken; after ErrExists the
// transaction cannot commit.
func (tx *Tx) UpdateUser(u *User) error {
	if err := tx.noteUsername(u); err != nil {
		return err
	}
	return tx.exec(`UPDATE users SET username = $2, password_hash = $3, roles = $4, disabled = $5, ver = $6,
		revoked_below = $7, updated_at = $8, deleted_at = $9, audiences = $10, delegates_to = $11 WHERE id = $1`,
		u.ID, u.Username, u.PasswordHash, strings.Join(u.Roles, " "), u.Disabled, u.Version, u.RevokedBelow,
		micros(u.UpdatedAt), nullMicros(u.DeletedAt), strings.Join(u.Audiences, " "), strings.Join(u.DelegatesTo, " "))
}

// raised is SQL for a raised version: a version below $1 becomes $1, and a version of $1 or
// more grows by one.
const raised = `CASE WHEN ver >= $1 THEN ver + 1 ELSE $1 END`

// RaiseUsers raises the version of up to limit users, deleted users included, and so
// ends the users' sessions. A version below `least` becomes `least`; a version of
// `least` or more grows by one. RaiseUsers reads the users in order of id, beginning after the id
// `after`, and returns the last id and the number of users.
func (tx *Tx) RaiseUsers(after string, limit int, least int64) (last string, n int, err error) {
	ids, err := queryColumn[string](tx, `UPDATE users SET ver = `+raised+`, revoked_below = `+raised+`, updated_at = $2
		WHERE id IN (SELECT id FROM users WHERE id > $3 ORDER BY id LIMIT $4) RETURNING id`, least, micros(tx.Now()), after, limit)
	return slices.Max(append(ids, after)), len(ids), err // RETURNING returns the ids in any order
}

// Raised holds the raised version of a user.
type Raised struct {
	UserID   string
	Username string
	Version  int64
}

// raiseStep is the number of users in one statement of [Tx.RaiseUsersByID].
const raiseStep = 100

// raiseByID raises the versions of the users with the ids in $3 and the following arguments.
var raiseByID = `UPDATE users SET ver = ` + raised + `, revoked_below = ` + raised + `, updated_at = $2 WHERE id IN (` + placeholders(3, raiseStep) + `) RETURNING id, username, ver`

// placeholders returns a list of n placeholders for a statement: $from, and so on.
func placeholders(from, n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = "$" + strconv.Itoa(from+i)
	}
	return strings.Join(list, ", ")
}

// RaiseUsersByID is like [Tx.RaiseUsers] for the users with the given ids. RaiseUsersByID
// leaves out an id that the table users does not have.
func (tx *Tx) RaiseUsersByID(ids []string, least int64) (all []*Raised, err error) {
	for step := range slices.Chunk(ids, raiseStep) {
		args := []any{least, micros(tx.Now())}
		for i := range raiseStep { // the last step repeats an id: every step runs the same statement
			args = append(args, step[min(i, len(step)-1)])
		}
		some, err := queryAll(tx, func(r *Raised) []any { return []any{&r.UserID, &r.Username, &r.Version} }, raiseByID, args...)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}
