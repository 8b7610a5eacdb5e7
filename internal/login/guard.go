package login

import (
	"context"
	"errors"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/throttle"
)

// The numbers of the counters of wrong passwords. The numbers are a part of the ids in the
// database, and stay the same in later versions.
const (
	accounts throttle.Number = iota + 1 // by username
	devices                             // on a known device or in a session, by session id
)

// Limits bound guesses at passwords:
//
//   - The tries at one username, from everywhere, share a count, whether the user exists or
//     not.
//   - A known device has a count of its own: a login that carries an earlier refresh token of
//     the user ([session.Sessions.Knows]). So an attacker cannot keep the owner out. A known
//     network gets no count of its own: such a count would show that the user exists, and an
//     attacker can be in the same network.
//   - ChangePassword counts for the session of the caller.
//   - The wrong passwords from one source, at whatever usernames, share a count. A known
//     device is not refused for its source.
type Limits struct {
	throttle.Limits     // of one username, and of one device
	SourceRate      int // wrong passwords a second from one source; 0: no bound
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

// ifRefused returns err, and if err is a refusal of the throttle, err with the user of the
// guess.
func (g *guess) ifRefused(err error) error {
	if errors.Is(err, throttle.ErrTooMany) {
		return g.about(err)
	}
	return err
}

// begin admits a try, and reads the user by read in the same transaction as the count.
func (g *guess) begin(ctx context.Context, counter *throttle.Counter, key throttle.Key, read func(*store.Tx) error) error {
	var err error
	g.Try, err = counter.Begin(ctx, key, read)
	return g.ifRefused(err)
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
		return g, g.begin(ctx, s.devices, s.devices.Key(a.device, ""), readUser)
	}
	site := caller.SourceOf(ctx).Site()
	return g, g.begin(ctx, s.accounts, s.accounts.Key(string(a.name), site), readUser)
}

// beginChange is like beginLogin, for a signed-in user.
//
// Errors: a *[throttle.Refused]; those of [caller.Caller.Check] and of the store.
func (s *Service) beginChange(ctx context.Context, by caller.Caller) (*guess, error) {
	g := &guess{sessionID: by.SessionID, known: true}
	return g, g.begin(ctx, s.devices, s.devices.Key(by.SessionID, ""), func(tx *store.Tx) error {
		u, _, err := by.Rows(tx)
		if err == nil {
			g.user = *u
		}
		return err
	})
}

// compare compares a password with the user's hash, and counts a wrong password before
// compare returns. compare checks the bounds again after [password.Turn.Wait], since other
// calls may have guessed during the wait.
//
// Errors: ErrCredentials; a *[throttle.Refused]; those of [password.Turn.Compare] and of
// the store.
func (s *Service) compare(ctx context.Context, turn *password.Turn, g *guess, pw password.Password) (rehash bool, err error) {
	if err := turn.Wait(ctx); err != nil {
		return false, err
	}
	source := caller.SourceOf(ctx).Network()
	if !g.known {
		if err := s.sources.Check(source); err != nil {
			return false, g.about(err)
		}
	}
	if err := g.Claim(ctx); err != nil {
		return false, g.ifRefused(err)
	}
	match, rehash, err := turn.Compare(ctx, pw, g.user.PasswordHash)
	if err != nil || match {
		return rehash, err
	}
	turn.End() // before the wait for the database
	if err := g.Wrong(ctx); err != nil {
		return false, err
	}
	s.sources.Wrong(source) // a guess that is not counted must not show by this count that it was wrong
	return false, g.about(ErrCredentials)
}
