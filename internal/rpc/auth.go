// Package rpc serves the gRPC methods of the server. The package checks the fields of requests,
// calls the packages that do the work, and turns the results and errors into messages and
// statuses. Other packages, such as user, session and issuer, hold the rules about users,
// sessions and keys.
//
// Every handler has the same order: check each field of the request, return an error for the
// first invalid field, call one method of a package that does the work, convert the result. A
// handler can return a response together with an error: the [Edge] drops the response.
package rpc

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/delegation"
	"github.com/watchword-auth/watchword/internal/federation"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/user"
)

// Auth serves AuthService.
type Auth struct {
	watchwordv1.UnimplementedAuthServiceServer
	Logins   *login.Service
	Sessions *session.Sessions
	Delegate *delegation.Service
	Exchange *federation.Exchanger
	Verifier *authn.Verifier
	Audience []string // all services for which this server issues tokens
	Known    *share.Known
}

// proved notes the client's network in [share.Known] after a right password or a valid token.
// When two networks with equal claims want the last place of a bounded queue, a known network
// gets the place.
func (a *Auth) proved(ctx context.Context, t *session.Tokens, err error) {
	if err == nil {
		a.Known.Add(caller.SourceOf(ctx).Network(), t.UserID)
	}
}

// Login serves AuthService/Login. A client needs no access token: the password proves the user.
func (a *Auth) Login(ctx context.Context, req *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	var r reading
	name := field(&r, "username", user.ParseName, req.GetUsername())
	pw := field(&r, "password", password.Parse, req.GetPassword())
	aud := field(&r, "audience", audience, req.GetAudience())
	if r.err != nil {
		return nil, r.err
	}
	tokens, err := a.Logins.Login(ctx, name, pw, aud, req.GetPreviousRefreshToken())
	a.proved(ctx, tokens, err)
	return &watchwordv1.LoginResponse{Tokens: tokenPair(tokens)}, err
}

// Refresh serves AuthService/Refresh. A client needs no access token, which may have expired:
// the refresh token proves the session.
func (a *Auth) Refresh(ctx context.Context, req *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	var r reading
	token := field(&r, "refresh_token", required, req.GetRefreshToken())
	aud := field(&r, "audience", audience, req.GetAudience())
	if r.err != nil {
		return nil, r.err
	}
	tokens, err := a.Sessions.Refresh(ctx, token, aud)
	a.proved(ctx, tokens, err)
	return &watchwordv1.RefreshResponse{Tokens: tokenPair(tokens)}, err
}

// notIssuedFor replaces, in a call of Verify, every audience for which the server issues no
// tokens. A token that was issued before the operator changed --audience can still name the
// audience, and the verifier would accept the token. Since no token names notIssuedFor, Verify
// refuses the call.
const notIssuedFor = "\x00"

// Verify serves AuthService/Verify, for services that cannot verify tokens themselves. Verify
// uses the verifier that also checks the calls of this server, so Verify and the server refuse
// a token from the same moment on.
func (a *Auth) Verify(ctx context.Context, req *watchwordv1.VerifyRequest) (*watchwordv1.VerifyResponse, error) {
	var r reading
	token := field(&r, "access_token", required, req.GetAccessToken())
	aud := req.GetAudience()
	if aud != "" {
		field(&r, "audience", audience, []string{aud})
	}
	if r.err != nil {
		return nil, r.err
	}
	var p *authn.Principal
	var err error
	switch {
	case aud == "": // a token for any service is right, if this server issues tokens for the service
		p, err = a.Verifier.Verify(ctx, token)
	case slices.Contains(a.Audience, aud):
		p, err = a.Verifier.VerifyFor(ctx, token, aud)
	default:
		p, err = a.Verifier.VerifyFor(ctx, token, notIssuedFor)
	}
	if err != nil {
		return nil, err
	}
	return &watchwordv1.VerifyResponse{Principal: principal(p)}, nil
}

