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
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// callsAtOnce bounds the refreshes and logouts of one session that run at a time. Every
	// refresh and logout of the session needs the lock of the session's row, and a call that
	// waits for the lock holds a connection to the database.
	callsAtOnce = 2
	// callsWaiting bounds the refreshes and logouts of one session that wait without a
	// connection to the database. A client makes a few calls at a time. Each call that waits is
	// one of the unfinished requests of its network, and a network is allowed to have 256 by
	// default. With 2 running and 62 waiting calls, one refresh token takes at most a quarter
	// of the requests of a gateway.
	callsWaiting = 62
)

// Refresh spends a refresh token and returns new tokens. The answer to a refresh can get lost,
// so a client can present the same token again: within the grace (--refresh-grace) the token
// gets the same answer again. After the grace, only the token that was spent last gets an
// answer, with a new refresh token. Any other spent token ends its session (RFC 9700, section
// 4.14). The session also ends if spent tokens come again in more successive generations than
// --refresh-repeats.
//
// Errors, in the order of the checks: ErrRefreshInvalid; share.ErrNoTurn;
// ErrRefreshExpired; ErrRevoked; ErrRefreshReused; ErrAudience, which spends nothing.
func (s *Sessions) Refresh(ctx context.Context, refreshToken string, audience []string) (*Tokens, error) {
	g, leave, err := s.enter(ctx, refreshToken)
	if err != nil {
		return nil, err
	}
	defer leave()
	var tokens *Tokens
	var unsigned error
	err = s.spendCurrent(ctx, g, audience, func(spent *store.Spent) { tokens, unsigned = s.signSpent(ctx, g, spent, audience) })
	switch {
	case err == nil:
		return tokens, unsigned
	case !errors.Is(err, store.ErrNotFound) && !uncertain(err):
		return nil, err
	}
	grant, err := s.spendAny(ctx, g, audience)
	if err != nil {
		return nil, err
	}
	return s.Sign(ctx, grant)
}

// enter checks the MAC of a refresh token, and waits until the call can run: at most
// callsAtOnce calls of one session run at a time. The caller must call leave after the call.
// Errors: ErrRefreshInvalid; share.ErrNoTurn; the error of ctx if ctx ends before the turn.
func (s *Sessions) enter(ctx context.Context, refreshToken string) (g generation, leave func(), err error) {
	if g, err = s.macs.parse(refreshToken); err != nil {
		return g, nil, err
	}
	leave, err = s.turns.Enter(ctx, g.sessionID)
	if errors.Is(err, share.ErrNoTurn) {
		err = audit.Refusal{SessionID: g.sessionID, Err: err}
	}
	return g, leave, err
}

// spendCurrent does the ordinary refresh, in which the client presents the newest refresh
// token, by one statement. [store.Store.Spend] says when prepare, which makes the new tokens, is
// called.
//
// Errors: store.ErrNotFound if the client presents another token than the newest, or if the
// statement cannot decide; after this error, [Sessions.spendAny] decides.
func (s *Sessions) spendCurrent(ctx context.Context, g generation, asked []string, prepare func(*store.Spent)) error {
	audience, ok := s.decidingAudience(asked)
	if !ok {
		return store.ErrNotFound
	}
	return s.d.Store.Spend(ctx, &store.Spend{
		SessionID: g.sessionID, Generation: g.number, Audience: audience,
		Grace: s.cfg.Grace, Idle: time.Duration(s.cfg.Idle), Max: time.Duration(s.cfg.Max),
	}, prepare)
}

// signSpent makes the tokens for a refresh token of generation g that was spent. asked holds the
// services that the client asked for.
func (s *Sessions) signSpent(ctx context.Context, g generation, spent *store.Spent, asked []string) (*Tokens, error) {
	within, err := s.audienceWithin(spent.Audience, asked)
	if err != nil {
		return nil, err
	}
	row := &store.Session{
		ID: g.sessionID, UserID: spent.UserID, CreatedAt: spent.CreatedAt, RefreshedAt: spent.RefreshedAt,
		Generations: store.Generations{Current: g.number + 1},
	}
	return s.Sign(ctx, &Grant{
		session: row, username: spent.Username, roles: spent.Roles, version: spent.TokenVersion(), audience: within, now: row.RefreshedAt,
	})
}

