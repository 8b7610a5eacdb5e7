// Package user administers users and service accounts, with their names and rights.
//
// Each user's row has two numbers, Version and RevokedBelow, which verifiers compare with the
// version in an access token. The version in an access token is the greater of the row's
// Version and the floor for versions, a number in the database ([store.Tx.FloorAndQuestion]),
// at the minting. Every change of a name or of rights raises Version: access tokens with a
// lower version are stale, and the client refreshes. A change of password, disabling and
// deleting also raise RevokedBelow to Version: sessions begun under a lower version have ended,
// and their tokens are revoked. A raised RevokedBelow ends ten thousand sessions at the cost of
// one. A raised number is above the version in every access token that the user got before. A
// service account has no session: only the two numbers revoke its access tokens.
package user

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/store"
)

var (
	// ErrNotFound means that the user is unknown or deleted.
	ErrNotFound = errors.New("no such user")
	// ErrExists means that another user has the name.
	ErrExists = errors.New("username taken")
	// ErrLastAdmin means that the change would leave no enabled user with the role admin.
	ErrLastAdmin = errors.New("the user is the last enabled admin: make another user an admin first")
)

// Users administers users. Users is safe for concurrent use.
type Users struct {
	store     *store.Store
	writer    feed.Writer
	passwords *password.Pool
	audit     *audit.Log
}

// New returns a Users for the users of a database. w commits each change of a user together
// with the event that tells verifiers of the change.
func New(s *store.Store, w feed.Writer, p *password.Pool, a *audit.Log) *Users {
	return &Users{store: s, writer: w, passwords: p, audit: a}
}

// NewID returns a random id for a user or a session: 16 characters of base64url. The first
// character is never "-": a command would take such an id for a flag.
func NewID() string {
	random := make([]byte, 12)
	for {
		rand.Read(random)
		if id := base64.RawURLEncoding.EncodeToString(random); id[0] != '-' {
			return id
		}
	}
}

// Create makes a user.
//
// Errors: ErrMalformed if the name mixes scripts; ErrExists; password.ErrTooWeak;
// password.ErrOverloaded; errors of [caller.Caller.Check] and of the store.
func (u *Users) Create(ctx context.Context, by caller.Caller, name Name, roles Roles, pw password.Password) (created *store.User, err error) {
	if err := name.checkScripts(); err != nil {
		return nil, err
	}
	if err := u.passwords.CheckPolicy(pw, string(name)); err != nil {
		return nil, err
	}
	switch _, err := u.GetByName(ctx, name); { // looks for the name before the hash, which takes long to compute
	case err == nil:
		return nil, ErrExists
	case !errors.Is(err, ErrNotFound):
		return nil, err
	}
	hash, err := u.passwords.Hash(ctx, password.Admin(by.ID), pw)
	if err != nil {
		return nil, err
	}
	err = u.writer.Write(ctx, func(tx *feed.Tx) error {
		if err := by.Check(tx.Tx); err != nil {
			return err
		}
		if created, err = Insert(tx.Tx, name, roles, hash); err != nil {
			return err
		}
		return u.audit.Record(ctx, tx.Tx, Created(by, created))
	})
	return created, err
}

// Insert adds a user with a password hash. Hashing takes long, so the caller makes the
// hash before the transaction.
//
// Errors: ErrExists; errors of the store.
func Insert(tx *store.Tx, name Name, roles Roles, hash string) (*store.User, error) {
	row := &store.User{Username: string(name), PasswordHash: hash, Roles: roles}
	if err := insert(tx, row); err != nil {
		return nil, err
	}
	return row, tx.SetSetting(hadUser, "yes")
}

// insert adds an account: a row with the kind, the name and the rights of the account.
//
// Errors: ErrExists; errors of the store.
func insert(tx *store.Tx, row *store.User) error {
	now := tx.Now()
	row.ID, row.Version, row.CreatedAt, row.UpdatedAt = NewID(), nextVersion(0, now), now, now
	return translate(tx.InsertUser(row))
}

