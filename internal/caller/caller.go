// Package caller describes the subject that makes a call (a user, a service account or the
// operator at the command line): the kind of the subject, the rights in the access token,
// whether the subject still has these rights, and the address of the call.
//
// A verifier can accept the access token of a session that has just ended. Therefore every
// change of users, sessions or keys checks its caller again by [Caller.Check], in the
// transaction of the change.
package caller

import (
	"errors"
	"slices"

	"github.com/watchword-auth/watchword/internal/store"
)

// Admin is the role that gives a caller the right to administer users, sessions and keys, if
// the caller's access token is for AdminAudience.
const Admin = "admin"

// AdminAudience is the audience of access tokens for administration. Every server issues tokens
// for AdminAudience, and never for AdminAudience together with another audience: a token that a
// service has received from its caller must not let the service administer anything. The admin
// services in the proto files demand a token for AdminAudience.
const AdminAudience = "watchword"

var (
	// ErrRevoked means that the caller's session has ended, or that the user or the service
	// account is disabled or deleted.
	ErrRevoked = errors.New("caller's session has ended")
	// ErrStale means that the user's name or roles have changed since the access token
	// was made: the client must refresh.
	ErrStale = errors.New("caller's rights have changed")
)

// Kind says whether a [Subject] is a user, a service account or the operator.
type Kind int

// A subject has one of these kinds. A subject with the zero Kind has no rights.
const (
	User     Kind = iota + 1 // a user, with an access token of a session
	Operator                 // a person at the command line, on the database itself
	Service                  // a service account, with an access token without a session
)

// Subject is a user, a service account, or the operator at the command line. The operator has
// no ID.
type Subject struct {
	Kind Kind
	ID   string
}

// Caller holds the subject of a call and the claims of the access token. The zero Caller has no
// rights.
type Caller struct {
	Subject
	Name      string   // the username, as in the token; Check compares Name with the row. Of an operator: the name in the operating system, if known
	SessionID string   // the session in the token; empty for a service account
	Version   int64    // the version in the token, see [store.User.TokenVersion]
	Roles     []string // the roles in the token; Check compares Roles with the row
	Audience  []string // the audience in the token
}

// AtCommandLine is the operator at the command line. [Caller.Check] accepts the
// operator always: the operator can read and write the database anyway.
var AtCommandLine = Caller{Subject: Subject{Kind: Operator}}

// Is reports whether the caller's access token has a role.
func (c Caller) Is(role string) bool { return slices.Contains(c.Roles, role) }

// MayManage reports whether the caller is allowed to see and end a user's sessions. A user manages
// the user's own sessions. An admin manages the sessions of every user, unless LacksAudience is
// true. The operator manages the sessions of every user. A service account has no session, and
// is allowed to revoke its own tokens, unless LacksAudience is true.
func (c Caller) MayManage(userID string) bool {
	own := (c.Kind == User || c.Kind == Service && !c.LacksAudience()) && c.ID == userID
	return c.Kind == Operator || c.Is(Admin) && !c.LacksAudience() || own
}

// LacksAudience reports whether the caller is an admin or a service account with a token for
// other audiences than AdminAudience. A called service could use the caller's token, so a token
// for other audiences administers nothing. The token of a service account also revokes nothing:
// a called service could otherwise end every call that the caller makes, and every token that
// the caller has delegated.
func (c Caller) LacksAudience() bool {
	return (c.Is(Admin) || c.Kind == Service) && !slices.Contains(c.Audience, AdminAudience)
}

// Check compares the caller's access token with the rows of the database: the session
// must be alive, the user enabled, and the rights unchanged. For a service account, which has
// no session, Check compares the account and the rights.
//
// Errors: ErrRevoked; ErrStale; errors of the store.
func (c Caller) Check(tx *store.Tx) error {
	if c.Kind == Operator {
		return nil
	}
	_, _, err := c.Rows(tx)
	return err
}

// Rows checks a user or a service account as [Caller.Check] does, and returns the rows of the
// user and the session. The session of a service account is nil.
func (c Caller) Rows(tx *store.Tx) (*store.User, *store.Session, error) {
	user, err := tx.User(c.ID)
	if err != nil {
		return nil, nil, revokedIfMissing(err)
	}
	var session *store.Session
	alive := c.Kind == Service && user.Kind == store.KindService && !user.Disabled && user.DeletedAt.IsZero()
	if c.Kind != Service {
		if session, err = tx.Session(c.SessionID); err != nil {
			return nil, nil, revokedIfMissing(err)
		}
		alive = session.UserID == user.ID && Alive(session, user)
	}
	if !alive || c.Version < user.RevokedBelow {
		return nil, nil, ErrRevoked
	}
	// A token has a version above the row's version if the floor for versions (the least
	// version of new tokens) was above the row's version when the token was minted. A token has
	// such a version also if the database has lost a change of the user. Therefore the rights
	// in the token must be equal to the rights in the row.
	if c.Version < user.Version || c.Name != user.Username || !slices.Equal(c.Roles, user.Roles) {
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

// Alive reports whether a session lives: no call has ended the session, or every session of the
// user. Alive does not check the lifetime: Alive returns true for an expired session that was
// not ended.
func Alive(session *store.Session, user *store.User) bool {
	return session.EndedAt.IsZero() && session.BornVersion >= user.RevokedBelow &&
		!user.Disabled && user.DeletedAt.IsZero()
}
