package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// Lifetimes holds the two bounds of a session: Idle for the time between two refreshes, and Max
// for the life of the session.
type Lifetimes struct {
	Idle IdleTTL
	Max  MaxTTL
}

// Admin lists and ends sessions. Admin needs no key of refresh tokens, so the command line
// can end sessions in a database without the master key file. An Admin is safe for concurrent
// use.
type Admin struct {
	lifetimes Lifetimes
	store     *store.Store
	writer    feed.Writer
	users     *user.Users
	audit     *audit.Log
}

// NewAdmin returns the administration of a database's sessions. w commits the end of a session
// together with the event for verifiers.
func NewAdmin(l Lifetimes, s *store.Store, w feed.Writer, u *user.Users, a *audit.Log) *Admin {
	return &Admin{lifetimes: l, store: s, writer: w, users: u, audit: a}
}

// ExpiresAt returns the time at which a session ends if no refresh comes before.
func (a *Admin) ExpiresAt(row *store.Session) time.Time {
	idle, end := row.RefreshedAt.Add(time.Duration(a.lifetimes.Idle)), a.maxEnd(row)
	if idle.Before(end) {
		return idle
	}
	return end
}

// maxEnd returns the latest end of a session, however often the session is refreshed. The end
// is a whole second, since the times in the session's access tokens are whole seconds.
func (a *Admin) maxEnd(row *store.Session) time.Time {
	return row.CreatedAt.Add(time.Duration(a.lifetimes.Max)).Truncate(time.Second)
}

// List returns live sessions of a user, the newest first, beginning after the place `after` in
// the list. next is the value of `after` for the next page, and the zero place at the end of
// the list. List looks at limit sessions, and leaves out the sessions past their lifetime: a
// page can be short or empty although more pages follow.
//
// Errors: ErrNotAllowed if the caller is neither the user nor an admin; ErrAdminAudience;
// user.ErrNotFound, for an admin, if there is no such user.
func (a *Admin) List(ctx context.Context, by caller.Caller, userID string, after store.SessionPlace, limit int) (sessions []*store.Session, next store.SessionPlace, err error) {
	if !by.MayManage(userID) {
		return nil, next, a.notAllowed(ctx, by, userID)
	}
	err = a.store.Read(ctx, func(tx *store.Tx) error {
		u, err := user.Find(tx, userID)
		if err != nil {
			return err
		}
		rows, err := tx.Sessions(u, after, limit+1) // one row more than limit shows that there is a next page
		if len(rows) > limit {
			rows = rows[:limit]
			next = rows[limit-1].Place()
		}
		sessions = slices.DeleteFunc(rows, func(row *store.Session) bool {
			return !caller.Alive(row, u) || !a.ExpiresAt(row).After(tx.Now())
		})
		return err
	})
	return sessions, next, err
}

// FormatPlace returns a place in a list of sessions as text, and "" for the zero place.
func FormatPlace(p store.SessionPlace) string {
	if p == (store.SessionPlace{}) {
		return ""
	}
	return fmt.Sprintf("%x.%x.%s", p.BornVersion, p.CreatedAt.UnixMicro(), p.ID)
}

// ParsePlace returns the place in a list of sessions that [FormatPlace] has made a text of.
func ParsePlace(text string) (p store.SessionPlace, err error) {
	if text == "" {
		return p, nil
	}
	var created int64
	if _, err = fmt.Sscanf(text, "%x.%x.%s", &p.BornVersion, &created, &p.ID); err != nil {
		return p, errors.New("not a place in this list")
	}
	p.CreatedAt = time.UnixMicro(created).UTC()
	return p, nil
}

// Revoke ends a session of the caller. An admin is allowed to end any user's session. If the
// session has ended before, Revoke changes nothing and succeeds.
//
// Errors: ErrNotFound; ErrNotAllowed if the session is another user's and the caller is
// no admin; ErrAdminAudience; errors of [caller.Caller.Check].
func (a *Admin) Revoke(ctx context.Context, by caller.Caller, sessionID string) error {
	return a.writer.Write(ctx, func(tx *feed.Tx) error {
		if err := by.Check(tx.Tx); err != nil {
			return err
		}
		row, u, err := tx.SessionAndUser(sessionID)
		switch {
		case errors.Is(err, store.ErrNotFound) && by.LacksAudience():
			return notAllowed(by, &store.User{})
		case errors.Is(err, store.ErrNotFound):
			return ErrNotFound
		case err != nil:
			return err
		case !by.MayManage(row.UserID):
			return notAllowed(by, u)
		}
		return a.end(ctx, tx, row, u, audit.Event{Type: audit.SessionRevoked, ActorID: by.ID, ActorName: by.Name})
	})
}

// RevokeAll ends every session of the caller. An admin is allowed to end every session of any
// user.
//
// Errors: ErrNotAllowed if the caller is neither the user nor an admin; ErrAdminAudience;
// user.ErrNotFound; errors of [caller.Caller.Check].
func (a *Admin) RevokeAll(ctx context.Context, by caller.Caller, userID string) error {
	if !by.MayManage(userID) {
		return a.notAllowed(ctx, by, userID)
	}
	return a.users.RevokeSessions(ctx, by, userID)
}

// notAllowed returns ErrNotAllowed or ErrAdminAudience with the caller and the user, for the
// security record. If userID is the id of no user, the record leaves the id out: the caller may
// have sent any text as the id.
func (a *Admin) notAllowed(ctx context.Context, by caller.Caller, userID string) error {
	return a.store.Read(ctx, func(tx *store.Tx) error {
		u, err := tx.User(userID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return notAllowed(by, u)
	})
}

func notAllowed(by caller.Caller, u *store.User) error {
	err := ErrNotAllowed
	if by.LacksAudience() {
		err = ErrAdminAudience
	}
	return audit.Refusal{
		ActorID: by.ID, ActorName: by.Name, UserID: u.ID, UserName: u.Username, SessionID: by.SessionID, Err: err,
	}
}

// end ends a session of the user u, unless the session has ended before, and writes why
// into the security record. row must have been read in tx.
func (a *Admin) end(ctx context.Context, tx *feed.Tx, row *store.Session, u *store.User, why audit.Event) error {
	if !row.EndedAt.IsZero() {
		return nil
	}
	if err := tx.EndSession(row.ID); err != nil {
		return err
	}
	why.UserID, why.UserName, why.SessionID = u.ID, u.Username, row.ID
	if err := a.audit.Record(ctx, tx.Tx, why); err != nil {
		return err
	}
	return tx.SessionEnded(row.ID)
}
