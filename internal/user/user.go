// Package user owns users, their names and their rights.
//
// Every change of rights raises a user's Version: access tokens with a lower version
// are stale. A change of password, disabling and deleting also raise RevokedBelow:
// sessions begun under a lower version have ended, and their tokens are revoked. The
// cost is the same for one session and for ten thousand. Both numbers are always raised
// to a number never used before.
package user

import (
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
	// ErrNotFound reports an unknown or deleted user.
	ErrNotFound = errors.New("no such user")
	// ErrExists reports a username in use.
	ErrExists = errors.New("username taken")
)

// Users administers users. It is safe for concurrent use.
type Users struct {
	store     *store.Store
	writer    feed.Writer
	passwords *password.Pool
	audit     *audit.Log
}

// New returns the administration of a store's users. w is where changes commit.
func New(s *store.Store, w feed.Writer, p *password.Pool, a *audit.Log) *Users {
	return &Users{store: s, writer: w, passwords: p, audit: a}
}

// NewID returns a random id for a user or a session: 16 characters of base64url.
func NewID() string {
	id := make([]byte, 12)
	rand.Read(id)
	return base64.RawURLEncoding.EncodeToString(id)
}

// Create makes a user.
//
// Errors: ErrExists; password.ErrTooWeak; password.ErrOverloaded; errors of
// [caller.Caller.Check] and of the store.
func (u *Users) Create(ctx context.Context, by caller.Caller, name Name, roles Roles, pw password.Password) (created *store.User, err error) {
	if err := pw.CheckPolicy(string(name)); err != nil {
		return nil, err
	}
	switch _, err := u.GetByName(ctx, name); { // before the cost of a hash
	case err == nil:
		return nil, ErrExists
	case !errors.Is(err, ErrNotFound):
		return nil, err
	}
	hash, err := u.passwords.Hash(ctx, password.SignedIn, pw)
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

// Insert adds a user. The hash was made before the transaction.
//
// Errors: ErrExists; the store's.
func Insert(tx *store.Tx, name Name, roles Roles, hash string) (*store.User, error) {
	now := tx.Now()
	row := &store.User{
		ID: NewID(), Username: string(name), PasswordHash: hash, Roles: roles,
		Version: nextVersion(0, now), CreatedAt: now, UpdatedAt: now,
	}
	if err := tx.InsertUser(row); err != nil {
		return nil, translate(err)
	}
	return row, tx.SetSetting(hadUser, "yes")
}

// Created returns the record of a new user.
func Created(by caller.Caller, row *store.User) audit.Event {
	return audit.Event{Type: audit.UserCreated, ActorID: by.ID, UserID: row.ID, Detail: describe(row)}
}

// describe returns a user's name, rights and state for the record.
func describe(row *store.User) string {
	return fmt.Sprintf("username: %s, roles: %s, disabled: %t", row.Username, strings.Join(row.Roles, " "), row.Disabled)
}

// hadUser names a setting: present from the database's first user on.
const hadUser = "had_user"

// EverMade reports whether the database ever had a user.
func EverMade(tx *store.Tx) (bool, error) {
	had, err := tx.Setting(hadUser)
	return had != "", err
}

// Get returns the user with an id.
//
// Errors: ErrNotFound; the store's.
func (u *Users) Get(ctx context.Context, id string) (row *store.User, err error) {
	err = u.store.Read(ctx, func(tx *store.Tx) (err error) {
		row, err = Find(tx, id)
		return err
	})
	return row, err
}

// GetByName returns the user with a name.
//
// Errors: ErrNotFound; the store's.
func (u *Users) GetByName(ctx context.Context, name Name) (row *store.User, err error) {
	err = u.store.Read(ctx, func(tx *store.Tx) (err error) {
		row, err = FindByName(tx, name)
		return err
	})
	return row, err
}

// List returns up to limit users in order of id, beginning after the id `after`. next is
// the `after` of the next page; empty at the end.
func (u *Users) List(ctx context.Context, after string, limit int) (rows []*store.User, next string, err error) {
	err = u.store.Read(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Users(after, limit+1)
		return err
	})
	if len(rows) > limit {
		return rows[:limit], rows[limit-1].ID, err
	}
	return rows, "", err
}

// Find returns the user with an id, unless the user is deleted.
//
// Errors: ErrNotFound; the store's.
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

// FindByName returns the user with a name.
//
// Errors: ErrNotFound; the store's.
func FindByName(tx *store.Tx, name Name) (*store.User, error) {
	row, err := tx.UserByName(string(name))
	return row, translate(err)
}

// Change holds the new values for Update. A nil field stays as it is.
type Change struct {
	Name     *Name
	Roles    *Roles
	Disabled *bool
}

