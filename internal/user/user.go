// Package user owns users and their rights: who there is, what they may do, and
// since when.
//
// A user's Version is raised by every change of rights, and access tokens below
// it are stale. RevokedBelow is raised with it where sessions must end: sessions
// born below, and their tokens, are dead, at the same cost for one or ten
// thousand. Both are always raised to a number that was never out before.
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
	// ErrNotFound says that there is no such user.
	ErrNotFound = errors.New("no such user")
	// ErrExists says that the username is taken.
	ErrExists = errors.New("username taken")
)

// Users administers users. It is safe for concurrent use.
type Users struct {
	store     *store.Store
	writer    feed.Writer
	passwords *password.Pool
	audit     *audit.Log
}

// New makes the administration of a store's users.
func New(s *store.Store, w feed.Writer, p *password.Pool, a *audit.Log) *Users {
	return &Users{store: s, writer: w, passwords: p, audit: a}
}

// NewID makes an id of a user or a session.
func NewID() string {
	id := make([]byte, 12)
	rand.Read(id)
	return base64.RawURLEncoding.EncodeToString(id)
}

// Create makes a user. It may return ErrExists, password.ErrTooWeak,
// password.ErrOverloaded, or the caller's.
func (u *Users) Create(ctx context.Context, by caller.Caller, name Name, roles Roles, pw password.Password) (*store.User, error) {
	if err := pw.CheckPolicy(string(name)); err != nil {
		return nil, err
	}
	if err := u.precheck(ctx, name); err != nil {
		return nil, err
	}
	hash, err := u.passwords.Hash(ctx, password.SignedIn, pw)
	if err != nil {
		return nil, err
	}
	var created *store.User
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

// precheck spares a hash for a name that is taken.
func (u *Users) precheck(ctx context.Context, name Name) error {
	return u.store.Read(ctx, func(tx *store.Tx) error {
		_, err := tx.UserByName(string(name))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil {
			return ErrExists
		}
		return err
	})
}

// Insert adds a user with a hash that was made before. ErrExists.
func Insert(tx *store.Tx, name Name, roles Roles, hash string) (*store.User, error) {
	now := tx.Now()
	row := &store.User{
		ID: NewID(), Username: string(name), PasswordHash: hash, Roles: roles,
		Version: nextVersion(0, now), CreatedAt: now, UpdatedAt: now,
	}
	if err := tx.InsertUser(row); err != nil {
		return nil, exists(err)
	}
	return row, tx.SetSetting(hadUser, "yes")
}

// Created is the record of a new user.
func Created(by caller.Caller, row *store.User) audit.Event {
	return audit.Event{Type: audit.UserCreated, ActorID: by.ID, UserID: row.ID, Detail: describe(row)}
}

// describe is what of a user's row decides about their rights.
func describe(row *store.User) string {
	return fmt.Sprintf("username: %s, roles: %s, disabled: %t", row.Username, strings.Join(row.Roles, " "), row.Disabled)
}

// hadUser is the setting that says whether a user was ever made.
const hadUser = "had_user"

// EverMade reports whether the database ever had a user.
func EverMade(tx *store.Tx) (bool, error) {
	had, err := tx.Setting(hadUser)
	return had != "", err
}

// Get finds a user by id. ErrNotFound.
func (u *Users) Get(ctx context.Context, id string) (*store.User, error) {
	var row *store.User
	err := u.store.Read(ctx, func(tx *store.Tx) (err error) {
		row, err = Find(tx, id)
		return err
	})
	return row, err
}

// GetByName finds a user by name. ErrNotFound.
func (u *Users) GetByName(ctx context.Context, name Name) (*store.User, error) {
	var row *store.User
	err := u.store.Read(ctx, func(tx *store.Tx) (err error) {
		row, err = FindByName(tx, name)
		return err
	})
	return row, err
}

// List lists users in order of id, from the one behind `after` on, and says
// whether there are more.
func (u *Users) List(ctx context.Context, after string, limit int) (rows []*store.User, more bool, err error) {
	err = u.store.Read(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Users(after, limit+1)
		return err
	})
	if len(rows) > limit {
		return rows[:limit], true, err
	}
	return rows, false, err
}

// Find finds a user who is not deleted. ErrNotFound.
func Find(tx *store.Tx, id string) (*store.User, error) {
	row, err := tx.User(id)
	if err != nil {
		return nil, notFound(err)
	}
	if !row.DeletedAt.IsZero() {
		return nil, ErrNotFound
	}
	return row, nil
}

