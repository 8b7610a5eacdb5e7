package session

import (
	"context"
	"errors"
	"fmt"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// maxAttempts bounds how often a call begins again because somebody else
// changed the password while it was hashing.
const maxAttempts = 10

// errRaced says that the password was changed since it was read.
var errRaced = errors.New("password changed meanwhile")

// Login checks a password and starts a session. It may return ErrCredentials,
// ErrUserDisabled after the right password, ErrAudience, or
// password.ErrOverloaded. An unknown user costs the same time.
func (s *Sessions) Login(ctx context.Context, name user.Name, pw password.Password, audience []string) (*Tokens, error) {
	audience, err := narrow(audience, s.cfg.Audience)
	if err != nil {
		return nil, err
	}
	return s.unraced(func() (handout, error) { return s.tryLogin(ctx, name, pw, audience) })
}

// unraced signs what an attempt hands out, and begins again where it lost a race.
func (s *Sessions) unraced(attempt func() (handout, error)) (*Tokens, error) {
	for range maxAttempts {
		h, err := attempt()
		if err == nil {
			return s.tokens(h)
		}
		if !errors.Is(err, errRaced) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, errRaced)
}

func (s *Sessions) tryLogin(ctx context.Context, name user.Name, pw password.Password, audience []string) (handout, error) {
	var read store.User // an unknown user has no hash, which Compare makes as dear as any
	err := s.store.Read(ctx, func(tx *store.Tx) error {
		u, err := tx.UserByName(string(name))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		read = *u
		return err
	})
	if err != nil {
		return handout{}, err
	}
	match, rehash, err := s.passwords.Compare(ctx, password.Stranger, pw, read.PasswordHash)
	if err != nil {
		return handout{}, err
	}
	if !match {
		return handout{}, Refusal{UserID: read.ID, Err: ErrCredentials}
	}
	var better string
	if rehash {
		if better, err = s.passwords.Hash(ctx, password.Stranger, pw); err != nil {
			return handout{}, err
		}
	}
	return s.admit(ctx, &read, better, audience)
}

// admit starts the session of a user whose password was right, if the hash is
// still the one that it was compared with. Name, rights and state are the row's
// as it is now. A better hash replaces the old one.
func (s *Sessions) admit(ctx context.Context, read *store.User, better string, audience []string) (handout, error) {
	var h handout
	err := s.store.Write(ctx, func(tx *store.Tx) error {
		u, err := user.Find(tx, read.ID)
		if errors.Is(err, user.ErrNotFound) {
			return ErrCredentials
		}
		if err != nil {
			return err
		}
		if u.PasswordHash != read.PasswordHash {
			return errRaced
		}
		if u.Disabled {
			return Refusal{UserID: u.ID, Err: ErrUserDisabled}
		}
		if better != "" {
			u.PasswordHash = better
			if err := tx.UpdateUser(u); err != nil {
				return err
			}
		}
		h, err = s.start(ctx, tx, u, audience, audit.Login)
		return err
	})
	return h, err
}

// ChangePassword sets the caller's own password, ends every session of theirs
// and starts a new one. It may return ErrCredentials for a wrong current
// password, password.ErrTooWeak, password.ErrOverloaded, or the caller's.
func (s *Sessions) ChangePassword(ctx context.Context, by user.Caller, current, next password.Password) (*Tokens, error) {
	return s.unraced(func() (handout, error) { return s.tryChange(ctx, by, current, next) })
}

func (s *Sessions) tryChange(ctx context.Context, by user.Caller, current, next password.Password) (handout, error) {
	var read *store.User
	err := s.store.Read(ctx, func(tx *store.Tx) (err error) {
		read, _, err = by.Rows(tx)
		return err
	})
	if err != nil {
		return handout{}, err
	}
	if err := next.CheckPolicy(read.Username); err != nil {
		return handout{}, err
	}
	match, _, err := s.passwords.Compare(ctx, password.SignedIn, current, read.PasswordHash)
	if err != nil {
		return handout{}, err
	}
	if !match {
		return handout{}, Refusal{UserID: by.UserID, SessionID: by.SessionID, Err: ErrCredentials}
	}
	hash, err := s.passwords.Hash(ctx, password.SignedIn, next)
	if err != nil {
		return handout{}, err
	}
	var h handout
	err = s.feed.Write(ctx, func(tx *store.Tx) error {
		u, old, err := by.Rows(tx)
		if err != nil {
			return err
		}
		if u.PasswordHash != read.PasswordHash {
			return errRaced
		}
		u.PasswordHash = hash
		if err := user.Raise(tx, u, true); err != nil {
			return err
		}
		audience, err := s.allowed(old.Audience, nil)
		if err != nil {
			return err
		}
		h, err = s.start(ctx, tx, u, audience, audit.PasswordChanged)
		return err
	})
	return h, err
}
