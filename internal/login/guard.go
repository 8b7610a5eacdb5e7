package login

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/throttle"
)

// Each counter of wrong passwords has a number. The numbers are a part of the ids in the table
// throttle, and stay the same in later versions.
const (
	accounts throttle.Number = iota + 1 // counts wrong passwords by username
	devices                             // counts wrong passwords on a known device or in a session, by session id
)

// Limits holds the bounds on guesses at passwords (tries). The bounds count wrong passwords by
// these rules:
//
//   - The wrong passwords for one username, from every client together, have one count, whether
//     the user exists or not.
//   - A known device has a count of its own. A login comes from a known device if the login
//     carries an earlier refresh token of the user ([session.Sessions.Knows]). An attacker
//     without a refresh token of the user therefore cannot keep the owner out. A network from
//     which the user has logged in gets no count of its own: the count would show that the user
//     exists, and an attacker can be in the same network.
//   - A wrong password in ChangePassword is counted for the session of the caller.
//   - While the count of the device or of the session refuses a try, the count of the username
//     can still admit the try: an attacker can have the refresh token too. The count that has
//     admitted the try also counts the try. An attacker with the refresh tokens of n devices
//     therefore has as many guesses as the counts of n devices and of the username allow.
//   - The wrong passwords from one source (a client network), at whatever usernames, have one
//     count. If the count of a device or of a session admits a try, the count of the source
//     does not refuse the try.
type Limits struct {
	throttle.Limits     // the bounds of one username, and of one device
	SourceRate      int // wrong passwords a second from one source; 0: no bound
}

// guess holds a call with a password, of Login or ChangePassword, that the bounds of [Limits]
// have admitted.
type guess struct {
	*throttle.Try
	name      string     // the username at which the try guesses
	user      store.User // the user as read before the hash; empty for an unknown user
	sessionID string     // the session of the caller of ChangePassword
	known     bool       // the count of a known device or of a session has admitted the try
}

// about returns err together with the user of the guess, so that the security record names the
// user.
func (g *guess) about(err error) error {
	return audit.Refusal{UserID: g.user.ID, UserName: g.user.Username, SessionID: g.sessionID, Err: err}
}

// ifRefused returns err. If err is a *[throttle.Refused], ifRefused adds the user of the guess
// to err, for the security record.
func (g *guess) ifRefused(err error) error {
	if errors.Is(err, throttle.ErrTooMany) {
		return g.about(err)
	}
	return err
}

// begin admits or refuses a try, which is one comparison of a password. begin reads the count
// of wrong passwords, and calls read, which reads the user, in the same transaction.
func (g *guess) begin(ctx context.Context, counter *throttle.Counter, key throttle.Key, read func(*store.Tx) error) error {
	var err error
	g.Try, err = counter.Begin(ctx, key, read)
	return g.ifRefused(err)
}

// beginLogin reads the user, and admits a login if the count of the device or of the username
// allows another try. For an unknown user, beginLogin takes the same steps as for a known user.
//
// Errors: a *[throttle.Refused]; errors of the store.
func (s *Service) beginLogin(ctx context.Context, a *attempt) (*guess, error) {
	g := &guess{name: string(a.name)}
	device, err := s.knownDevice(ctx, g, a)
	if err != nil {
		return nil, err
	}
	return g, s.admit(ctx, g, device, g.readUser)
}

// readUser reads the user with the name of the guess. For an unknown name, g.user is empty. A
// login with the name of a service account gets the answer, and the record, of an unknown name.
func (g *guess) readUser(tx *store.Tx) error {
	u, err := tx.UserByName(g.name)
	if errors.Is(err, store.ErrNotFound) || err == nil && u.Kind == store.KindService {
		u, err = &store.User{}, nil // compare still computes a hash, so that the time does not show whether the user exists
	}
	if err == nil {
		g.user = *u
	}
	return err
}

// knownDevice returns the device of a login if the device is a known device of the user;
// otherwise "". If the login has a device, knownDevice also reads g.user. Errors: errors of the
// store.
func (s *Service) knownDevice(ctx context.Context, g *guess, a *attempt) (device string, err error) {
	if a.device == "" {
		return "", nil
	}
	err = s.store.Read(ctx, func(tx *store.Tx) error {
		device = ""
		if err := g.readUser(tx); err != nil {
			return err
		}
		known, err := s.sessions.Knows(tx, &g.user, a.device)
		if known {
			device = a.device
		}
		return err
	})
	return device, err
}

