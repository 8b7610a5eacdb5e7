package federation

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

var (
	// ErrDisabled means that the assertion is valid, and that a binding names a service account
	// that is disabled.
	ErrDisabled = errors.New("service account is disabled")
	// ErrUnavailable is in every [Unavailable]: the server cannot get the key of the assertion
	// now.
	ErrUnavailable = errors.New("the key of the issuer cannot be had")
	// ErrOverloaded means that too many assertions of the client's network wait for a check.
	ErrOverloaded = errors.New("too many assertions of a network at once")
)

// Unavailable is the error for an assertion with a key that the server cannot get now.
type Unavailable struct {
	Issuer string        // the name of the issuer
	After  time.Duration // the time until the next fetch of the keys has probably ended
	why    string
}

func (u *Unavailable) Error() string { return fmt.Sprintf("issuer %s: %s", u.Issuer, u.why) }

// Unwrap returns ErrUnavailable.
func (u *Unavailable) Unwrap() error { return ErrUnavailable }

const (
	// checksAtOnce and checksWaiting bound the checks of one network. A check takes up to half
	// a millisecond of one core, so a network with forged assertions uses one core at most. A
	// waiting call is one of the unfinished requests of its network, of which a network can
	// have 256 by default.
	checksAtOnce, checksWaiting = 1, 256
	// maxAttempts bounds how often a call checks an assertion: with the issuers in memory; after
	// reading the issuers from the database; after fetching the issuer's keys; and once more, if
	// the issuer was changed since.
	maxAttempts = 4
)

// errChanged means that the issuer was changed or removed after its keys were read.
var errChanged = errors.New("the issuer has changed")

// Exchanger gives service accounts access tokens for assertions (tokens of trusted issuers). An
// Exchanger is safe for concurrent use.
type Exchanger struct {
	store    *store.Store
	keys     *Keys
	tokens   *issuer.Issuer
	audit    *audit.Log
	audience string       // the only audience of an assertion: the issuer of this server
	checks   *share.Turns // bounds the checks of each network
	seen     seen
}

// NewExchanger returns an Exchanger. name is the issuer of this server.
func NewExchanger(s *store.Store, keys *Keys, tokens *issuer.Issuer, log *audit.Log, name string) *Exchanger {
	return &Exchanger{store: s, keys: keys, tokens: tokens, audit: log, audience: name, checks: share.NewTurns(checksAtOnce, checksWaiting)}
}

// Token holds a new access token of a service account.
type Token struct {
	Access    string
	ExpiresIn time.Duration
	UserID    string
}

// grant holds what the transaction of an exchange has found: the service account and the time.
// [Exchanger.Exchange] mints after the commit: a signature inside a transaction would keep its
// locks for longer.
type grant struct {
	user *store.User
	now  time.Time
}

// Exchange judges an assertion, records the exchange, and mints an access token for an
// audience. The server must issue tokens for the audience. The same assertion can be exchanged
// again within its life. A refused assertion writes nothing: the edge (package rpc) counts the
// refusal.
//
// Errors: ErrInvalid; ErrUnbound; ErrDisabled; ErrOverloaded; a *[Unavailable]; errors of the
// store; every error but an error of the store is in an [audit.Refusal].
func (x *Exchanger) Exchange(ctx context.Context, raw string, audience []string) (*Token, error) {
	g, err := x.judgeAndRecord(ctx, raw)
	if err != nil {
		return nil, about(err)
	}
	access, expires, err := x.tokens.Mint(ctx, g.now, issuer.Subject{
		UserID: g.user.ID, Username: g.user.Username, Roles: g.user.Roles, Version: g.user.TokenVersion(), Audience: audience,
	})
	if err != nil {
		return nil, err
	}
	return &Token{Access: access, ExpiresIn: expires, UserID: g.user.ID}, nil
}

// about adds to a refusal what is known about the account or the issuer, for the security
// record.
func about(err error) error {
	refusal := audit.Refusal{Err: err}
	var bad refused
	var away *Unavailable
	switch {
	case errors.As(err, &refusal): // err names the account already
	case errors.As(err, &bad):
		refusal.Detail = bad.detail()
	case errors.As(err, &away):
		refusal.Detail = away.Error()
	case errors.Is(err, ErrOverloaded):
	default:
		return err // err is a fault, and no refusal
	}
	return refusal
}

// attempt holds what one check of an assertion has found.
type attempt struct {
	iss        string   // the claim iss of the assertion; empty if the form is wrong
	by         *trusted // the issuer in memory; nil if the issuer is unknown
	remembered bool     // true if an earlier call has checked the signature
}

