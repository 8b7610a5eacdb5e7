package user

import (
	"errors"
	"slices"

	"github.com/watchword-auth/watchword/internal/store"
)

var (
	// ErrCallerRevoked says that the caller's session has ended, or that their
	// user is disabled or gone.
	ErrCallerRevoked = errors.New("caller's session has ended")
	// ErrCallerStale says that the caller's rights have changed since their
	// token was minted.
	ErrCallerStale = errors.New("caller's rights have changed")
)

// Caller is who asks for a change. It is checked again in the transaction that
// makes the change, since the verifier that let them in may lag. The zero value
// is nobody and may do nothing.
type Caller struct {
	operator bool
	// UserID, SessionID and Version are those of the caller's access token.
	UserID    string
	SessionID string
	Version   int64
	// Roles are those of the access token; good once the check has passed.
	Roles []string
}

// Operator is who works on the database itself, by the command line.
var Operator = Caller{operator: true}

// Is reports whether the caller has a role.
func (c Caller) Is(role string) bool { return slices.Contains(c.Roles, role) }

// MayManage reports whether the caller may see and end a user's sessions: their
// own, and anyone's as an admin.
func (c Caller) MayManage(userID string) bool { return userID == c.UserID || c.Is(Admin) }

// Check judges the caller by the rows: session alive, user enabled, rights
// unchanged. ErrCallerRevoked, ErrCallerStale.
func (c Caller) Check(tx *store.Tx) error {
	if c.operator {
		return nil
	}
	_, _, err := c.Rows(tx)
	return err
}

// Rows checks the caller as every change does, and returns the rows that it
// was checked by. ErrCallerRevoked, ErrCallerStale.
func (c Caller) Rows(tx *store.Tx) (*store.User, *store.Session, error) {
	user, err := tx.User(c.UserID)
	if err != nil {
		return nil, nil, goneIsRevoked(err)
	}
	session, err := tx.Session(c.SessionID)
	if err != nil {
		return nil, nil, goneIsRevoked(err)
	}
	if session.UserID != user.ID || !Alive(session, user) || c.Version < user.RevokedBelow {
		return nil, nil, ErrCallerRevoked
	}
	if c.Version != user.Version {
		return nil, nil, ErrCallerStale
	}
	return user, session, nil
}

// Alive reports whether nobody has ended a session, by itself or with all of
// its user's.
func Alive(session *store.Session, user *store.User) bool {
	return session.EndedAt.IsZero() && session.BornVersion >= user.RevokedBelow &&
		!user.Disabled && user.DeletedAt.IsZero()
}

func goneIsRevoked(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return ErrCallerRevoked
	}
	return err
}