// Created returns the event of a new user for the security record.
func Created(by caller.Caller, row *store.User) audit.Event {
	return audit.Event{Type: audit.UserCreated, ActorID: by.ID, ActorName: by.Name, UserID: row.ID, UserName: row.Username,
		Detail: describe(row.Username, row)}
}

// describe returns the name, the roles and the state of an account as text for the security
// record. If a change has replaced the name, describe also returns the name before the change.
// Of a service account, describe also returns the audiences.
func describe(before string, row *store.User) string {
	name := row.Username
	if before != name {
		name = before + " → " + name
	}
	text := fmt.Sprintf("username: %s, roles: %s, disabled: %t", name, strings.Join(row.Roles, " "), row.Disabled)
	if row.Kind == store.KindService {
		text += fmt.Sprintf(", kind: %s, audiences: %s, delegates_to: %s", row.Kind, strings.Join(row.Audiences, " "), strings.Join(row.DelegatesTo, " "))
	}
	return text
}

// hadUser names a row of the table settings, which is written with the database's first user
// and stays, even if every user is deleted. A service account does not set hadUser, since a
// service account cannot log in and make a user.
const hadUser = "had_user"

// EverMade reports whether the database ever had a user. If the database never had a user, the
// start of a server makes the first admin.
func EverMade(tx *store.Tx) (bool, error) {
	had, err := tx.Setting(hadUser)
	return had != "", err
}

// Get returns the user with an id.
//
// Errors: ErrNotFound; errors of the store.
func (u *Users) Get(ctx context.Context, id string) (row *store.User, err error) {
	err = u.store.Read(ctx, func(tx *store.Tx) (err error) {
		row, err = Find(tx, id)
		return err
	})
	return row, err
}

// GetByName returns the user with a name.
//
// Errors: ErrNotFound; errors of the store.
func (u *Users) GetByName(ctx context.Context, name Name) (row *store.User, err error) {
	err = u.store.Read(ctx, func(tx *store.Tx) (err error) {
		row, err = FindByName(tx, name)
		return err
	})
	return row, err
}

// List returns up to limit accounts of a kind, or of every kind if kind is nil, in order of id,
// beginning after the id `after`. next is the value of `after` for the next page; empty at the
// end.
func (u *Users) List(ctx context.Context, kind *store.UserKind, after string, limit int) (rows []*store.User, next string, err error) {
	err = u.store.Read(ctx, func(tx *store.Tx) (err error) {
		if kind != nil {
			rows, err = tx.UsersOf(*kind, after, limit+1)
		} else {
			rows, err = tx.Users(after, limit+1)
		}
		return err
	})
	if len(rows) > limit {
		return rows[:limit], rows[limit-1].ID, err
	}
	return rows, "", err
}

// Find returns the user with an id, in a transaction.
//
// Errors: ErrNotFound if the user is unknown or deleted; errors of the store.
func Find(tx *store.Tx, id string) (*store.User, error) {
	row, err := tx.User(id)
	switch {
	case err != nil:
		return nil, translate(err)
	case !row.DeletedAt.IsZero():
		return nil, ErrNotFound
	}
	return row, nil
}

// FindByName returns the user with a name, in a transaction.
//
// Errors: ErrNotFound; errors of the store.
func FindByName(tx *store.Tx, name Name) (*store.User, error) {
	row, err := tx.UserByName(string(name))
	return row, translate(err)
}

// Change holds the new values of an account for [Users.Update]. If a field is nil, the account
// keeps the old value.
type Change struct {
	Name        *Name
	Roles       *Roles
	Disabled    *bool
	Audiences   *Audiences
	DelegatesTo *Audiences
	Kind        *store.UserKind // the kind that the caller believes the account to have; another kind gives ErrKind
}