// Update changes a user's name, rights or state. A new name and new roles make access
// tokens stale. Disabling, and enabling again, end every session.
//
// Errors: ErrNotFound; ErrExists; errors of [caller.Caller.Check] and of the store.
func (u *Users) Update(ctx context.Context, by caller.Caller, id string, change Change) (*store.User, error) {
	return u.change(ctx, by, id, audit.UserUpdated, func(row *store.User, _ time.Time) effect {
		var e effect
		if change.Name != nil && string(*change.Name) != row.Username {
			row.Username, e = string(*change.Name), stale
		}
		if change.Roles != nil && !slices.Equal(row.Roles, *change.Roles) {
			row.Roles, e = *change.Roles, stale
		}
		if change.Disabled != nil && *change.Disabled != row.Disabled {
			row.Disabled, e = *change.Disabled, revoked
		}
		return e
	})
}

// Delete removes a user and ends every session of the user.
//
// Errors: ErrNotFound; errors of [caller.Caller.Check] and of the store.
func (u *Users) Delete(ctx context.Context, by caller.Caller, id string) error {
	_, err := u.change(ctx, by, id, audit.UserDeleted, func(row *store.User, now time.Time) effect {
		row.DeletedAt = now
		row.PasswordHash = "" // a deleted user's password must not be found by guessing
		return revoked
	})
	return err
}

// RevokeSessions ends every session of a user.
//
// Errors: ErrNotFound; errors of [caller.Caller.Check] and of the store.
func (u *Users) RevokeSessions(ctx context.Context, by caller.Caller, id string) error {
	_, err := u.change(ctx, by, id, audit.UserSessionsRevoked, func(*store.User, time.Time) effect { return revoked })
	return err
}

// SetPassword gives a user a new password and ends every session of the user. Of two
// calls at once, the later commit decides the password.
//
// Errors: ErrNotFound; password.ErrTooWeak; password.ErrOverloaded; errors of
// [caller.Caller.Check] and of the store.
func (u *Users) SetPassword(ctx context.Context, by caller.Caller, id string, pw password.Password) (*store.User, error) {
	row, err := u.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := pw.CheckPolicy(row.Username); err != nil {
		return nil, err
	}
	hash, err := u.passwords.Hash(ctx, password.SignedIn, pw)
	if err != nil {
		return nil, err
	}
	return u.change(ctx, by, id, audit.PasswordSet, func(row *store.User, _ time.Time) effect {
		row.PasswordHash = hash
		return revoked
	})
}

// effect is the effect of a change on tokens minted before.
type effect int

const (
	unchanged effect = iota // and nothing is written
	stale
	revoked
)

// change applies fn to a user's row, records the change, and raises the version, in one
// transaction.
func (u *Users) change(ctx context.Context, by caller.Caller, id string, what audit.Type, fn func(*store.User, time.Time) effect) (row *store.User, err error) {
	err = u.writer.Write(ctx, func(tx *feed.Tx) error {
		if err := by.Check(tx.Tx); err != nil {
			return err
		}
		if row, err = Find(tx.Tx, id); err != nil {
			return err
		}
		e := fn(row, tx.Now())
		if e == unchanged {
			return nil
		}
		record := audit.Event{Type: what, ActorID: by.ID, UserID: row.ID}
		if what == audit.UserUpdated {
			record.Detail = describe(row)
		}
		if err := u.audit.Record(ctx, tx.Tx, record); err != nil {
			return err
		}
		return Raise(tx, row, e == revoked)
	})
	return row, err
}

// Raise writes a user's changed row with a raised version, and appends the event: the
// tokens with lower versions are stale, or they and their sessions are revoked.
//
// Errors: ErrExists; the store's.
func Raise(tx *feed.Tx, row *store.User, revoke bool) error {
	row.Version = nextVersion(row.Version, tx.Now())
	if revoke {
		row.RevokedBelow = row.Version
	}
	row.UpdatedAt = tx.Now()
	if err := tx.UpdateUser(row); err != nil {
		return translate(err)
	}
	return tx.VersionRaised(row.ID, row.Version, revoke)
}

// RaiseAll raises every user's version and ends every session, in steps, and returns
// the number of users. RaiseAll appends no event: the caller must withdraw all signing
// keys afterwards.
func RaiseAll(ctx context.Context, s *store.Store) (users int, err error) {
	const step = 2000 // rows: other writers wait for some ten milliseconds
	for after, n := "", step; n == step; users += n {
		var last string // fn may run again, from the same after
		err := s.Write(ctx, func(tx *store.Tx) (err error) {
			last, n, err = tx.RaiseUsers(after, step, nextVersion(0, tx.Now()))
			return err
		})
		if err != nil {
			return users, err
		}
		after = last
	}
	return users, nil
}

// nextVersion returns a version never used before: above the last version, and at least
// the clock's seconds. So a database restored from yesterday does not use today's
// versions again.
func nextVersion(version int64, now time.Time) int64 {
	return max(version+1, now.Unix())
}

// translate returns this package's error for an error of the store.
func translate(err error) error {
	switch {
	case errors.Is(err, store.ErrExists):
		return ErrExists
	case errors.Is(err, store.ErrNotFound):
		return ErrNotFound
	}
	return err
}
