// Package rpc is the gRPC edge: it checks requests, calls the packages that do
// the work, and turns their answers and errors into messages and statuses. It
// decides nothing.
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
	if err != nil {
		return nil, err
	}
	return &watchwordv1.LoginResponse{Tokens: tokenPair(tokens)}, nil
}

// Refresh serves AuthService/Refresh.
func (a *Auth) Refresh(ctx context.Context, req *watchwordv1.RefreshRequest) (*watchwordv1.RefreshResponse, error) {
	if req.GetRefreshToken() == "" {
		return nil, invalid("refresh_token", "is required")
	}
	if err := checkAudience(req.GetAudience()); err != nil {
		return nil, err
	}
	tokens, err := a.Sessions.Refresh(ctx, req.GetRefreshToken(), req.GetAudience())
	if err != nil {
		return nil, err
	}
	return &watchwordv1.RefreshResponse{Tokens: tokenPair(tokens)}, nil
}

// notIssuedFor stands for every audience that the server does not issue for. A
// token from before its audiences were changed may name one of those, and none
// names this.
const notIssuedFor = "\x00"

// Verify serves AuthService/Verify by the verifier that guards this server too.
func (a *Auth) Verify(ctx context.Context, req *watchwordv1.VerifyRequest) (*watchwordv1.VerifyResponse, error) {
	if req.GetAccessToken() == "" {
		return nil, invalid("access_token", "is required")
	}
	p, err := a.verify(ctx, req)
	if err != nil {
		return nil, err
	}
	return &watchwordv1.VerifyResponse{Principal: principal(p)}, nil
}

func (a *Auth) verify(ctx context.Context, req *watchwordv1.VerifyRequest) (*authn.Principal, error) {
	asked := req.GetAudience()
	if asked == "" { // the verifier's own are all that the server issues for
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
	if req.GetRefreshToken() == "" {
		return nil, invalid("refresh_token", "is required")
	}
	if err := a.Sessions.Logout(ctx, req.GetRefreshToken()); err != nil {
		return nil, err
	}
	return &watchwordv1.LogoutResponse{}, nil
}

// ChangePassword serves AuthService/ChangePassword.
func (a *Auth) ChangePassword(ctx context.Context, req *watchwordv1.ChangePasswordRequest) (*watchwordv1.ChangePasswordResponse, error) {
	by, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	current, err := parse("current_password", password.Parse, req.GetCurrentPassword())
	if err != nil {
		return nil, err
	}
	next, err := parse("new_password", password.Parse, req.GetNewPassword())
	if err != nil {
		return nil, err
	}
	tokens, err := a.Logins.ChangePassword(ctx, by, current, next)
	if err != nil {
		return nil, weakField("new_password", err)
	}
	return &watchwordv1.ChangePasswordResponse{Tokens: tokenPair(tokens)}, nil
}

func tokenPair(t *session.Tokens) *watchwordv1.TokenPair {
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
