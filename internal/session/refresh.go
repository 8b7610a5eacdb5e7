package session

import (
	"context"
	"errors"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// Refresh spends a refresh token. A lost answer is given again; any other spent
// token ends the session. It may return ErrRefreshInvalid, ErrRefreshExpired,
// ErrRevoked, ErrRefreshReused or ErrAudience, judged in this order but for the
// last, which spends nothing.
func (s *Sessions) Refresh(ctx context.Context, refreshToken string, audience []string) (*Tokens, error) {
	g, err := s.macs.parse(refreshToken)
	if err != nil {
		return nil, err
	}
	var h handout
	var v verdict
	err = s.store.Write(ctx, func(tx *store.Tx) (err error) {
		h, v, err = s.spend(ctx, tx, g, audience)
		return err
	})
	if v == reused && err == nil {
		err = ErrRefreshReused
	}
	if errors.Is(err, ErrRefreshReused) || errors.Is(err, ErrRevoked) {
		// The end is durable; whom we tell of it, our own verifier has told before.
		if err := s.feed.Sync(ctx); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	return s.tokens(h)
}

// spend judges a generation and changes the session's row. Reuse is a verdict
// and no error, since the end that it makes must be committed.
func (s *Sessions) spend(ctx context.Context, tx *store.Tx, g generation, audience []string) (handout, verdict, error) {
	row, u, err := tx.SessionAndUser(g.sessionID)
	if errors.Is(err, store.ErrNotFound) {
		return handout{}, 0, ErrRefreshExpired
	}
	if err != nil {
		return handout{}, 0, err
	}
	if !user.Alive(row, u) {
		return handout{}, 0, Refusal{u.ID, row.ID, ErrRevoked}
	}
	if !s.ExpiresAt(row).After(tx.Now()) {
		return handout{}, 0, Refusal{u.ID, row.ID, ErrRefreshExpired}
	}
	next, v := present(row.Generations, g.number, tx.Now(), s.cfg.Grace)
	if v == reused {
		return handout{}, v, s.end(ctx, tx, row, audit.Event{Type: audit.RefreshReused, Reason: "REFRESH_TOKEN_REUSED"})
	}
	allowed, err := s.allowed(row.Audience, audience)
	if err != nil {
		return handout{}, 0, err
	}
	if v == advanced {
		row.Generations, row.RefreshedAt = next, tx.Now()
		err = tx.AdvanceSession(row.ID, next)
	}
	return handout{session: row, user: u, audience: allowed, now: tx.Now()}, v, err
}

// allowed is the audience asked for, within the login's and within what this
// server issues for today.
func (s *Sessions) allowed(login, asked []string) ([]string, error) {
	var today []string
	for _, a := range login {
		if _, err := narrow([]string{a}, s.cfg.Audience); err == nil {
			today = append(today, a)
		}
	}
	if len(today) == 0 {
		return nil, ErrAudience
	}
	return narrow(asked, today)
}
