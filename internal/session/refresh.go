package session

import (
	"context"
	"errors"
	"slices"
	"time"

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
	h, err := s.spendNewest(ctx, g, audience)
	if errors.Is(err, store.ErrNotFound) || worthRepeating(err) {
		h, err = s.spendAny(ctx, g, audience)
	}
	if err != nil {
		return nil, err
	}
	return s.tokens(h)
}

// spendNewest is the ordinary refresh, in one statement. ErrNotFound: it is not
// that, or the statement cannot tell.
func (s *Sessions) spendNewest(ctx context.Context, g generation, asked []string) (handout, error) {
	decides, err := s.decisive(asked)
	if err != nil {
		return handout{}, err
	}
	spent, err := s.store.Spend(ctx, &store.Spend{
		SessionID: g.sessionID, Generation: g.number, Audience: decides,
		Grace: s.cfg.Grace, Idle: time.Duration(s.cfg.Idle), Max: time.Duration(s.cfg.Max),
	})
	if err != nil {
		return handout{}, err
	}
	allowed, err := s.allowed(spent.Session.Audience, asked)
	return handout{&spent.Session, spent.Username, spent.Roles, spent.Version, allowed, spent.Now}, err
}

// decisive is the one audience for which a session must be, so that `allowed` does
// not refuse what is asked of it: that is no more than a part of an audience, and
// the statement looks for one.
func (s *Sessions) decisive(asked []string) (string, error) {
	switch len(asked) {
	case 0:
		return s.cfg.Audience[0], nil
	case 1:
		if slices.Contains(s.cfg.Audience, asked[0]) {
			return asked[0], nil
		}
	}
	return "", store.ErrNotFound
}

// spendAny judges whatever generation it is.
func (s *Sessions) spendAny(ctx context.Context, g generation, audience []string) (h handout, err error) {
	var v verdict
	err = untilCertain(func() error {
		return s.store.Write(ctx, func(tx *store.Tx) (err error) {
			h, v, err = s.spend(ctx, tx, g, audience)
			return err
		})
	})
	if v == reused && err == nil {
		err = ErrRefreshReused
	}
	if errors.Is(err, ErrRefreshReused) || errors.Is(err, ErrRevoked) {
		// The end is durable; whom we tell of it, our own verifier has told before.
		if err := s.feed.Sync(ctx); err != nil {
			return h, err
		}
	}
	return h, err
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
	return newHandout(row, u, allowed, tx.Now()), v, err
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
