// Package delegation makes tokens with which a service acts for its caller (RFC 8693): the new
// token speaks for the same subject, is for one other service, and names the service that asked
// as its actor.
//
// A delegated token has at most the roles of the subject's token. A delegated token has the
// subject's session and version and every actor's version, so that a logout, a change of rights
// and a disabled service anywhere in the chain take the token back at every verifier. A
// delegation writes no row: package audit counts delegations.
package delegation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// Denied is the error for a delegation that the service is not allowed to make.
type Denied struct{ why string }

func (d *Denied) Error() string { return d.why }

var (
	errUser     = &Denied{"only a service account delegates"}
	errShown    = &Denied{"a service delegates with a token for the audience " + caller.AdminAudience + " alone"}
	errActors   = &Denied{fmt.Sprintf("the subject's token has %d actors already", token.MaxActors)}
	errNotShown = &Denied{"the subject's token is for none of the audiences of the service"}
	errAudience = &Denied{"delegates_to of the service does not hold the audience"}
)

// ErrRoles means that the service asked for a role that the subject's token lacks, or for the
// role admin.
var ErrRoles = errors.New("not a role of the subject's token, or the role " + caller.Admin + ", which is never carried on")

// errAhead means that a token would begin too far in the future: the database's clock was ahead
// when a key was withdrawn, and was set back since. Delegations succeed again when the clock
// has come near the time of the withdrawal.
var errAhead = errors.New("the database's clock is behind the moment from which delegated tokens are valid: a key was withdrawn while the clock was ahead")

// SubjectRefused is the error for a subject's token that is not valid.
type SubjectRefused struct{ Reason watchwordv1.ErrorReason }

func (e *SubjectRefused) Error() string {
	return "the subject's token was refused: " + refusal.Name(e.Reason)
}

const (
	tokenExpired = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED
	tokenRevoked = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED
	tokenStale   = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE
)

// maxLead is how far in the future a token is allowed to begin. Verifiers accept an `iat` that
// is ahead by [feed.Margin], less their uncertainty about the server's clock.
const maxLead = feed.Margin - time.Minute

// Service delegates tokens. Every field is required. A Service is safe for concurrent use.
type Service struct {
	Feed     *feed.Feed
	Issuer   *issuer.Issuer
	Verifier *authn.Verifier // the verifier of this process, for every audience that the server issues for
	Audit    *audit.Log
}

// Request asks for a token that speaks for the subject of another token.
type Request struct {
	Subject  string   // the access token with which the service was called
	Audience string   // the service that the new token is for
	Roles    []string // each must be a role in the token Subject; empty: all roles in that token but admin
}

// Token is a delegated access token.
type Token struct {
	Access    string
	ExpiresIn time.Duration
}

// Delegate makes a delegated token for the service `by`.
//
// Delegate reads the rows in one transaction, and the verifier checks the subject's token again
// after the verifier knows everything that the transaction saw. Therefore a replica that hears
// late of the withdrawal of a key still refuses a token of the key.
//
// Errors: [*Denied]; [*SubjectRefused]; ErrRoles; [caller.ErrRevoked] and [caller.ErrStale] for
// the service's own token; errors of [issuer.Issuer.Mint] and of the store. The error has the
// service, the subject and the reason for the security record ([audit.Refusal]).
func (s *Service) Delegate(ctx context.Context, by caller.Caller, r Request) (*Token, error) {
	refused := audit.Refusal{ActorID: by.ID, ActorName: by.Name}
	minted, err := s.delegate(ctx, by, r, &refused)
	if err != nil {
		refused.Err, refused.Detail = err, detail(err)
		return nil, refused
	}
	s.Audit.Delegated(by, r.Audience)
	return minted, nil
}

// detail returns why a delegation was refused, as text for the security record.
func detail(err error) string {
	var denied *Denied
	var subject *SubjectRefused
	switch {
	case errors.As(err, &denied):
		return denied.why
	case errors.As(err, &subject):
		return "subject_reason: " + refusal.Name(subject.Reason)
	}
	return ""
}

// delegate makes the token, and notes the subject in refused, also if a later check refuses the
// delegation.
func (s *Service) delegate(ctx context.Context, by caller.Caller, r Request, refused *audit.Refusal) (*Token, error) {
	if err := mayAsk(by); err != nil {
		return nil, err
	}
	subject, err := s.verify(ctx, r.Subject)
	if err != nil {
		return nil, err
	}
	refused.UserID, refused.UserName, refused.SessionID = subject.Subject(), subject.Username(), subject.SessionID()
	actors := subject.Actors()
	if len(actors) == token.MaxActors {
		return nil, errActors
	}
	ids := []string{by.ID, subject.Subject()}
	for _, a := range actors {
		ids = append(ids, a.Subject())
	}
	rows, err := s.Feed.Standing(ctx, subject.SessionID(), ids)
	if err != nil {
		return nil, err
	}
	if _, err := s.verify(ctx, r.Subject); err != nil {
		return nil, err
	}
	if err := callerStands(by, rows); err != nil {
		return nil, err
	}
	if err := subjectStands(subject, rows); err != nil {
		return nil, err
	}
	if err := mayDelegate(rows.Users[by.ID], subject, r.Audience); err != nil {
		return nil, err
	}
	roles, err := narrowed(subject.Roles(), r.Roles)
	if err != nil {
		return nil, err
	}
	return s.mint(ctx, rows, subject, issuer.Subject{
		UserID: subject.Subject(), Username: subject.Username(), Roles: roles, Version: subject.TokenVersion(), SessionID: subject.SessionID(),
		Audience: []string{r.Audience}, Actors: withActor(by, actors),
	})
}