// Update changes the name, the rights or the state of an account. After a new name or new
// rights, access tokens of the account are stale, and the client must get a new token. The
// audiences of a service account are rights too: after a change of audiences, verifiers refuse
// at once the delegated tokens in which the service is an actor. Disabling and enabling an
// account end every session of a user, and revoke the access tokens of a service account.
//
// Errors: ErrMalformed if a new name mixes scripts; ErrNotFound; ErrExists; ErrLastAdmin;
// ErrKind; ErrNotService for audiences of a user; errors of [caller.Caller.Check] and of the
// store.
func (u *Users) Update(ctx context.Context, by caller.Caller, id string, change Change) (*store.User, error) {
	demotes := change.Disabled != nil && *change.Disabled || change.Roles != nil && !slices.Contains(*change.Roles, caller.Admin)
	return u.change(ctx, by, target{id, audit.UserUpdated, demotes}, func(row *store.User, _ time.Time) (e effect, err error) {
		if change.Kind != nil && *change.Kind != row.Kind {
			return unchanged, ErrKind
		}
		e, err = change.scope(row)
		if err != nil {
			return unchanged, err
		}
		if change.Name != nil && string(*change.Name) != row.Username {
			row.Username, e = string(*change.Name), stale
			err = change.Name.checkScripts()
		}
		if change.Roles != nil && !slices.Equal(row.Roles, *change.Roles) {
			row.Roles, e = *change.Roles, stale
		}
		if change.Disabled != nil && *change.Disabled != row.Disabled {
			row.Disabled, e = *change.Disabled, revoked
		}
		return e, err
	})
}

// Delete removes a user and ends every session of the user. For a service account, Delete
// revokes the access tokens.
//
// Errors: ErrNotFound; ErrLastAdmin; errors of [caller.Caller.Check] and of the store.
func (u *Users) Delete(ctx context.Context, by caller.Caller, id string) error {
	_, err := u.change(ctx, by, target{id, audit.UserDeleted, true}, func(row *store.User, now time.Time) (effect, error) {
		row.DeletedAt = now
		row.PasswordHash = "" // an attacker must not be able to guess the password of a deleted user
		return revoked, nil
	})
	return err
}

// RevokeSessions ends every session of a user, and revokes every access token of a service
// account.
//
// Errors: ErrNotFound; errors of [caller.Caller.Check] and of the store.
func (u *Users) RevokeSessions(ctx context.Context, by caller.Caller, id string) error {
	_, err := u.change(ctx, by, target{id: id, what: audit.UserSessionsRevoked}, func(*store.User, time.Time) (effect, error) { return revoked, nil })
	return err
}

// SetPassword gives a user a new password and ends every session of the user. After two calls
// at the same time, the user has the password of the later commit.
//
// Errors: ErrNotFound; ErrService; password.ErrTooWeak; password.ErrOverloaded; errors of
// [caller.Caller.Check] and of the store.
func (u *Users) SetPassword(ctx context.Context, by caller.Caller, id string, pw password.Password) (*store.User, error) {
	row, err := u.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if row.Kind == store.KindService {
		return nil, ErrService
	}
	if err := u.passwords.CheckPolicy(pw, row.Username); err != nil {
		return nil, err
	}
	hash, err := u.passwords.Hash(ctx, password.Admin(by.ID), pw)
	if err != nil {
		return nil, err
	}
	return u.change(ctx, by, target{id: id, what: audit.PasswordSet}, func(row *store.User, _ time.Time) (effect, error) {
		row.PasswordHash = hash
		return revoked, nil
	})
}

// effect says what a change of an account does to the access tokens of the account that were
// minted before the change.
type effect int

const (
	unchanged effect = iota // the row has not changed, and the method change writes nothing
	stale
	revoked
)

// target says which account a change is about, and what kind of change the change is.
type target struct {
	id      string
	what    audit.Type // the type of the event in the security record
	demotes bool       // the change may turn an enabled admin into a user without the role admin, or disable or delete an admin
}