// FindByName finds a user by name. ErrNotFound.
func FindByName(tx *store.Tx, name Name) (*store.User, error) {
	row, err := tx.UserByName(string(name))
	return row, notFound(err)
}

// Change is what Update changes; nil leaves a field as it is.
type Change struct {
	Name     *Name
	Roles    *Roles
	Disabled *bool
}

// Update changes a user's name, rights or state. A change of name or roles
// makes access tokens stale; disabling ends every session. It may return
// ErrNotFound, ErrExists, or the caller's.
func (u *Users) Update(ctx context.Context, by caller.Caller, id string, change Change) (*store.User, error) {
	return u.alter(ctx, by, id, audit.UserUpdated, func(row *store.User, _ time.Time) effect {
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

// Delete removes a user for good and ends every session. ErrNotFound, or the
// caller's.
func (u *Users) Delete(ctx context.Context, by caller.Caller, id string) error {
	_, err := u.alter(ctx, by, id, audit.UserDeleted, func(row *store.User, now time.Time) effect {
		row.DeletedAt = now
		row.PasswordHash = "" // nothing is kept that could be guessed at
		return revoked
	})
	return err
}

// RevokeSessions ends every session of a user. ErrNotFound, or the caller's.
func (u *Users) RevokeSessions(ctx context.Context, by caller.Caller, id string) error {
	_, err := u.alter(ctx, by, id, audit.UserSessionsRevoked, func(*store.User, time.Time) effect { return revoked })
	return err
}

// SetPassword gives a user a new password and ends every session. It may return
// ErrNotFound, password.ErrTooWeak, password.ErrOverloaded, or the caller's.
func (u *Users) SetPassword(ctx context.Context, by caller.Caller, id string, pw password.Password) (*store.User, error) {
	before, err := u.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := pw.CheckPolicy(before.Username); err != nil {
		return nil, err
	}
	hash, err := u.passwords.Hash(ctx, password.SignedIn, pw)
	if err != nil {
		return nil, err
	}
	// Whatever hash stands there now, this one was made for this order and
	// outlives it: the order is the one of the commits.
	return u.alter(ctx, by, id, audit.PasswordSet, func(row *store.User, _ time.Time) effect {
		row.PasswordHash = hash
		return revoked
	})
}

// effect is what a change does to tokens that are out.
type effect int

const (
	none effect = iota
	stale
	revoked
)

// alter changes a user's row, raises its version, records it and appends the
// event, in one transaction.
func (u *Users) alter(ctx context.Context, by caller.Caller, id string, what audit.Type, change func(*store.User, time.Time) effect) (*store.User, error) {
	var row *store.User
	err := u.writer.Write(ctx, func(tx *feed.Tx) error {
		if err := by.Check(tx.Tx); err != nil {
			return err
		}
		var err error
		if row, err = Find(tx.Tx, id); err != nil {
			return err
		}
		e := change(row, tx.Now())
		if e == none {
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

// Raise writes a user's changed row with a raised version, and appends that
// tokens below it are stale, or that they and their sessions are revoked.
// ErrExists.
func Raise(tx *feed.Tx, row *store.User, revoke bool) error {
	row.Version = nextVersion(row.Version, tx.Now())
	if revoke {
		row.RevokedBelow = row.Version
	}
	row.UpdatedAt = tx.Now()
	if err := tx.UpdateUser(row); err != nil {
		return exists(err)
	}
	return tx.VersionRaised(row.ID, row.Version, revoke)
}

// RaiseAll raises every user's version and ends every session, in steps, and says
// how many users there were. It appends no event: who calls it withdraws all
// signing keys behind it.
func RaiseAll(ctx context.Context, s *store.Store) (users int, err error) {
	const step = 2000 // rows: some ten milliseconds in which others wait for them
	for after := ""; ; {
		var last string
		var n int
		err := s.Write(ctx, func(tx *store.Tx) (err error) {
			last, n, err = tx.RaiseUsers(after, step, nextVersion(0, tx.Now()))
			return err
		})
		if err != nil {
			return users, err
		}
		if users += n; n < step {
			return users, nil
		}
		after = last
	}
}

// nextVersion is a number that is not out yet: above the last one, and not
// below the clock's seconds, so that a database restored from yesterday does
// not give out today's numbers again.
func nextVersion(version int64, now time.Time) int64 {
	return max(version+1, now.Unix())
}

func exists(err error) error {
	if errors.Is(err, store.ErrExists) {
		return ErrExists
	}
	return err
}

func notFound(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return ErrNotFound
	}
	return err
}