// mint mints the delegated token, which expires with the subject's token or earlier.
func (s *Service) mint(ctx context.Context, rows *store.Standing, subject *authn.Principal, of issuer.Subject) (*Token, error) {
	now, notBefore := rows.Now, rows.NotBefore
	of.NotBefore, of.SessionEnd = notBefore, subject.ExpiresAt()
	switch {
	case notBefore.Sub(now) > maxLead:
		return nil, errAhead
	case !of.SessionEnd.After(now) || !of.SessionEnd.After(notBefore):
		return nil, &SubjectRefused{tokenExpired}
	}
	access, expires, err := s.Issuer.Mint(ctx, now, of)
	if err != nil {
		return nil, err
	}
	return &Token{access, expires}, nil
}

// verify verifies the subject's token. To verify the same token again is cheap: the verifier has
// the token in a cache.
func (s *Service) verify(ctx context.Context, raw string) (*authn.Principal, error) {
	p, err := s.Verifier.Verify(ctx, raw)
	switch reason := authn.Reason(err); {
	case err == nil:
		return p, nil
	case reason == watchwordv1.ErrorReason_ERROR_REASON_BUNDLE_STALE: // only while the server is stopping, its verifier has a stale bundle
		return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	default:
		return nil, &SubjectRefused{reason}
	}
}

// mayAsk refuses a service token for other audiences: a service that receives such a token
// could delegate in the caller's name.
func mayAsk(by caller.Caller) error {
	switch {
	case by.Kind != caller.Service:
		return errUser
	case !slices.Equal(by.Audience, []string{caller.AdminAudience}):
		return errShown
	}
	return nil
}

// callerStands compares the caller's token with the database, as [caller.Caller.Check] does.
func callerStands(by caller.Caller, rows *store.Standing) error {
	row := rows.Users[by.ID]
	if row == nil || row.Kind != store.KindService {
		return caller.ErrRevoked
	}
	err := stands(row, by.Name, by.Version)
	if err == nil && !slices.Equal(by.Roles, row.Roles) {
		err = caller.ErrStale
	}
	return err
}

// subjectStands compares the subject's token with the database: the subject, its session and
// every actor. A revocation takes precedence over a change of rights.
func subjectStands(p *authn.Principal, rows *store.Standing) error {
	user := rows.Users[p.Subject()]
	errs := []error{stands(user, p.Username(), p.TokenVersion())}
	if user != nil && !rolesStand(p, user) {
		errs = append(errs, caller.ErrStale)
	}
	if user != nil && !sessionStands(p, user, rows.Session) {
		errs = append(errs, caller.ErrRevoked)
	}
	for _, a := range p.Actors() {
		errs = append(errs, stands(rows.Users[a.Subject()], a.Username(), a.TokenVersion()))
	}
	switch err := errors.Join(errs...); {
	case errors.Is(err, caller.ErrRevoked):
		return &SubjectRefused{tokenRevoked}
	case err != nil:
		return &SubjectRefused{tokenStale}
	}
	return nil
}

// stands compares the name and the version in a token with the row of the account. A token can
// have a version above the row's, up to the floor (the least version of new tokens) at the
// minting. Errors: [caller.ErrRevoked]; [caller.ErrStale].
func stands(row *store.User, name string, version int64) error {
	switch {
	case row == nil || row.Disabled || !row.DeletedAt.IsZero() || version < row.RevokedBelow:
		return caller.ErrRevoked
	case version < row.Version || version > row.TokenVersion() || name != row.Username:
		return caller.ErrStale
	}
	return nil
}

// rolesStand reports whether the subject still has the roles in the token. A delegated token
// can have fewer roles.
func rolesStand(p *authn.Principal, user *store.User) bool {
	roles := p.Roles()
	if _, delegated := p.Actor(); !delegated {
		return slices.Equal(roles, user.Roles)
	}
	return !slices.ContainsFunc(roles, func(r string) bool { return !slices.Contains(user.Roles, r) })
}

// sessionStands reports whether the session of the token is alive. A service account has no
// session.
func sessionStands(p *authn.Principal, user *store.User, session *store.Session) bool {
	if p.SessionID() == "" {
		return user.Kind == store.KindService
	}
	return session != nil && session.UserID == user.ID && caller.Alive(session, user)
}

// mayDelegate checks that the subject's token was for the service, and that the service is
// allowed to carry the subject's identity to an audience.
func mayDelegate(service *store.User, subject *authn.Principal, audience string) error {
	shown := func(a string) bool { return slices.Contains(service.Audiences, a) }
	switch {
	case !slices.ContainsFunc(subject.Audience(), shown):
		return errNotShown
	case audience == caller.AdminAudience || !slices.Contains(service.DelegatesTo, audience):
		return errAudience
	}
	return nil
}

// narrowed returns the roles of the new token: the roles in asked, or all roles in have but
// admin. Errors: ErrRoles.
func narrowed(have, asked []string) ([]string, error) {
	carried := slices.DeleteFunc(slices.Clone(have), func(r string) bool { return r == caller.Admin })
	if len(asked) == 0 {
		return carried, nil
	}
	for _, r := range asked {
		if !slices.Contains(carried, r) {
			return nil, ErrRoles
		}
	}
	return asked, nil
}

// withActor returns the actors of the new token: the caller, and then the actors in the
// subject's token.
func withActor(by caller.Caller, earlier []authn.Actor) []token.Actor {
	all := []token.Actor{{Subject: by.ID, Username: by.Name, Version: by.Version}}
	for _, a := range earlier {
		all = append(all, token.Actor{Subject: a.Subject(), Username: a.Username(), Version: a.TokenVersion()})
	}
	return all
}
