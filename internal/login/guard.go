package login

import (
	"context"
	"errors"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/throttle"
)

// Guard bounds guesses at passwords:
//
//   - The tries at one username, from everywhere, share a count, whether the user exists or
//     not.
//   - A known device has a count of its own: a login that carries an earlier refresh token of
//     the user ([session.Sessions.Knows]). So an attacker cannot keep the owner out. A
//     network proves nothing: it would tell that a user exists, and neighbours share it.
//   - ChangePassword counts for the session of the caller.
//   - The wrong passwords from one source, at whatever usernames, share a count. A known
//     device is not refused for its source.
type Guard struct {
	accounts *throttle.Counter // by username
	devices  *throttle.Counter // by session id
	sources  *throttle.Sources // by network
}

// NewGuard returns a guard. A source may send so many wrong passwords a second; 0 means no
// bound.
func NewGuard(s *store.Store, sessions *session.Sessions, limits throttle.Limits, sourceRate int) (*Guard, error) {
	secret, err := sessions.Key("throttle")
	if err != nil {
		return nil, err
	}
	return &Guard{
		accounts: throttle.New(s, secret, throttle.Accounts, limits), devices: throttle.New(s, secret, throttle.Devices, limits),
		sources: throttle.NewSources(sourceRate),
	}, nil
}

// guess is an admitted try at a user's password.
type guess struct {
	*throttle.Try
	user      store.User // as read before the hash; empty for an unknown user
	sessionID string     // of the caller of ChangePassword
	known     bool       // the try is counted for a known device or a session
}

// about returns err with the user of the guess, for the security record.
func (g *guess) about(err error) error {
	return audit.Refusal{UserID: g.user.ID, UserName: g.user.Username, SessionID: g.sessionID, Err: err}
}

// begin admits a try, and reads the user by read in the same transaction as the count.
func (g *guess) begin(ctx context.Context, counter *throttle.Counter, key throttle.Key, read func(*store.Tx) error) error {
	var err error
	if g.Try, err = counter.Begin(ctx, key, read); errors.Is(err, throttle.ErrTooMany) {
		return g.about(err)
	}
	return err
}

// beginLogin reads the user, and admits a login by the count of its device or of its
// username. For an unknown user the steps are the same.
//
// Errors: a *[throttle.Refused]; those of the store.
func (s *Service) beginLogin(ctx context.Context, a *attempt) (*guess, error) {
	g := &guess{}
	readUser := func(tx *store.Tx) error {
		u, err := tx.UserByName(string(a.name))
		if errors.Is(err, store.ErrNotFound) {
			u, err = &store.User{}, nil // Compare hashes all the same
		}
		g.user = *u
		return err
	}
	if a.device != "" {
		err := s.store.Read(ctx, func(tx *store.Tx) (err error) {
			if err = readUser(tx); err == nil {
				g.known, err = s.sessions.Knows(tx, &g.user, a.device)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if g.known {
		return g, g.begin(ctx, s.guard.devices, s.guard.devices.Key(a.device, ""), readUser)
	}
	site := caller.SourceOf(ctx).Site()
	return g, g.begin(ctx, s.guard.accounts, s.guard.accounts.Key(string(a.name), site), readUser)
}

// beginChange is like beginLogin, for a signed-in user.
//
// Errors: a *[throttle.Refused]; those of [caller.Caller.Check] and of the store.
func (s *Service) beginChange(ctx context.Context, by caller.Caller) (*guess, error) {
	g := &guess{sessionID: by.SessionID, known: true}
	return g, g.begin(ctx, s.guard.devices, s.guard.devices.Key(by.SessionID, ""), func(tx *store.Tx) error {
		u, _, err := by.Rows(tx)
		if err == nil {
			g.user = *u
		}
		return err
	})
}

// compare compares a password with the user's hash, and counts a wrong one before the
// answer. The bounds are checked once more when the turn has its slot, since other guesses
// were made in between.
//
// Errors: ErrCredentials; a *[throttle.Refused]; those of [password.Turn.Compare] and of
// the store.
func (s *Service) compare(ctx context.Context, turn *password.Turn, g *guess, pw password.Password) (rehash bool, err error) {
	if err := turn.Wait(ctx); err != nil {
		return false, err
	}
	source := caller.SourceOf(ctx).Network()
	if !g.known {
		if err := s.guard.sources.Check(source); err != nil {
			return false, g.about(err)
		}
	}
	if err := g.Claim(ctx); err != nil {
		if errors.Is(err, throttle.ErrTooMany) {
			err = g.about(err)
		}
		return false, err
	}
	match, rehash, err := turn.Compare(ctx, pw, g.user.PasswordHash)
	if err != nil || match {
		return rehash, err
	}
	turn.End() // before the wait for the database
	s.guard.sources.Wrong(source)
	if err := g.Wrong(ctx); err != nil {
		return false, err
	}
	return false, g.about(ErrCredentials)
}