// unlessKnown returns nil for a login from a known device, and otherwise refused, which is the
// error with which the bound of the source has refused the login.
//
// Errors: refused; errors of the store.
func (s *Service) unlessKnown(ctx context.Context, a *attempt, refused error) error {
	g := &guess{name: string(a.name)}
	device, err := s.knownDevice(ctx, g, a)
	switch {
	case err != nil:
		return err
	case device == "":
		return g.ifRefused(refused)
	}
	return nil
}

// beginChange reads the user, and admits a change of password by the count of the caller's
// session or of the username.
//
// Errors: a *[throttle.Refused]; errors of [caller.Caller.Check] and of the store.
func (s *Service) beginChange(ctx context.Context, by caller.Caller) (*guess, error) {
	g := &guess{sessionID: by.SessionID}
	return g, s.admit(ctx, g, by.SessionID, func(tx *store.Tx) error {
		u, _, err := by.Rows(tx)
		if err == nil {
			g.user, g.name = *u, u.Username
		}
		return err
	})
}

// admit admits a try by the count of the known device; without a known device, or if that count
// refuses the try, by the counts of the source and of the username. The function read reads
// g.user and g.name.
//
// Errors: a *[throttle.Refused]; the errors of read and of the store.
func (s *Service) admit(ctx context.Context, g *guess, device string, read func(*store.Tx) error) error {
	source := caller.SourceOf(ctx)
	from := throttle.Origin{Network: source.Network(), Site: source.Site(), Block: source.Block()}
	var byDevice error
	if device != "" {
		byDevice = g.begin(ctx, s.devices, s.devices.Key(device, from), read)
		if !errors.Is(byDevice, throttle.ErrTooMany) {
			g.known = byDevice == nil
			return byDevice
		}
	}
	err := g.ifRefused(s.sources.Check(from.Network))
	if err == nil {
		err = g.begin(ctx, s.accounts, s.accounts.Key(g.name, from), read)
	}
	return sooner(byDevice, err)
}

// sooner returns the better refusal for the client: the refusal that promises a time, or else
// the refusal with the shorter time to wait. If one of the errors is no refusal, sooner returns
// the second error.
func sooner(first, second error) error {
	var a, b *throttle.Refused
	if errors.As(first, &a) && errors.As(second, &b) && (b.Full && !a.Full || b.Full == a.Full && a.RetryAfter < b.RetryAfter) {
		return first
	}
	return second
}

// compare compares a password with the user's hash, and counts a wrong password before compare
// returns. compare checks the bounds on guesses again after [password.Turn.Wait], since other
// calls can have guessed during the wait.
//
// Errors: ErrCredentials; a *[throttle.Refused]; errors of [password.Turn.Compare] and of
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
	turn.End() // lets the pool hash another password during the wait for the database
	if err := g.Wrong(ctx); err != nil {
		return false, err
	}
	s.sources.Wrong(source) // after g.Wrong: the count of the source must not reveal a wrong guess that the database has not counted
	return false, g.about(ErrCredentials)
}

// throttled counts the refused logins and changes of passwords, by the bound that refused them.
type throttled struct{ names, devices, sources, full atomic.Uint64 }

func (t *throttled) count(err error) {
	var refused *throttle.Refused
	if !errors.As(err, &refused) {
		return
	}
	switch {
	case refused.Full:
		t.full.Add(1)
	case refused.By == accounts:
		t.names.Add(1)
	case refused.By == devices:
		t.devices.Add(1)
	default:
		t.sources.Add(1)
	}
}

// Throttled holds the numbers of logins and changes of passwords that were refused after too
// many wrong passwords, for metrics.
type Throttled struct {
	Names   uint64 // too many wrong passwords for the username
	Devices uint64 // too many wrong passwords from the known device, or in the session
	Sources uint64 // too many wrong passwords from the network
	Full    uint64 // every time that the server can promise is promised to other networks
}

// Throttled returns how many logins and changes of passwords this process has refused after too
// many wrong passwords.
func (s *Service) Throttled() Throttled {
	t := &s.throttled
	return Throttled{t.names.Load(), t.devices.Load(), t.sources.Load(), t.full.Load()}
}
