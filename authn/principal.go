package authn

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/token"
)

// A Principal is who an access token speaks for, and a proof that the token was
// judged good: only a Verifier makes one. It cannot be changed, so any number of
// goroutines may share it, and slices are the caller's own copies. It holds no
// token. What it says was so when the token was judged; a Principal that is kept
// past its call learns of no revocation.
type Principal struct {
	claims token.Claims
}

// Subject is the user's id. It never changes, and is what to store as the owner
// of something.
func (p *Principal) Subject() string { return p.claims.Subject }

// Username is the user's name when the token was minted. Names can change.
func (p *Principal) Username() string { return p.claims.Username }

// Roles are the user's roles when the token was minted.
func (p *Principal) Roles() []string { return slices.Clone(p.claims.Roles) }

// HasRole says whether the user has a role.
func (p *Principal) HasRole(role string) bool { return slices.Contains(p.claims.Roles, role) }

// Audience is the services that the token is for.
func (p *Principal) Audience() []string { return slices.Clone(p.claims.Audience) }

// Issuer is who minted the token.
func (p *Principal) Issuer() string { return p.claims.Issuer }

// SessionID is the session that the token belongs to.
func (p *Principal) SessionID() string { return p.claims.SessionID }

// TokenID is the token's own id, good for logs: it opens nothing.
func (p *Principal) TokenID() string { return p.claims.ID }

// IssuedAt is when the token was minted.
func (p *Principal) IssuedAt() time.Time { return p.claims.IssuedAt }

// ExpiresAt is when the token expires.
func (p *Principal) ExpiresAt() time.Time { return p.claims.ExpiresAt }

// TokenVersion is the version of the user's rights that the token was minted
// under (claim ver). A token below the user's own version is out of date.
func (p *Principal) TokenVersion() int64 { return p.claims.Version }

// String names the user for people.
func (p *Principal) String() string {
	return fmt.Sprintf("%s (%s)", p.claims.Username, p.claims.Subject)
}

// LogValue makes a principal readable in structured logs.
func (p *Principal) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("subject", p.claims.Subject),
		slog.String("username", p.claims.Username),
		slog.String("session_id", p.claims.SessionID),
		slog.String("token_id", p.claims.ID),
	)
}

type principalKey struct{}

// FromContext returns the principal of a guarded call. There is none, and ok is
// false, in a public method and outside of a guarded call.
func FromContext(ctx context.Context) (p *Principal, ok bool) {
	p, _ = ctx.Value(principalKey{}).(*Principal)
	return p, p != nil
}

// withPrincipal is the context that a handler sees.
func withPrincipal(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// withoutPrincipal hides the principal of an outer call, so that a public method
// never acts in the name of somebody who didn't call it.
func withoutPrincipal(ctx context.Context) context.Context {
	if _, ok := FromContext(ctx); !ok {
		return ctx
	}
	return context.WithValue(ctx, principalKey{}, (*Principal)(nil))
}
