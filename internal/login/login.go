// Package login checks a user's password, and then starts a session.
//
// Hashing a password takes long, and another call can change the user's row during the hash.
// Therefore the transaction after the hash reads the row again, and compares the stored
// password hash with the password hash that was read before. If the password has changed, the
// call begins again. (The RPC SetPassword, for admins, depends on no row that was read before
// the hash, and needs no comparison.)
package login

import (
	"context"
	"errors"
	"fmt"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/throttle"
	"github.com/watchword-auth/watchword/internal/user"
)

var (
	// ErrCredentials means that the user is unknown or that the password is wrong.
	// One error stands for both, since an error for an unknown user alone would tell a stranger
	// which users exist.
	ErrCredentials = errors.New("unknown user or wrong password")
	// ErrUserDisabled means that the password was right, and the user is disabled.
	ErrUserDisabled = errors.New("user is disabled")
)

// maxAttempts bounds how often Login and ChangePassword begin again because the password has
// changed during the hash.
const maxAttempts = 10

// errChanged means that another call changed the password during the hash.
var errChanged = errors.New("the password was changed at the same time")

// Service signs users in. Service is safe for concurrent use.
type Service struct {
	store     *store.Store
	writer    feed.Writer
	sessions  *session.Sessions
	passwords *password.Pool
	accounts  *throttle.Counter
	devices   *throttle.Counter
	sources   *throttle.Sources
	throttled throttled
}

// New returns a service. [Service.ChangePassword] commits through w.
//
// Errors: errors of [session.Sessions.Key].
func New(s *store.Store, w feed.Writer, sessions *session.Sessions, p *password.Pool, l Limits) (*Service, error) {
	secret, err := sessions.Key("throttle")
	if err != nil {
		return nil, err
	}
	return &Service{
		store: s, writer: w, sessions: sessions, passwords: p,
		accounts: throttle.New(s, secret, accounts, l.Limits), devices: throttle.New(s, secret, devices, l.Limits),
		sources: throttle.NewSources(l.SourceRate),
	}, nil
}

// Login checks a password and starts a session. Login takes as long for an unknown user
// as for a known user. previous is an earlier refresh token of the user, or any other text:
// see [Limits].
//
// Errors: ErrCredentials; ErrUserDisabled; a *[throttle.Refused]; session.ErrAudience;
// session.ErrNotAlone; password.ErrOverloaded; errors of the store.
func (s *Service) Login(ctx context.Context, name user.Name, pw password.Password, audience []string, previous string) (*session.Tokens, error) {
	audience, err := s.sessions.Audience(audience)
	if err != nil {
		return nil, err
	}
	a := attempt{name: name, password: pw, audience: audience, device: s.sessions.Device(previous)}
	return s.repeatIfChanged(ctx, func() (*session.Grant, error) { return s.tryLogin(ctx, &a) })
}

// attempt holds what a client sends to [Service.Login], such as the username and the password.
type attempt struct {
	name     user.Name
	password password.Password
	audience []string
	device   string // the id of the session of the earlier refresh token; empty without an earlier refresh token
}

