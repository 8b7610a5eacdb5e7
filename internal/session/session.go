// Package session owns sessions: Login, Refresh, Logout and what ends them. It
// is plain Go; the gRPC edge is in package rpc.
//
// A session is one row. A refresh token is a session's id, a generation and a
// MAC, and is stored nowhere; spending one is a change of that row, so nothing
// grows with refreshes. Each end of a session is a state of a row and one event
// in the same transaction.
//
// What was read before a password is hashed is checked after it, in the
// transaction that writes: who loses begins again from the read. (An
// administrator's SetPassword depends on nothing that it read.)
package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// What a call of this package may be refused for, besides what the packages
// below say.
var (
	ErrCredentials    = errors.New("unknown user or wrong password")
	ErrUserDisabled   = errors.New("user is disabled")
	ErrAudience       = errors.New("audience that is not issued for, or wider than the login's")
	ErrRefreshInvalid = errors.New("not a refresh token of this server")
	ErrRefreshExpired = errors.New("session unused for too long, too old, or forgotten")
	ErrRefreshReused  = errors.New("refresh token was spent before; its session has ended")
	ErrRevoked        = errors.New("session has ended")
	ErrNotFound       = errors.New("no such session")
)

// Refusal says whom a refused call was about, as far as that is known.
type Refusal struct {
	UserID, SessionID string
	Err               error
}

func (r Refusal) Error() string { return r.Err.Error() }

// Unwrap is the reason.
func (r Refusal) Unwrap() error { return r.Err }

// IdleTTL ends a session that is not refreshed; MaxTTL ends it in any case.
// They have types of their own so that they can't be swapped.
type (
	IdleTTL time.Duration
	MaxTTL  time.Duration
)

// Config is what sessions are made by. Every field is required.
type Config struct {
	Audience []string // all that this server issues for
	Idle     IdleTTL
	Max      MaxTTL
	Grace    time.Duration // within which a lost answer is given again
}

// Sessions starts, refreshes and ends sessions. It is safe for concurrent use.
type Sessions struct {
	cfg       Config
	store     *store.Store
	feed      *feed.Feed
	issuer    *issuer.Issuer
	users     *user.Users
	passwords *password.Pool
	audit     *audit.Log
	macs      *macs
}

// Dependencies are what sessions are built on.
type Dependencies struct {
	Store     *store.Store
	Feed      *feed.Feed
	Issuer    *issuer.Issuer
	Users     *user.Users
	Passwords *password.Pool
	Audit     *audit.Log
	Master    *seal.Keys
}

// Open reads the MAC keys.
func Open(ctx context.Context, cfg Config, d Dependencies) (*Sessions, error) {
	m, err := openMACs(ctx, d.Store, d.Master)
	if err != nil {
		return nil, fmt.Errorf("reading MAC keys: %w", err)
	}
	return &Sessions{
		cfg: cfg, store: d.Store, feed: d.Feed, issuer: d.Issuer, users: d.Users, passwords: d.Passwords, audit: d.Audit, macs: m,
	}, nil
}

// Tokens are what a session hands out.
type Tokens struct {
	Access           string
	Refresh          string
	AccessExpiresIn  time.Duration
	RefreshExpiresIn time.Duration // if it is not used
	SessionID        string
}

// handout is what a transaction leaves to be signed after it.
type handout struct {
	session  *store.Session
	username string
	roles    []string
	version  int64 // the user's
	audience []string
	now      time.Time
}

func newHandout(row *store.Session, u *store.User, audience []string, now time.Time) handout {
	return handout{row, u.Username, u.Roles, u.Version, audience, now}
}

// tokens signs a handout.
func (s *Sessions) tokens(h handout) (*Tokens, error) {
	refresh, err := s.macs.mint(generation{h.session.ID, h.session.Generations.Current})
	if err != nil {
		return nil, err
	}
	access, expires, err := s.issuer.Mint(h.now, issuer.Subject{
		UserID: h.session.UserID, Username: h.username, Roles: h.roles, Version: h.version,
		SessionID: h.session.ID, Audience: h.audience, SessionEnd: s.endsAt(h.session),
	})
	if err != nil {
		return nil, err
	}
	return &Tokens{
		Access: access, Refresh: refresh, SessionID: h.session.ID, AccessExpiresIn: expires,
		RefreshExpiresIn: s.ExpiresAt(h.session).Sub(h.now),
	}, nil
}

// ExpiresAt is when a session ends if it is not refreshed before.
func (s *Sessions) ExpiresAt(row *store.Session) time.Time {
	idle, end := row.RefreshedAt.Add(time.Duration(s.cfg.Idle)), s.endsAt(row)
	if idle.Before(end) {
		return idle
	}
	return end
}

// endsAt is when a session ends in any case: in whole seconds, as its tokens do.
func (s *Sessions) endsAt(row *store.Session) time.Time {
	return row.CreatedAt.Add(time.Duration(s.cfg.Max)).Truncate(time.Second)
}

// start inserts a new session of a user, and records what it began with.
func (s *Sessions) start(ctx context.Context, tx *store.Tx, u *store.User, audience []string, with audit.Type) (handout, error) {
	now := tx.Now()
	row := &store.Session{
		ID: user.NewID(), UserID: u.ID, BornVersion: u.Version, Audience: audience,
		CreatedAt: now, RefreshedAt: now, Generations: store.Generations{Current: 1},
	}
	if err := tx.InsertSession(row); err != nil {
		return handout{}, err
	}
	record := audit.Event{Type: with, ActorID: u.ID, UserID: u.ID, SessionID: row.ID}
	return newHandout(row, u, audience, now), s.audit.Record(ctx, tx, record)
}