// decidingAudience returns one service. If the session's audience has this service,
// audienceWithin accepts all services that the client asked for. The statement of the ordinary
// refresh can check one service only, so decidingAudience returns false if more than one
// service must be checked. decidingAudience also returns false for a service outside of
// Config.Audience: clients for administration refresh rarely, so spendAny decides about their
// refreshes.
func (s *Sessions) decidingAudience(asked []string) (string, bool) {
	switch len(asked) {
	case 0:
		return s.cfg.Audience[0], true
	case 1:
		if slices.Contains(s.cfg.Audience, asked[0]) {
			return asked[0], true
		}
	}
	return "", false
}

// spendAny decides about a refresh token of any age, in a transaction.
func (s *Sessions) spendAny(ctx context.Context, g generation, audience []string) (grant *Grant, err error) {
	var v verdict
	if err = s.refuseEnded(ctx, g.sessionID); err == nil {
		err = repeatIfUncertain(func() error {
			return s.appends.Write(ctx, func(tx *feed.Tx) (err error) {
				grant, v, err = s.spend(ctx, tx, g, audience)
				return err
			})
		})
	}
	switch {
	case err != nil:
	case v == reused || v == overrun:
		err = ErrRefreshReused
	case v == repeated || v == retried:
		s.d.Audit.Repeated(ctx, audit.Event{UserID: grant.session.UserID, UserName: grant.username, SessionID: g.sessionID})
	}
	if errors.Is(err, ErrRefreshReused) || errors.Is(err, ErrRevoked) {
		// The session's end is durable. Sync waits until this server's own verifier has
		// received the end, so that the client does not know of the end before the verifier
		// does.
		if err := s.d.Feed.Sync(ctx); err != nil {
			return nil, err
		}
	}
	return grant, err
}

// refuseEnded refuses a refresh token of a session that has ended, without a lock on the row of
// the session: otherwise calls that wait for the lock of an ended session would hold
// connections to the database. Errors: ErrRefreshExpired if the row was deleted; ErrRevoked.
func (s *Sessions) refuseEnded(ctx context.Context, sessionID string) error {
	return s.d.Store.Read(ctx, func(tx *store.Tx) error {
		row, u, err := tx.SessionAndUser(sessionID)
		return endedOr(row, u, err)
	})
}

// endedOr returns the error of a refresh of a session that has no row or has ended. If the row
// could not be read, endedOr returns err, and otherwise nil.
func endedOr(row *store.Session, u *store.User, err error) error {
	switch {
	case err != nil:
		return expiredIfMissing(err)
	case !caller.Alive(row, u):
		return audit.Refusal{UserID: u.ID, UserName: u.Username, SessionID: row.ID, Err: ErrRevoked}
	}
	return nil
}

// spend decides about a refresh token and changes the session's row. For a reused token, spend
// returns a verdict without an error: an error would roll back the end of the session.
func (s *Sessions) spend(ctx context.Context, tx *feed.Tx, g generation, asked []string) (*Grant, verdict, error) {
	row, u, err := tx.SessionAndUser(g.sessionID)
	err = endedOr(row, u, err)
	switch {
	case err != nil:
		return nil, 0, err
	case !s.ExpiresAt(row).After(tx.Now()):
		return nil, 0, audit.Refusal{UserID: u.ID, UserName: u.Username, SessionID: row.ID, Err: ErrRefreshExpired}
	}
	next, v := present(row.Generations, g.number, tx.Now(), limits{s.cfg.Grace, int64(s.cfg.Repeats)})
	if v == reused || v == overrun {
		event := audit.Event{Type: audit.RefreshReused, Reason: "REFRESH_TOKEN_REUSED"}
		if v == overrun {
			event.Detail = fmt.Sprintf("repeats in more than %d successive generations", s.cfg.Repeats)
		}
		return nil, v, s.end(ctx, tx, row, u, event)
	}
	audience, err := s.audienceWithin(row.Audience, asked)
	if err != nil {
		return nil, 0, err
	}
	if v == repeated {
		if next != row.Generations {
			err = tx.CountRepeat(row.ID, next)
		}
		// RefreshExpiresIn in the answer is the shortest time that may be left. The precise
		// time that is left would tell a thief when the owner refreshes.
		row.RefreshedAt = tx.Now().Add(-s.cfg.Grace)
	} else {
		row.Generations, row.RefreshedAt = next, tx.Now()
		err = tx.AdvanceSession(row.ID, next)
	}
	return newGrant(row, u, audience, tx.Now()), v, err
}
