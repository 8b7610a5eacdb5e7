// Package rpc is the gRPC edge: it checks requests, calls the packages that do the
// work, and turns their answers and errors into messages and statuses. It decides
// nothing.
//
// A handler may return a response beside an error: the [Edge] drops the response.
package rpc

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/user"
)

// Auth serves AuthService.
type Auth struct {
	watchwordv1.UnimplementedAuthServiceServer
	Logins   *login.Service
	Sessions *session.Sessions
	Verifier *authn.Verifier
	Audience []string // all that this server issues for
}

// Login serves AuthService/Login.
func (a *Auth) Login(ctx context.Context, req *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	var r reading
	name := field(&r, "username", user.ParseName, req.GetUsername())
	pw := field(&r, "password", password.Parse, req.GetPassword())
	aud := field(&r, "audience", audience, req.GetAudience())
	if r.err != nil {
		return nil, r.err
	}
	tokens, err := a.Logins.Login(ctx, name, pw, aud)
	return &watchwordv1.LoginResponse{Tokens: tokenPair(tokens)}, err
}

// Refresh serves AuthService/Refresh.
func (a *Auth) Refresh(ctx context.Context, req *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	var r reading
	token := field(&r, "refresh_token", required, req.GetRefreshToken())
	aud := field(&r, "audience", audience, req.GetAudience())
	if r.err != nil {
		return nil, r.err
	}
	tokens, err := a.Sessions.Refresh(ctx, token, aud)
	return &watchwordv1.RefreshResponse{Tokens: tokenPair(tokens)}, err
}

// notIssuedFor stands for every audience that the server does not issue for. A token
// from before a change of the server's audiences may name such an audience, and no
// token names notIssuedFor.
const notIssuedFor = "\x00"

// Verify serves AuthService/Verify, by the verifier that guards this server too.
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
	case aud == "": // the verifier's own audiences are all that the server issues for
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

// Logout serves AuthService/Logout.
func (a *Auth) Logout(ctx context.Context, req *watchwordv1.LogoutRequest) (*watchwordv1.LogoutResponse, error) {
	var r reading
	token := field(&r, "refresh_token", required, req.GetRefreshToken())
	if r.err != nil {
		return nil, r.err
	}
	return &watchwordv1.LogoutResponse{}, a.Sessions.Logout(ctx, token)
}

// ChangePassword serves AuthService/ChangePassword.
func (a *Auth) ChangePassword(ctx context.Context, req *watchwordv1.ChangePasswordRequest) (*watchwordv1.ChangePasswordResponse, error) {
	var r reading
	current := field(&r, "current_password", password.Parse, req.GetCurrentPassword())
	next := field(&r, "new_password", password.Parse, req.GetNewPassword())
	if r.err != nil {
		return nil, r.err
	}
	tokens, err := a.Logins.ChangePassword(ctx, callerOf(ctx), current, next)
	return &watchwordv1.ChangePasswordResponse{Tokens: tokenPair(tokens)}, weakField("new_password", err)
}

// tokenPair returns nil for no tokens.
func tokenPair(t *session.Tokens) *watchwordv1.TokenPair {
	if t == nil {
		return nil
	}
	return &watchwordv1.TokenPair{
		AccessToken: t.Access, RefreshToken: t.Refresh, TokenType: "Bearer", SessionId: t.SessionID,
		ExpiresIn: durationpb.New(t.AccessExpiresIn), RefreshExpiresIn: durationpb.New(t.RefreshExpiresIn),
	}
}

func principal(p *authn.Principal) *watchwordv1.Principal {
	return &watchwordv1.Principal{
		Subject: p.Subject(), Username: p.Username(), Roles: p.Roles(), Audience: p.Audience(), Issuer: p.Issuer(),
		SessionId: p.SessionID(), TokenId: p.TokenID(),
		IssuedAt: timestamppb.New(p.IssuedAt()), ExpiresAt: timestamppb.New(p.ExpiresAt()),
	}
}