// DelegateToken serves AuthService/DelegateToken.
func (a *Auth) DelegateToken(ctx context.Context, req *watchwordv1.DelegateTokenRequest) (*watchwordv1.DelegateTokenResponse, error) {
	var r reading
	subject := field(&r, "subject_token", required, req.GetSubjectToken())
	aud := field(&r, "audience", a.issuedFor, req.GetAudience())
	roles := field(&r, "roles", user.ParseRoles, req.GetRoles())
	if r.err != nil {
		return nil, r.err
	}
	t, err := a.Delegate.Delegate(ctx, callerOf(ctx), delegation.Request{Subject: subject, Audience: aud, Roles: roles})
	if err != nil {
		return nil, addField("roles", delegation.ErrRoles, err)
	}
	return &watchwordv1.DelegateTokenResponse{AccessToken: t.Access, TokenType: "Bearer", ExpiresIn: durationpb.New(t.ExpiresIn)}, nil
}

// issuedFor checks the one service that a delegated token is for.
func (a *Auth) issuedFor(name string) (string, error) {
	if name == "" {
		return required(name)
	}
	if !slices.Contains(a.Audience, name) {
		return "", session.ErrAudience
	}
	return name, nil
}

// ExchangeToken serves AuthService/ExchangeToken. A client needs no access token: the token of
// a trusted issuer proves the service account.
func (a *Auth) ExchangeToken(ctx context.Context, req *watchwordv1.ExchangeTokenRequest) (*watchwordv1.ExchangeTokenResponse, error) {
	var r reading
	assertion := field(&r, "subject_token", required, req.GetSubjectToken())
	aud := field(&r, "audience", audience, req.GetAudience())
	if r.err != nil {
		return nil, r.err
	}
	aud, err := a.Sessions.Audience(aud)
	if err != nil {
		return nil, err
	}
	t, err := a.Exchange.Exchange(ctx, assertion, aud)
	if err != nil {
		return nil, err
	}
	a.Known.Add(caller.SourceOf(ctx).Network(), t.UserID)
	return &watchwordv1.ExchangeTokenResponse{AccessToken: t.Access, TokenType: "Bearer", ExpiresIn: durationpb.New(t.ExpiresIn)}, nil
}

// Logout serves AuthService/Logout. A client needs no access token, since the refresh token
// proves the session: so a client can log out after its access token has expired.
func (a *Auth) Logout(ctx context.Context, req *watchwordv1.LogoutRequest) (*watchwordv1.LogoutResponse, error) {
	var r reading
	token := field(&r, "refresh_token", required, req.GetRefreshToken())
	if r.err != nil {
		return nil, r.err
	}
	return &watchwordv1.LogoutResponse{}, a.Sessions.Logout(ctx, token)
}

// ChangePassword serves AuthService/ChangePassword. The caller needs an access token
// and the current password: a stolen access token alone must not take over the account.
func (a *Auth) ChangePassword(ctx context.Context, req *watchwordv1.ChangePasswordRequest) (*watchwordv1.ChangePasswordResponse, error) {
	var r reading
	current := field(&r, "current_password", password.Parse, req.GetCurrentPassword())
	next := field(&r, "new_password", password.Parse, req.GetNewPassword())
	if r.err != nil {
		return nil, r.err
	}
	tokens, err := a.Logins.ChangePassword(ctx, callerOf(ctx), current, next)
	return &watchwordv1.ChangePasswordResponse{Tokens: tokenPair(tokens)}, addField("new_password", user.ErrService, weakField("new_password", err))
}

// tokenPair converts tokens to a message. For nil, tokenPair returns nil, since handlers call
// tokenPair before they look at the error.
func tokenPair(t *session.Tokens) *watchwordv1.TokenPair {
	if t == nil {
		return nil
	}
	return &watchwordv1.TokenPair{
		AccessToken: t.Access, RefreshToken: t.Refresh, TokenType: "Bearer", SessionId: t.SessionID,
		ExpiresIn: durationpb.New(t.AccessExpiresIn), RefreshExpiresIn: durationpb.New(t.RefreshExpiresIn),
	}
}

// principal converts what a verified access token says about its user to a message of the API.
func principal(p *authn.Principal) *watchwordv1.Principal {
	return &watchwordv1.Principal{
		Kind: p.Kind(),
		Actors: messages(p.Actors(), func(a authn.Actor) *watchwordv1.Actor {
			return &watchwordv1.Actor{Subject: a.Subject(), Username: a.Username()}
		}),
		Subject: p.Subject(), Username: p.Username(), Roles: p.Roles(), Audience: p.Audience(), Issuer: p.Issuer(),
		SessionId: p.SessionID(), TokenId: p.TokenID(),
		IssuedAt: timestamppb.New(p.IssuedAt()), ExpiresAt: timestamppb.New(p.ExpiresAt()),
	}
}
