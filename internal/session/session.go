// Package session owns sessions: their start, their refresh tokens and their end.
// Package login checks the user's password; package session knows no password.
//
// A session is one row of the database. The database stores no refresh token: a refresh token
// holds the session's id, a generation (the number of the token in the session) and a MAC.
// Spending a refresh token changes the session's row, so no table grows with refreshes. The end
// of a session is a time in the row and one event for verifiers, in one transaction.
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
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/spans"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// Package session refuses calls with these errors. The texts of the errors are for logs.
// Package rpc turns each error into the reason that a client gets.
var (
	ErrAudience       = errors.New("the server does not issue for this audience, or the login did not name it")
	ErrNotAlone       = errors.New("the audience " + caller.AdminAudience + " must be the only audience")
	ErrRefreshInvalid = errors.New("not a refresh token of this server") // the token is malformed, or has a wrong MAC
	ErrRefreshExpired = errors.New("session unused for too long, too old, or pruned")
	ErrRefreshReused  = errors.New("refresh token was spent before; the session has ended")
	ErrRevoked        = errors.New("session has ended") // ended by a logout, an admin, a new password or a reused refresh token
	ErrNotFound       = errors.New("no such session")
	// ErrNotAllowed means that the caller names sessions of another user without the right to
	// see or end the sessions. For ErrNotAllowed, the client gets the same answer as for
	// ErrNotFound. The security record gets the reason ROLE_REQUIRED.
	ErrNotAllowed = errors.New("sessions of another user")
	// ErrAdminAudience means that an admin names sessions of another user with a token that is
	// not for caller.AdminAudience. The error does not tell whether the session or the user
	// exists.
	ErrAdminAudience = errors.New("not an own session, and the token is not for the audience " + caller.AdminAudience)
)

// IdleTTL bounds the time between two refreshes of a session, and MaxTTL bounds the
// life of a session. IdleTTL and MaxTTL are two types, so that no caller swaps the two
// durations.
type (
	IdleTTL time.Duration
	MaxTTL  time.Duration
)

// Config holds the settings of sessions. Every field is required.
type Config struct {
	Lifetimes
	Audience []string      // the services for which this server issues tokens, apart from caller.AdminAudience
	PerUser  int           // --max-sessions: the largest number of sessions of one user
	Grace    time.Duration // --refresh-grace: how long a spent refresh token gets the same answer again
	Repeats  int           // --refresh-repeats: in how many successive generations a spent token may come again
}

// Dependencies holds the parts of the server that Sessions uses. Every field is required.
type Dependencies struct {
	Store  *store.Store
	Feed   *feed.Feed
	Issuer *issuer.Issuer
	Users  *user.Users
	Audit  *audit.Log
	Master *seal.Keys
}

// Sessions starts, refreshes and ends sessions. Sessions is safe for concurrent use.
type Sessions struct {
	*Admin
	cfg Config
	d   Dependencies
	// appends commits events, and does not wait until this server's own verifier has received
	// the events. spendAny waits for the verifier afterwards, and only if a session has ended.
	appends feed.Writer
	macs    *macs
	turns   *share.Turns // bounds the refreshes and logouts of one session, by the id of the session
}

// Open reads the MAC keys of refresh tokens and returns Sessions.
func Open(ctx context.Context, cfg Config, d Dependencies) (*Sessions, error) {
	m, err := openMACs(ctx, d.Store, d.Master)
	if err != nil {
		return nil, fmt.Errorf("reading MAC keys: %w", err)
	}
	return &Sessions{Admin: NewAdmin(cfg.Lifetimes, d.Store, d.Feed, d.Users, d.Audit), cfg: cfg, d: d, appends: feed.Direct(d.Store), macs: m, turns: share.NewTurns(callsAtOnce, callsWaiting)}, nil
}

// Tokens holds a new access token and a new refresh token of a session.
type Tokens struct {
	Access           string
	Refresh          string
	AccessExpiresIn  time.Duration
	RefreshExpiresIn time.Duration // the session ends after this time, unless the refresh token is used before
	SessionID        string
	UserID           string
}