// judgeAndRecord judges an assertion, and records the exchange. Before a refusal,
// judgeAndRecord reads the rows of the issuers anew, and judges once more if the issuer of the
// assertion has changed: no assertion is refused because of rows that were read before the
// call. Calls with forged assertions that come at the same time wait for one reading, and share
// the reading.
func (x *Exchanger) judgeAndRecord(ctx context.Context, raw string) (*grant, error) {
	waited := false
	for range maxAttempts {
		var tried attempt
		a, err := x.check(ctx, raw, &tried)
		if err == nil {
			var g *grant
			if g, err = x.record(ctx, a); err == nil && !tried.remembered {
				x.seen.put(raw, a.checked)
			}
			if !errors.Is(err, errChanged) {
				return g, err
			}
		}
		var away *Unavailable
		switch {
		case errors.As(err, &away) && !waited && tried.by.source.unfinished():
			tried.by.source.awaitFirst(ctx)
			waited = true
			continue
		case tried.iss == "" || !errors.Is(err, ErrInvalid) && !errors.Is(err, errChanged) && away == nil:
			return nil, err // a newer row of an issuer cannot change the answer
		}
		if failed := x.keys.reread(ctx); failed != nil {
			return nil, failed
		}
		if x.keys.of(tried.iss) == tried.by && !errors.Is(err, errChanged) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, errChanged)
}

// check checks the signature and the claims of an assertion, without the clock. If an earlier
// exchange has checked the signature, check does not check the signature again.
//
// Errors: ErrInvalid; ErrOverloaded; a *[Unavailable]; ctx.Err() if ctx ends.
func (x *Exchanger) check(ctx context.Context, raw string, tried *attempt) (*assertion, error) {
	c := x.seen.get(raw)
	if c != nil {
		*tried = attempt{iss: c.says.Issuer, by: x.keys.of(c.says.Issuer)}
		tried.remembered = tried.by != nil && c.stillCounts(tried.by.source)
	}
	if !tried.remembered {
		var err error
		if c, err = x.checkSignature(ctx, raw, tried); err != nil {
			return nil, err
		}
	}
	return judge(c, tried.by, x.audience)
}

// checkSignature checks the form and the signature of an assertion, when the client's network has
// its turn. Errors: those of [Exchanger.check].
func (x *Exchanger) checkSignature(ctx context.Context, raw string, tried *attempt) (*checked, error) {
	leave, err := x.checks.Enter(ctx, caller.SourceOf(ctx).Network())
	switch {
	case errors.Is(err, share.ErrNoTurn):
		return nil, ErrOverloaded
	case err != nil:
		return nil, err
	}
	defer leave()
	c := &checked{}
	c.claims, err = token.ParseForeign(raw, func(says token.Foreign) (crypto.PublicKey, error) {
		*tried = attempt{iss: says.Issuer, by: x.keys.of(says.Issuer)}
		if tried.by == nil {
			return nil, refused{ErrInvalid, "", "the issuer is not trusted"}
		}
		key, err := tried.by.source.key(says)
		c.says, c.key = says, key
		return key, err
	})
	switch {
	case errors.Is(err, token.ErrInvalid) && tried.by != nil:
		return nil, refused{ErrInvalid, tried.by.row.Name, err.Error()}
	case errors.Is(err, token.ErrInvalid):
		return nil, refused{ErrInvalid, "", err.Error()}
	case err != nil:
		return nil, err
	}
	return c, nil
}

// record compares the assertion with the clock and the bindings of the database, and records
// the exchange.
//
// Errors: ErrInvalid; ErrUnbound; ErrDisabled; errChanged; errors of the store.
func (x *Exchanger) record(ctx context.Context, a *assertion) (g *grant, err error) {
	by := a.by.row
	err = x.store.WriteLast(ctx, func(tx *store.Tx) error {
		if err := a.checkTime(tx.Now()); err != nil {
			return err
		}
		bindings, err := tx.BoundUsers(store.IssuerStamp{Name: by.Name, UpdatedAt: by.UpdatedAt}, a.subject, maxOfSubject+1)
		if err != nil {
			return err
		}
		if len(bindings) == 0 {
			if now, err := tx.Issuer(by.Name); errors.Is(err, store.ErrNotFound) || err == nil && !now.UpdatedAt.Equal(by.UpdatedAt) {
				return errChanged
			} else if err != nil {
				return err
			}
		}
		u, err := a.choose(bindings)
		switch {
		case err != nil:
			return err
		case u.Disabled:
			return audit.Refusal{UserID: u.ID, UserName: u.Username, Err: ErrDisabled}
		}
		g = &grant{u, tx.Now()}
		return x.audit.Record(ctx, tx, audit.Event{
			Type: audit.TokenExchanged, ActorID: u.ID, ActorName: u.Username, UserID: u.ID, UserName: u.Username,
			Detail: "issuer " + by.Name + ", subject " + a.subject,
		})
	})
	return g, err
}
