package authn

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/token"
)

// A Principal is the caller of a guarded call, as described by an access token (RFC 9068).
// Only a Verifier makes a Principal, after all checks of the token, and a Principal does
// not hold the token.
//
// A Principal never changes. Any number of goroutines can share a Principal, and every slice
// that a method returns is a copy. A Principal describes the moment of the check: a program
// that keeps a Principal after the call misses later revocations and changes of rights.
type Principal struct {
	claims token.Claims
}

// Subject returns the id of the user (claim sub). The id never changes: store the id, and
// never the name, as the owner of a thing.
func (p *Principal) Subject() string { return p.claims.Subject }

// Username returns the user's name at the time the token was minted (claim username). The name
// of a user may change later.
func (p *Principal) Username() string { return p.claims.Username }

// Roles returns the user's roles at the time the token was minted (claim roles).
func (p *Principal) Roles() []string { return slices.Clone(p.claims.Roles) }

// HasRole reports whether role is among the user's roles.
func (p *Principal) HasRole(role string) bool { return slices.Contains(p.claims.Roles, role) }

// Audience returns the names of the services that accept the token (claim aud).
func (p *Principal) Audience() []string { return slices.Clone(p.claims.Audience) }

// Issuer returns the URL of the server that minted the token (claim iss).
func (p *Principal) Issuer() string { return p.claims.Issuer }

// Kind returns the kind of the subject: a user, with a session, or a service account, without
// a session.
func (p *Principal) Kind() watchwordv1.UserKind {
	if p.claims.SessionID == "" {
		return watchwordv1.UserKind_USER_KIND_SERVICE
	}
	return watchwordv1.UserKind_USER_KIND_USER
}

// An Actor is a service that acts for the subject of a delegated token (claim act, RFC 8693
// section 4.1). Only a Verifier makes an Actor, and the Verifier has checked that no actor of
// the token was revoked.
type Actor struct {
	subject, username string
	version           int64
}

// Subject returns the id of the service account.
func (a Actor) Subject() string { return a.subject }

// Username returns the name of the service account at the time of the delegation.
func (a Actor) Username() string { return a.username }

// TokenVersion returns the version of the service account's rights in the token, as
// [Principal.TokenVersion] does for the subject.
func (a Actor) TokenVersion() int64 { return a.version }

// String returns the name and the id of the service account, as a text for logs.
func (a Actor) String() string { return fmt.Sprintf("%s (%s)", a.username, a.subject) }

// Actor returns the service that called last on the subject's behalf. ok is false if the
// subject itself calls.
func (p *Principal) Actor() (a Actor, ok bool) {
	if len(p.claims.Actors) == 0 {
		return Actor{}, false
	}
	return actor(p.claims.Actors[0]), true
}

// Actors returns every service that acts for the subject, the service that called last first;
// nil if the subject itself calls. Give a caller no rights because of the earlier services: RFC
// 8693 section 4.1 allows decisions by the last actor only.
func (p *Principal) Actors() []Actor {
	var all []Actor
	for _, a := range p.claims.Actors {
		all = append(all, actor(a))
	}
	return all
}

func actor(a token.Actor) Actor { return Actor{a.Subject, a.Username, a.Version} }

// SessionID returns the id of the user's session (claim sid). All tokens of one session, from
// the login to the logout, have the same id, and so have the tokens that were delegated from
// tokens of the session. The id is empty for a service account.
func (p *Principal) SessionID() string { return p.claims.SessionID }

// TokenID returns the id of the token (claim jti). A program is allowed to log the id, since
// the id is no secret.
func (p *Principal) TokenID() string { return p.claims.ID }

// IssuedAt returns the time the token was minted (claim iat), by the server's clock.
func (p *Principal) IssuedAt() time.Time { return p.claims.IssuedAt }

// ExpiresAt returns the time the token expires (claim exp), by the server's clock.
func (p *Principal) ExpiresAt() time.Time { return p.claims.ExpiresAt }

// TokenVersion returns the version of the user's rights in the token (claim ver). The server
// raises a user's version with every change of rights. So a version below the user's present
// version shows that the token is out of date. The version of new tokens also grows with each
// start of a server, without a change of rights.
func (p *Principal) TokenVersion() int64 { return p.claims.Version }

// String returns the user's name and id, as a text for logs.
func (p *Principal) String() string {
	return fmt.Sprintf("%s (%s)", p.claims.Username, p.claims.Subject)
}

// LogValue returns the subject, username, session_id and token_id, for structured logs; for a
// delegated token also the actors.
func (p *Principal) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("subject", p.claims.Subject),
		slog.String("username", p.claims.Username),
		slog.String("session_id", p.claims.SessionID),
		slog.String("token_id", p.claims.ID),
	}
	if all := p.Actors(); all != nil {
		attrs = append(attrs, slog.String("actors", fmt.Sprint(all)))
	}
	return slog.GroupValue(attrs...)
}

type principalKey struct{}

// FromContext returns the caller of a guarded call. ctx is the context of the call's
// handler. ok is false, and p is nil, in a handler of a public method and outside of a
// guarded call.
func FromContext(ctx context.Context) (p *Principal, ok bool) {
	p, _ = ctx.Value(principalKey{}).(*Principal)
	return p, p != nil
}

// handlerContext is the context of a handler, with the caller and the called method in one
// allocation. token is nil for a public method. A nil token hides the principal of an outer call
// in the same process, so that a public method never acts in the name of the outer caller.
type handlerContext struct {
	context.Context
	token *authentic
	call  refusal.Call
}

// Value returns the principal or the called method for the key of each, and otherwise the value
// of the parent context.
func (c *handlerContext) Value(key any) any {
	switch key.(type) {
	case principalKey:
		if c.token == nil {
			return nil
		}
		return &c.token.principal
	case refusal.CallKey:
		return &c.call
	}
	return c.Context.Value(key)
}