// A Grant holds the content of new tokens. A transaction returns a Grant, and [Sessions.Sign]
// makes the tokens outside of the transaction: a signature inside the transaction would keep the
// transaction's locks for longer. The client gets the tokens after the commit.
type Grant struct {
	session  *store.Session // has at least the fields that Sign reads
	username string
	roles    []string
	version  int64 // the version of the access token, see [store.User.TokenVersion]
	audience []string
	now      time.Time
	ended    bool // the transaction has ended another session of the user
}

// newGrant returns the grant for a session and its user, as read in a transaction.
func newGrant(row *store.Session, u *store.User, audience []string, now time.Time) *Grant {
	return &Grant{session: row, username: u.Username, roles: u.Roles, version: u.TokenVersion(), audience: audience, now: now}
}

// Sign makes the access token and the refresh token of a grant. If another session has ended to
// make room for the new session, Sign first waits until this server's own verifier has received
// the end.
func (s *Sessions) Sign(ctx context.Context, g *Grant) (*Tokens, error) {
	ctx, signing := spans.Start(ctx, "session.sign")
	defer signing.End()
	if g.ended {
		if err := s.d.Feed.Sync(ctx); err != nil {
			return nil, err
		}
	}
	refresh, err := s.macs.mint(generation{g.session.ID, g.session.Generations.Current})
	if err != nil {
		return nil, err
	}
	access, expires, err := s.d.Issuer.Mint(ctx, g.now, issuer.Subject{
		UserID: g.session.UserID, Username: g.username, Roles: g.roles, Version: g.version,
		SessionID: g.session.ID, Audience: g.audience, SessionEnd: s.maxEnd(g.session),
	})
	if err != nil {
		return nil, err
	}
	return &Tokens{
		Access: access, Refresh: refresh, SessionID: g.session.ID, UserID: g.session.UserID, AccessExpiresIn: expires,
		RefreshExpiresIn: s.ExpiresAt(g.session).Sub(g.now),
	}, nil
}

// Audience returns the audience of a new session: the services that the client asked for, or
// the first service of Config.Audience if asked is empty.
//
// Errors: ErrAudience if the server does not issue for one of the services; ErrNotAlone
// for caller.AdminAudience with another audience.
func (s *Sessions) Audience(asked []string) ([]string, error) {
	isAdmin := func(a string) bool { return a == caller.AdminAudience }
	switch {
	case len(asked) == 0:
		return s.cfg.Audience[:1:1], nil
	case !slices.ContainsFunc(asked, isAdmin):
		return subset(asked, s.cfg.Audience)
	case slices.ContainsFunc(asked, func(a string) bool { return !isAdmin(a) }):
		return nil, ErrNotAlone
	}
	return []string{caller.AdminAudience}, nil
}

// audienceWithin returns the audience for a refresh: the services that the client asked for, or
// all services of the login if asked is empty. The login must have named each service, and the
// server must still issue tokens for each service.
//
// Errors: ErrAudience.
func (s *Sessions) audienceWithin(login, asked []string) ([]string, error) {
	var today []string
	for _, a := range login {
		// A login for AdminAudience gets AdminAudience alone. The check of the length makes
		// sure that a changed row with more services gives no administration token that another
		// service could see and use.
		if slices.Contains(s.cfg.Audience, a) || a == caller.AdminAudience && len(login) == 1 {
			today = append(today, a)
		}
	}
	if len(today) == 0 {
		return nil, ErrAudience
	}
	if len(asked) == 0 {
		return today, nil
	}
	return subset(asked, today)
}