// narrow is the audience asked for, if it is no wider than the one allowed;
// none asked for is all that is allowed.
func narrow(asked, allowed []string) ([]string, error) {
	if len(asked) == 0 {
		return allowed, nil
	}
	var audience []string
	for _, a := range asked {
		if !slices.Contains(allowed, a) {
			return nil, ErrAudience
		}
		if !slices.Contains(audience, a) {
			audience = append(audience, a)
		}
	}
	return audience, nil
}

// Logout ends the session of any authentic refresh token, spent or newest, and
// does nothing to one that has ended. When it returns, this server's verifier
// refuses the session's access tokens. It may return ErrRefreshInvalid, or
// ErrRefreshExpired where the session is no longer on record.
func (s *Sessions) Logout(ctx context.Context, refreshToken string) error {
	g, err := s.macs.parse(refreshToken)
	if err != nil {
		return err
	}
	return untilCertain(func() error {
		return s.feed.Write(ctx, func(tx *store.Tx) error {
			row, err := tx.Session(g.sessionID)
			if errors.Is(err, store.ErrNotFound) {
				return ErrRefreshExpired
			}
			if err != nil {
				return err
			}
			return s.end(ctx, tx, row, audit.Event{Type: audit.Logout, ActorID: row.UserID})
		})
	})
}

// untilCertain does something again whose outcome is unknown, a few times. It is
// for what may be done twice.
func untilCertain(do func() error) error {
	const most = 3
	var err error
	for range most {
		if err = do(); !worthRepeating(err) {
			break
		}
	}
	return err
}

// worthRepeating reports whether the outcome is unknown, and not for want of time:
// what is left of it is for telling the caller.
func worthRepeating(err error) bool {
	return errors.Is(err, store.ErrUncertain) && !errors.Is(err, context.DeadlineExceeded)
}

// end ends a session, once, and records why. The row was read in the transaction.
func (s *Sessions) end(ctx context.Context, tx *store.Tx, row *store.Session, why audit.Event) error {
	if !row.EndedAt.IsZero() {
		return nil
	}
	if err := tx.EndSession(row.ID); err != nil {
		return err
	}
	why.UserID, why.SessionID = row.UserID, row.ID
	if err := s.audit.Record(ctx, tx, why); err != nil {
		return err
	}
	return feed.SessionEnded(tx, row.ID)
}

// List lists a user's live sessions in order of id, from the one behind `after`
// on. To a caller who is neither the user nor an admin it says ErrNotFound, to
// an admin user.ErrNotFound where there is no such user.
func (s *Sessions) List(ctx context.Context, by user.Caller, userID, after string, limit int) (sessions []*store.Session, more bool, err error) {
	if !by.MayManage(userID) {
		return nil, false, ErrNotFound
	}
	err = s.store.Read(ctx, func(tx *store.Tx) error {
		u, err := user.Find(tx, userID)
		if err != nil {
			return err
		}
		sessions, more, err = s.live(tx, u, after, limit)
		return err
	})
	return sessions, more, err
}

// live collects a page of live sessions, and looks one further.
func (s *Sessions) live(tx *store.Tx, u *store.User, after string, limit int) (page []*store.Session, more bool, err error) {
	for {
		rows, err := tx.Sessions(u.ID, after, limit+1)
		if err != nil {
			return nil, false, err
		}
		for _, row := range rows {
			after = row.ID
			if !user.Alive(row, u) || !s.ExpiresAt(row).After(tx.Now()) {
				continue
			}
			if len(page) == limit {
				return page, true, nil
			}
			page = append(page, row)
		}
		if len(rows) <= limit {
			return page, false, nil
		}
	}
}

// Revoke ends a session of the caller's own, or anyone's for an admin. It does
// nothing to one that has ended. It may return ErrNotFound, or the caller's.
func (s *Sessions) Revoke(ctx context.Context, by user.Caller, sessionID string) error {
	return s.feed.Write(ctx, func(tx *store.Tx) error {
		if _, _, err := by.Rows(tx); err != nil {
			return err
		}
		row, err := tx.Session(sessionID)
		if errors.Is(err, store.ErrNotFound) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		if !by.MayManage(row.UserID) {
			return ErrNotFound
		}
		return s.end(ctx, tx, row, audit.Event{Type: audit.SessionRevoked, ActorID: by.UserID})
	})
}

// RevokeAll ends every session of the caller, or of anyone for an admin. It may
// return ErrNotFound, user.ErrNotFound, or the caller's.
func (s *Sessions) RevokeAll(ctx context.Context, by user.Caller, userID string) error {
	if !by.MayManage(userID) {
		return ErrNotFound
	}
	return s.users.RevokeSessions(ctx, by, userID)
}

// Prune forgets, in small steps, sessions that nothing can ask about any more.
// An ended one is kept for as long as an unused one lives, so that its refresh
// tokens are told why.
func (s *Sessions) Prune(ctx context.Context) error {
	const step = 200 // rows: about a millisecond of the writer's time
	for after := ""; ; {
		err := s.store.Write(ctx, func(tx *store.Tx) (err error) {
			after, err = tx.PruneSessions(after, step, func(row *store.Session) bool {
				last := row.RefreshedAt
				if row.EndedAt.After(last) {
					last = row.EndedAt
				}
				return tx.Now().Before(last.Add(time.Duration(s.cfg.Idle)))
			})
			return err
		})
		if err != nil || after == "" {
			return err
		}
	}
}
