package authn

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/token"
)

// A Principal is the caller of a guarded call, as described by an access token (RFC 9068).
// Only a Verifier makes a Principal, after all checks of the token, and a Principal does
// not hold the token.
//
// A Principal never changes. Any number of goroutines may share a Principal, and every
// slice returned is a copy. A Principal describes the moment of the check: a program that
// keeps a Principal after the call misses later revocations and changes of rights.
type Principal struct {
	claims token.Claims
}

// Subject returns the id of the user (claim sub). The id never changes: store the id, and
// never the name, as the owner of a thing.
func (p *Principal) Subject() string { return p.claims.Subject }

// Username returns the user's name at the time the token was minted (claim username). A
// user's name may change.
func (p *Principal) Username() string { return p.claims.Username }

// Roles returns the user's roles at the time the token was minted (claim roles).
func (p *Principal) Roles() []string { return slices.Clone(p.claims.Roles) }

// HasRole returns whether role is among the user's roles.
func (p *Principal) HasRole(role string) bool { return slices.Contains(p.claims.Roles, role) }

// Audience returns the names of the services that accept the token (claim aud).
func (p *Principal) Audience() []string { return slices.Clone(p.claims.Audience) }

// Issuer returns the URL of the server that minted the token (claim iss).
func (p *Principal) Issuer() string { return p.claims.Issuer }

// SessionID returns the id of the user's session (claim sid). All tokens of one session,
// from the login to the logout, have the same id.
func (p *Principal) SessionID() string { return p.claims.SessionID }

// TokenID returns the id of the token (claim jti). The id is no secret, so logs may have it.
func (p *Principal) TokenID() string { return p.claims.ID }

// IssuedAt returns the time the token was minted (claim iat), by the server's clock.
func (p *Principal) IssuedAt() time.Time { return p.claims.IssuedAt }

// ExpiresAt returns the time the token expires (claim exp), by the server's clock.
func (p *Principal) ExpiresAt() time.Time { return p.claims.ExpiresAt }

// TokenVersion returns the version of the user's rights in the token (claim ver). The server
// raises a user's version with every change of rights, so a version below a raised version
// shows that the token is out of date. The version of new tokens also grows with each start
// of a server, without a change of rights.
func (p *Principal) TokenVersion() int64 { return p.claims.Version }

// String returns the user's name and id, for people.
func (p *Principal) String() string {
	return fmt.Sprintf("%s (%s)", p.claims.Username, p.claims.Subject)
}

// LogValue returns the subject, username, session_id and token_id, for structured logs.
func (p *Principal) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("subject", p.claims.Subject),
		slog.String("username", p.claims.Username),
		slog.String("session_id", p.claims.SessionID),
		slog.String("token_id", p.claims.ID),
	)
}

type principalKey struct{}

// FromContext returns the caller of a guarded call. ctx is the context of the call's
// handler. ok is false, and p is nil, in a handler of a public method and outside of a
// guarded call.
func FromContext(ctx context.Context) (p *Principal, ok bool) {
	p, _ = ctx.Value(principalKey{}).(*Principal)
	return p, p != nil
}

// withPrincipal returns the context for a handler. p is nil for a public method: a nil p
// hides the principal of an outer call in the same process, so a public method never acts
// in the name of the outer caller.
func withPrincipal(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}