// subset returns asked without duplicates, if allowed contains every text of asked.
//
// Errors: ErrAudience if allowed lacks a text of asked.
func subset(asked, allowed []string) ([]string, error) {
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

// Start inserts a session for a user, and writes an event of the type why into the security
// record. If the user has Config.PerUser sessions before, Start first ends the oldest. If very
// many sessions of the user have ended, Start deletes the rows of some: otherwise a client with
// one password could fill the database. The user's row must have been read in tx.
func (s *Sessions) Start(ctx context.Context, tx *feed.Tx, u *store.User, audience []string, why audit.Type) (*Grant, error) {
	old, err := tx.EndedBeyond(u, max(leastEnded, s.cfg.PerUser), pruneAtOnce)
	if err == nil {
		err = tx.DeleteSessions(old)
	}
	if err != nil {
		return nil, err
	}
	ended, err := s.makeRoom(ctx, tx, u)
	if err != nil {
		return nil, err
	}
	now := tx.Now()
	row := &store.Session{
		ID: user.NewID(), UserID: u.ID, BornVersion: u.Version, Audience: audience,
		CreatedAt: now, RefreshedAt: now, Generations: store.Generations{Current: 1},
	}
	if err := tx.InsertSession(row); err != nil {
		return nil, err
	}
	grant := newGrant(row, u, audience, now)
	grant.ended = ended
	record := audit.Event{Type: why, ActorID: u.ID, ActorName: u.Username, UserID: u.ID, UserName: u.Username, SessionID: row.ID}
	return grant, s.d.Audit.Record(ctx, tx.Tx, record)
}

const (
	// leastEnded is the least number of rows of ended sessions that are kept for a user,
	// whatever --max-sessions says. A client with a refresh token of one of these sessions gets
	// the reason of the end, and the newest of these sessions are known devices.
	leastEnded = 100
	// pruneAtOnce bounds the rows that one login deletes. A login ends at most ten sessions, so
	// with twenty deletions in each login the number of rows falls.
	pruneAtOnce = 20
)

// makeRoom ends the oldest sessions of a user, so that one more session makes at most
// Config.PerUser. After the operator has lowered the bound, a user may have far more sessions,
// and each call of makeRoom ends some of the sessions. makeRoom returns ended = true if a
// session within its lifetime has ended. A session past its lifetime counts towards
// Config.PerUser until its row is deleted; the end of such a session needs no event and no
// record.
func (s *Sessions) makeRoom(ctx context.Context, tx *feed.Tx, u *store.User) (ended bool, err error) {
	const step = 10 // most sessions that one login ends: their events hold the lock that every transaction with an event needs
	rows, err := tx.SessionsBeyond(u, s.cfg.PerUser-1, step)
	for _, row := range rows {
		switch {
		case err != nil:
		case s.ExpiresAt(row).After(tx.Now()):
			ended = true
			err = s.end(ctx, tx, row, u, audit.Event{Type: audit.SessionRevoked, ActorID: u.ID, ActorName: u.Username,
				Detail: "ended by a login: the user had --max-sessions sessions"})
		default:
			err = tx.EndSession(row.ID)
		}
	}
	return ended, err
}

// Replace starts a session after a change of password. The change has ended the session old,
// and the new session gets the audience of old.
//
// Errors: ErrAudience if the server issues for no service of the old audience any more.
func (s *Sessions) Replace(ctx context.Context, tx *feed.Tx, u *store.User, old *store.Session) (*Grant, error) {
	audience, err := s.audienceWithin(old.Audience, nil)
	if err != nil {
		return nil, err
	}
	return s.Start(ctx, tx, u, audience, audit.PasswordChanged)
}

// repeatIfUncertain calls do up to three times, as long as it is unknown whether do has
// committed. A second run of do must do no harm.
func repeatIfUncertain(do func() error) error {
	const most = 3
	var err error
	for range most {
		if err = do(); !uncertain(err) {
			break
		}
	}
	return err
}

// uncertain reports whether err leaves the outcome of a commit unknown and the caller still has
// time. After the caller's deadline, uncertain returns false, so that the client gets an
// answer.
func uncertain(err error) bool {
	return errors.Is(err, store.ErrUncertain) && !errors.Is(err, context.DeadlineExceeded)
}

// Prune deletes, in small steps, the rows of sessions that ended or expired at least
// Config.Idle ago, as [store.Tx.Aged] counts the time. While the row of a session exists, a
// client that presents a refresh token of the session gets the precise reason of the refusal.
func (s *Sessions) Prune(ctx context.Context) error {
	const step = 200 // rows in one transaction, which keeps SQLite's only writer busy for about a millisecond
	for after := ""; ; {
		err := s.d.Store.Write(ctx, func(tx *store.Tx) error {
			aged, err := tx.Aged(time.Duration(s.cfg.Idle))
			if err != nil {
				return err
			}
			after, err = tx.PruneSessions(after, step, func(row *store.Session) bool {
				return row.RefreshedAt.After(aged) || row.EndedAt.After(aged)
			})
			return err
		})
		if err != nil || after == "" {
			return err
		}
	}
}
