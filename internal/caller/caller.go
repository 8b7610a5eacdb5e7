// Package caller knows the subject behind a call: what kind it is, which rights its
// access token carries, whether it still has them, and the address that the call
// came from.
//
// A verifier may lag, so a call that changes something checks its caller again by
// [Caller.Check], in the transaction that makes the change.
package caller

import (
	"errors"
	"slices"

	"github.com/watchword-auth/watchword/internal/store"
)

// Admin is the role that may administer users, sessions and keys.
const Admin = "admin"

var (
	// ErrRevoked reports that the caller's session has ended, or that the caller's
	// user is disabled or deleted.
	ErrRevoked = errors.New("caller's session has ended")
	// ErrStale reports that the caller's rights have changed since the access token
	// was minted.
	ErrStale = errors.New("caller's rights have changed")
)

// Kind is a kind of subject.
type Kind int

// The kinds of subject. The zero value may do nothing.
const (
	User     Kind = iota + 1 // a user, with an access token
	Operator                 // a person at the command line, on the database itself
)

// Subject is a user, or the operator, which has no id.
type Subject struct {
	Kind Kind
	ID   string
}

// Caller is the subject that asks for a change, with what its access token says.
// The zero value may do nothing.
type Caller struct {
	Subject
	SessionID string
	Version   int64    // the user's version when the token was minted
	Roles     []string // those of the token; true once Check has passed
}

// AtCommandLine is the operator. Check always passes.
var AtCommandLine = Caller{Subject: Subject{Kind: Operator}}

// Is reports whether the caller's token has a role.
func (c Caller) Is(role string) bool { return slices.Contains(c.Roles, role) }

// MayManage reports whether the caller may see and end a user's sessions: a user its
// own, an admin and the operator those of every user.
func (c Caller) MayManage(userID string) bool {
	return c.Kind == Operator || c.Is(Admin) || c.Kind == User && c.ID == userID
}

// Check compares the caller's token with the rows: the session must be alive, the
// user enabled, and the rights unchanged.
//
// Errors: ErrRevoked; ErrStale; those of the store.
func (c Caller) Check(tx *store.Tx) error {
	if c.Kind == Operator {
		return nil
	}
	_, _, err := c.Rows(tx)
	return err
}

// Rows does what [Caller.Check] does for a user, and returns the user's and the
// session's row.
func (c Caller) Rows(tx *store.Tx) (*store.User, *store.Session, error) {
	user, err := tx.User(c.ID)
	if err != nil {
		return nil, nil, revokedIfMissing(err)
	}
	session, err := tx.Session(c.SessionID)
	if err != nil {
		return nil, nil, revokedIfMissing(err)
	}
	if session.UserID != user.ID || !Alive(session, user) || c.Version < user.RevokedBelow {
		return nil, nil, ErrRevoked
	}
	if c.Version != user.Version {
		return nil, nil, ErrStale
	}
	return user, session, nil
}

func revokedIfMissing(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return ErrRevoked
	}
	return err
}

// Alive reports whether a session has not been ended, neither by itself nor with all
// sessions of its user. A session that is too old may still be alive.
func Alive(session *store.Session, user *store.User) bool {
	return session.EndedAt.IsZero() && session.BornVersion >= user.RevokedBelow &&
		!user.Disabled && user.DeletedAt.IsZero()
}