// repeatIfChanged calls try, and calls try again if another call has changed the password
// during the hash. After the commit, repeatIfChanged makes the tokens of the new session.
// Errors: errors of try; store.ErrUnavailable after maxAttempts.
func (s *Service) repeatIfChanged(ctx context.Context, try func() (*session.Grant, error)) (*session.Tokens, error) {
	for range maxAttempts {
		grant, err := try()
		if err == nil {
			return s.sessions.Sign(ctx, grant)
		}
		if !errors.Is(err, errChanged) {
			s.throttled.count(err)
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, errChanged)
}

// tryLogin makes one attempt at a login. tryLogin enters the queue of the password pool before
// reading the database, so that a login that the queue refuses costs no read. A login that the
// bound of the client's network refuses does not enter the queue, and costs a read only if the
// login carries an authentic refresh token.
func (s *Service) tryLogin(ctx context.Context, a *attempt) (*session.Grant, error) {
	source := caller.SourceOf(ctx).Network()
	if refused := s.sources.Check(source); refused != nil {
		if err := s.unlessKnown(ctx, a, refused); err != nil {
			return nil, err
		}
	}
	turn, err := s.passwords.Enter(ctx, password.Stranger(source))
	if err != nil {
		return nil, err
	}
	defer turn.End()
	g, err := s.beginLogin(ctx, a)
	if err != nil {
		return nil, err
	}
	defer g.End()
	rehash, err := s.compare(ctx, turn, g, a.password)
	if err != nil {
		return nil, err
	}
	var better string
	if rehash {
		if better, err = turn.Hash(ctx, a.password); err != nil {
			return nil, err
		}
	}
	turn.End() // frees the slot in the pool before the wait for the database
	return s.start(ctx, g, better, a.audience)
}

// start starts a session after the right password. If the password hash has been replaced since
// g.user was read, start returns errChanged. Name, roles and state of the session come from the
// user's row as read in the new transaction. If better is not empty, start stores better as the
// new password hash.
func (s *Service) start(ctx context.Context, g *guess, better string, audience []string) (grant *session.Grant, err error) {
	// feed.Direct does not wait until the server's verifier knows the change: only a login that
	// ends another session needs the wait, and then [session.Sessions.Sign] waits.
	err = feed.Direct(s.store).Write(ctx, func(tx *feed.Tx) error {
		u, err := user.Find(tx.Tx, g.user.ID)
		switch {
		case errors.Is(err, user.ErrNotFound):
			return ErrCredentials
		case err != nil:
			return err
		case u.PasswordHash != g.user.PasswordHash:
			return errChanged
		case u.Disabled:
			return audit.Refusal{UserID: u.ID, UserName: u.Username, Err: ErrUserDisabled}
		}
		if better != "" {
			u.PasswordHash = better
			if err := tx.UpdateUser(u); err != nil {
				return err
			}
		}
		if err := g.Right(tx.Tx); err != nil {
			return err
		}
		grant, err = s.sessions.Start(ctx, tx, u, audience, audit.Login)
		return err
	})
	return grant, err
}

// ChangePassword sets the caller's own password, ends every session of the caller's
// user, and starts a new session with the audience of the caller's session.
//
// Errors: ErrCredentials if the current password is wrong; a *[throttle.Refused];
// user.ErrService for a service account; password.ErrTooWeak; password.ErrOverloaded; errors of
// [caller.Caller.Check] and of the store.
func (s *Service) ChangePassword(ctx context.Context, by caller.Caller, current, next password.Password) (*session.Tokens, error) {
	if by.Kind == caller.Service {
		return nil, user.ErrService
	}
	return s.repeatIfChanged(ctx, func() (*session.Grant, error) { return s.tryChange(ctx, by, current, next) })
}

func (s *Service) tryChange(ctx context.Context, by caller.Caller, current, next password.Password) (*session.Grant, error) {
	turn, err := s.passwords.Enter(ctx, password.User(by.ID))
	if err != nil {
		return nil, err
	}
	defer turn.End()
	g, err := s.beginChange(ctx, by)
	if err != nil {
		return nil, err
	}
	defer g.End()
	if err := s.passwords.CheckPolicy(next, g.user.Username); err != nil {
		return nil, err
	}
	if _, err := s.compare(ctx, turn, g, current); err != nil {
		return nil, err
	}
	hash, err := turn.Hash(ctx, next)
	if err != nil {
		return nil, err
	}
	turn.End() // frees the slot in the pool before the wait for the database
	var grant *session.Grant
	err = s.writer.Write(ctx, func(tx *feed.Tx) error {
		u, old, err := by.Rows(tx.Tx)
		if err != nil {
			return err
		}
		if u.PasswordHash != g.user.PasswordHash {
			return errChanged
		}
		if err := g.Right(tx.Tx); err != nil {
			return err
		}
		u.PasswordHash = hash
		if err := user.Raise(tx, u, true); err != nil {
			return err
		}
		grant, err = s.sessions.Replace(ctx, tx, u, old)
		return err
	})
	return grant, err
}