// change applies fn to a user's row, writes the change into the security record, and raises the
// user's version, in one transaction. A change that can take away an enabled admin runs alone,
// at all replicas together. If two changes took away two admins at once, each could find the
// admin of the other change still there, and both could commit: no admin would be left.
func (u *Users) change(ctx context.Context, by caller.Caller, of target, fn func(*store.User, time.Time) (effect, error)) (row *store.User, err error) {
	err = u.writer.Write(ctx, func(tx *feed.Tx) error {
		if of.demotes {
			if err := tx.Exclusive(); err != nil { // before any read, since the change depends on the rows of all admins
				return err
			}
		}
		if err := by.Check(tx.Tx); err != nil {
			return err
		}
		if row, err = Find(tx.Tx, of.id); err != nil {
			return err
		}
		before, admin := row.Username, enabledAdmin(row)
		e, err := fn(row, tx.Now())
		if err != nil || e == unchanged {
			return err
		}
		if admin && !enabledAdmin(row) {
			if another, err := tx.AnotherAdmin(row.ID); err != nil || !another {
				return cmp.Or(err, ErrLastAdmin)
			}
		}
		record := audit.Event{Type: of.what, ActorID: by.ID, ActorName: by.Name, UserID: row.ID, UserName: before}
		if of.what == audit.UserUpdated {
			record.Detail = describe(before, row)
		}
		if err := u.audit.Record(ctx, tx.Tx, record); err != nil {
			return err
		}
		if of.what == audit.UserDeleted {
			if err := u.removeBindings(ctx, tx.Tx, by, row); err != nil {
				return err
			}
		}
		return Raise(tx, row, e == revoked)
	})
	return row, err
}

// enabledAdmin reports whether a row is an enabled admin. Every database must keep at least one
// enabled admin. A service account with the role admin is not an enabled admin: nothing in the
// row shows whether the account can still sign in, since the account's trusted issuer can be
// gone.
func enabledAdmin(row *store.User) bool {
	return row.Kind == store.KindUser && !row.Disabled && row.DeletedAt.IsZero() && slices.Contains(row.Roles, caller.Admin)
}

// Raise writes a user's changed row with a raised version, and appends the event for verifiers.
// Access tokens with lower versions become stale. If revoke is true, the access tokens with
// lower versions and their sessions are revoked instead.
//
// Errors: ErrExists if the new name is taken; errors of the store.
func Raise(tx *feed.Tx, row *store.User, revoke bool) error {
	now := tx.Now()
	floor, err := tx.HoldFloor()
	if err != nil {
		return err
	}
	row.Version = nextVersion(max(row.Version, floor), now)
	if revoke {
		row.RevokedBelow = row.Version
	}
	row.UpdatedAt = now
	if err := tx.UpdateUser(row); err != nil {
		return translate(err)
	}
	return tx.VersionRaised(row.ID, row.Version, revoke)
}

// RaiseAll raises every user's version and so ends every session, in steps, and returns the
// number of users. RaiseAll appends no event for verifiers. Without events, verifiers refuse
// the users' tokens only if the caller withdraws all signing keys afterwards.
func RaiseAll(ctx context.Context, s *store.Store) (users int, err error) {
	const step = 2000 // rows in one transaction: other writers wait for about ten milliseconds
	for after, n := "", step; n == step; users += n {
		var last string // a variable of its own, since the transaction can run again, and must then begin at the same `after`
		err := s.Write(ctx, func(tx *store.Tx) (err error) {
			floor, err := tx.HoldFloor()
			if err != nil {
				return err
			}
			last, n, err = tx.RaiseUsers(after, step, nextVersion(floor, tx.Now()))
			return err
		})
		if err != nil {
			return users, err
		}
		after = last
	}
	return users, nil
}

// nextVersion returns a version that neither the user's row nor an access token ever had: above
// the parameter version, which is the greater of the row's version and the floor for versions
// (the least version of new access tokens), and at least the clock's seconds since 1970.
func nextVersion(version int64, now time.Time) int64 {
	return max(version+1, now.Unix())
}

// translate returns the error of this package for an error of the store, such as ErrNotFound
// for [store.ErrNotFound].
func translate(err error) error {
	switch {
	case errors.Is(err, store.ErrExists):
		return ErrExists
	case errors.Is(err, store.ErrNotFound):
		return ErrNotFound
	}
	return err
}
