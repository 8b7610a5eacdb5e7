package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/watchword-auth/watchword/authn/tokensource"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/keptlogin"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// tokens returns access tokens for the calls of a command.
type tokens interface {
	// token returns an access token; another one than refused, the token that the server has
	// refused.
	token(ctx context.Context, refused string) (string, error)
}

// fixedToken is an access token that no command can renew.
type fixedToken string

func (f fixedToken) token(context.Context, string) (string, error) { return string(f), nil }

// kept returns access tokens of a login that `watchword login` has kept.
type kept struct {
	*keptlogin.InUse
	server remote
}

// kept returns the newest login at the server that `watchword login` has kept; the newest login
// for the audience watchword if admin is true.
//
// Errors: an error that names the command to run, if no login is kept; the errors of
// [keptlogin.File.Use].
func (r remote) kept(admin bool) (kept, error) {
	login, err := keptlogin.At(r.Addr).Use(admin)
	switch {
	case err == nil:
		return kept{login, r}, nil
	case !errors.Is(err, keptlogin.ErrNone):
		return kept{}, fmt.Errorf("the kept logins cannot be used: %w", err)
	default:
		return kept{}, fmt.Errorf("no login at %s is kept; log in: %s", r.Addr, r.loginCommand(keptlogin.Login{Username: "NAME", Admin: admin}))
	}
}

// loginCommand returns the text of the command `watchword login` for the user of g, for an
// error text.
func (r remote) loginCommand(g keptlogin.Login) string {
	command := "watchword login " + g.Username
	if g.Admin {
		command += " --audience " + caller.AdminAudience
	}
	command += " --addr " + r.Addr
	if r.Plaintext {
		command += " --plaintext"
	}
	return command
}

// token returns an access token, which the server renews if needed.
//
// Errors: errors of the server and of [keptlogin.InUse.Token], with the command that begins a new
// session if the session is over.
func (k kept) token(ctx context.Context, refused string) (string, error) {
	token, err := k.Token(ctx, refused, k.server.renew)
	switch {
	case errors.Is(err, keptlogin.ErrLoggedOut):
		err = fmt.Errorf("%w; log in again: %s", err, k.server.loginCommand(k.Login))
	case sessionOver(err):
		err = over{err, k.server.loginCommand(k.Login)}
	}
	return token, err
}

// renew implements [keptlogin.Renew].
func (r remote) renew(ctx context.Context, refresh string, keep func(refresh string) error) (access string, err error) {
	opts := []tokensource.Option{
		tokensource.WithLogger(slog.New(slog.DiscardHandler)),
		tokensource.WithStore(func(_ context.Context, refresh string) error { return keep(refresh) }),
	}
	if r.PlaintextToOtherHosts {
		opts = append(opts, tokensource.WithPlaintextToOtherHosts())
	}
	err = r.with(ctx, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		source, err := tokensource.Refresh(conn, refresh, opts...)
		if err != nil {
			return err
		}
		defer source.Close()
		access, err = source.Token(ctx)
		return err
	})
	return access, err
}

// forget ends, at the server, the sessions of the logins that `watchword login` has kept.
func (r remote) forget(ctx context.Context, conn grpc.ClientConnInterface) error {
	return keptlogin.At(r.Addr).End(ctx, func(refresh string) error {
		_, err := watchwordv1.NewAuthServiceClient(conn).Logout(ctx, &watchwordv1.LogoutRequest{RefreshToken: refresh})
		if sessionOver(err) {
			return nil
		}
		return err
	})
}

// sessionOver reports whether an error of the server means that the session has ended, so that
// no refresh token of the session works any more.
func sessionOver(err error) bool {
	switch refusal.Reason(err) {
	case watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_INVALID, watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_EXPIRED,
		watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_REUSED, watchwordv1.ErrorReason_ERROR_REASON_SESSION_REVOKED:
		return true
	}
	return false
}

// over holds the error of a session that has ended.
type over struct {
	error
	command string // the command line that begins a new session
}

func (o over) Unwrap() error { return o.error }

// bearing returns the options of a connection that puts an access token on each of its calls. A
// unary call that the server refuses because of the token is sent once more with a new token.
// After the server has refused the token of a stream, the next stream gets a new token.
func bearing(from tokens) []grpc.DialOption {
	bear := func(ctx context.Context, refused string) (context.Context, string, error) {
		token, err := from.token(ctx, refused)
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), token, err
	}
	unary := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		with, token, err := bear(ctx, "")
		if err != nil {
			return err
		}
		if err = invoke(with, method, req, reply, conn, opts...); !tokenUseless(err) {
			return err
		}
		if with, renewed, renewErr := bear(ctx, token); renewErr != nil {
			return renewErr
		} else if renewed != token {
			return invoke(with, method, req, reply, conn, opts...)
		}
		return err
	}
	var useless atomic.Pointer[string] // the token that the server has refused for a stream
	useless.Store(new(string))
	stream := func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		with, token, err := bear(ctx, *useless.Load())
		if err != nil {
			return nil, err
		}
		s, err := open(with, desc, conn, method, opts...)
		return bearingStream{s, func() { useless.Store(&token) }}, err
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(unary), grpc.WithChainStreamInterceptor(stream)}
}

// bearingStream is a client stream that carries an access token.
type bearingStream struct {
	grpc.ClientStream
	refused func() // called if the server refuses the access token
}

// RecvMsg receives a message, and calls refused if the server refuses the access token.
func (s bearingStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if tokenUseless(err) {
		s.refused()
	}
	return err
}

// tokenUseless reports whether the server has refused a call because of the access token, in a
// way that another access token can mend.
func tokenUseless(err error) bool {
	switch refusal.Reason(err) {
	case watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED,
		watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE:
		return true
	}
	return false
}
