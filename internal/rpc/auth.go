// Package rpc serves the API over gRPC. A handler checks the request, calls the package
// below, and turns the result or error into a message or status. Package rpc decides
// nothing about a user, a session or a token.
//
// A handler may return a message beside an error: [Edge.Unary] drops the message.
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
	Audience []string // all services to issue for
}

// Login serves AuthService/Login.
func (a *Auth) Login(ctx context.Context, req *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	name, err := parse("username", user.ParseName, req.GetUsername())
	if err != nil {
		return nil, err
	}
	pw, err := parse("password", password.Parse, req.GetPassword())
	if err != nil {
		return nil, err
	}
	if err := checkAudience(req.GetAudience()); err != nil {
		return nil, err
	}
	tokens, err := a.Logins.Login(ctx, name, pw, req.GetAudience())
	return &watchwordv1.LoginResponse{Tokens: tokenPair(tokens)}, err
}

// Refresh serves AuthService/Refresh.
func (a *Auth) Refresh(ctx context.Context, req *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	if err := checkRequired("refresh_token", req.GetRefreshToken()); err != nil {
		return nil, err
	}
	if err := checkAudience(req.GetAudience()); err != nil {
		return nil, err
	}
	tokens, err := a.Sessions.Refresh(ctx, req.GetRefreshToken(), req.GetAudience())
	return &watchwordv1.RefreshResponse{Tokens: tokenPair(tokens)}, err
}

// notIssuedFor is an audience of no token. Verify asks for notIssuedFor if the server does
// not issue for the requested audience today: a token minted under an earlier
// configuration may still have the requested audience.
const notIssuedFor = "\x00"

// Verify serves AuthService/Verify, by the verifier of the server's own methods.
func (a *Auth) Verify(ctx context.Context, req *watchwordv1.VerifyRequest) (*watchwordv1.VerifyResponse, error) {
	if err := checkRequired("access_token", req.GetAccessToken()); err != nil {
		return nil, err
	}
	p, err := a.verify(ctx, req)
	if err != nil {
		return nil, err
	}
	return &watchwordv1.VerifyResponse{Principal: principal(p)}, nil
}

func (a *Auth) verify(ctx context.Context, req *watchwordv1.VerifyRequest) (*authn.Principal, error) {
	asked := req.GetAudience()
	if asked == "" { // the verifier accepts every audience of the server
		return a.Verifier.Verify(ctx, req.GetAccessToken())
	}
	if err := checkAudience([]string{asked}); err != nil {
		return nil, err
	}
	if !slices.Contains(a.Audience, asked) {
		asked = notIssuedFor
	}
	return a.Verifier.VerifyFor(ctx, req.GetAccessToken(), asked)
}

// Logout serves AuthService/Logout.
func (a *Auth) Logout(ctx context.Context, req *watchwordv1.LogoutRequest) (*watchwordv1.LogoutResponse, error) {
	err := checkRequired("refresh_token", req.GetRefreshToken())
	if err == nil {
		err = a.Sessions.Logout(ctx, req.GetRefreshToken())
	}
	return &watchwordv1.LogoutResponse{}, err
}

// ChangePassword serves AuthService/ChangePassword.
func (a *Auth) ChangePassword(ctx context.Context, req *watchwordv1.ChangePasswordRequest) (*watchwordv1.ChangePasswordResponse, error) {
	current, err := parse("current_password", password.Parse, req.GetCurrentPassword())
	if err != nil {
		return nil, err
	}
	next, err := parse("new_password", password.Parse, req.GetNewPassword())
	if err != nil {
		return nil, err
	}
	tokens, err := a.Logins.ChangePassword(ctx, callerOf(ctx), current, next)
	return &watchwordv1.ChangePasswordResponse{Tokens: tokenPair(tokens)}, nameWeakField("new_password", err)
}

// tokenPair returns nil without tokens.
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
