package session

import (
	"context"
	"errors"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
)

// Logout ends the session of a refresh token of this server, whether or not the token was used
// before. If the session has ended before, Logout changes nothing and succeeds. When Logout
// returns nil, this server's own verifier refuses the session's access tokens.
//
// Errors: ErrRefreshInvalid; share.ErrNoTurn; ErrRefreshExpired if the session's row has
// been pruned.
func (s *Sessions) Logout(ctx context.Context, refreshToken string) error {
	g, leave, err := s.enter(ctx, refreshToken)
	if err != nil {
		return err
	}
	defer leave()
	ended, err := s.hasEnded(ctx, g.sessionID)
	if err != nil {
		return err
	}
	if ended {
		return s.d.Feed.Sync(ctx) // another call may have ended the session just now, and the server's own verifier may not know yet
	}
	return repeatIfUncertain(func() error {
		return s.d.Feed.Write(ctx, func(tx *feed.Tx) error {
			row, u, err := tx.SessionAndUser(g.sessionID)
			if err != nil {
				return expiredIfMissing(err)
			}
			return s.end(ctx, tx, row, u, audit.Event{Type: audit.Logout, ActorID: u.ID, ActorName: u.Username})
		})
	})
}

// hasEnded reports whether a session has ended, without a lock on the row of the session.
// Errors: ErrRefreshExpired if the row was deleted by [Sessions.Prune] or by a login.
func (s *Sessions) hasEnded(ctx context.Context, sessionID string) (ended bool, err error) {
	err = s.d.Store.Read(ctx, func(tx *store.Tx) error {
		row, err := tx.Session(sessionID)
		ended = !row.EndedAt.IsZero()
		return err
	})
	return ended, expiredIfMissing(err)
}

// expiredIfMissing turns store.ErrNotFound into ErrRefreshExpired: a session without a row has
// ended or expired so long ago that its row was deleted.
func expiredIfMissing(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return ErrRefreshExpired
	}
	return err
}
