package authn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/retry"
)

// Credentials put an access token on every call of a connection, and keep it
// fresh: the calling side of a Verifier. They are made by NewPasswordCredentials
// or NewRefreshCredentials.
//
//	creds, err := authn.NewPasswordCredentials(authConn, "billing", password)
//	defer creds.Close()
//	conn, err := grpc.NewClient("notes:443", append(creds.DialOptions(), grpc.WithTransportCredentials(tls))...)
//
// Nothing is asked of Watchword before the first call needs a token. From then
// on one renewal at a time serves every call, in a goroutine of its own: a call
// whose context ends stops waiting and disturbs nobody else. When about a fifth
// of a token's life is left, a call begins the next renewal and goes on with the
// token it has. Without calls nothing runs.
//
// A renewal that fails is tried again by a later call, after a growing pause of
// at most ten seconds, or five minutes where Watchword refused and asking again
// will hardly help, or longer if it says so. In between, calls go on with a token
// that is still good, and without one fail at once with the renewal's error. An
// answer that got lost does no harm: the server takes the same refresh token
// again.
//
// A service may refuse a token all the same. A unary call is then tried once
// more with a new one, after TOKEN_STALE, TOKEN_EXPIRED and TOKEN_INVALID, if the
// refusal names the method called: one from further down may have come after work
// was done. Streams are never replayed, and TOKEN_REVOKED ends its call; after
// both, the next call has a new token. A service that refuses every token is
// given five new ones at once, and from then on one in ten seconds.
//
// Errors are gRPC statuses: what Watchword answered, as it is; UNAUTHENTICATED
// without a reason for plaintext to another machine; CANCELED after Close;
// INTERNAL for a call with authorization metadata of its own.
//
// Credentials may be used by any number of connections and goroutines. Of two
// that one connection is given, only the later count.
type Credentials struct {
	auth               watchwordv1.AuthServiceClient
	username, password string // empty where a session is all there is
	config             credentialsConfig
	ctx                context.Context // ends at Close
	cancel             context.CancelFunc
	work               sync.WaitGroup // the renewal, while there is one

	// The renewal's alone, and there is one at a time.
	refreshToken string // the newest; empty: log in
	unsaved      bool   // the caller's store has not taken it yet

	mu        sync.Mutex
	access    string    // the token to send, empty if there is none
	goodUntil time.Time // by the monotonic clock, as all times here
	renewAt   time.Time
	renewal   *renewal // the one that is running
	over      error    // nothing more will come: closed, or refused for good
	last      error    // why the last renewal failed
	notBefore time.Time
	backoff   retry.Backoff
	spends    *rate.Limiter // the renewals after refusals
}

// A CredentialsOption sets something about Credentials.
type CredentialsOption func(*credentialsConfig)

type credentialsConfig struct {
	audience  []string
	plaintext bool
	store     func(ctx context.Context, refreshToken string) error
	log       *slog.Logger
}

// WithCredentialsAudience names the services that the tokens shall be for. The
// default is all that the server issues for, or all that a session's login named.
// Given twice it adds up.
func WithCredentialsAudience(names ...string) CredentialsOption {
	return func(c *credentialsConfig) { c.audience = append(c.audience, names...) }
}

// WithPlaintextToOtherHosts sends tokens, and the password, to other machines
// over connections without TLS too. Whoever sits on the path can then act as this
// caller, so this is for networks that protect the path by other means.
func WithPlaintextToOtherHosts() CredentialsOption {
	return func(c *credentialsConfig) { c.plaintext = true }
}

// WithTokenStore hands each new refresh token to the caller's store, so that a
// program can go on with its session after a restart, by NewRefreshCredentials.
//
// The store is called as soon as a token arrives, before any call goes out with
// the access token that came along, and never twice at a time. Its context ends
// after ten seconds and at Close, which waits for it.
//
// A refresh token is spent only after the store has taken it, so what the store
// holds is always good for one more refresh. If the store fails, the new access
// token is used nevertheless; the store is asked again before the next renewal,
// which fails as UNAVAILABLE if the store fails again. A store that returns nil
// all the same gives up that promise, and calls go on.
func WithTokenStore(store func(ctx context.Context, refreshToken string) error) CredentialsOption {
	return func(c *credentialsConfig) { c.store = store }
}

// WithCredentialsLogger is told of renewals that fail and of sessions that are
// over. No token and no password is ever logged. The default, and nil, is silence.
func WithCredentialsLogger(log *slog.Logger) CredentialsOption {
	return func(c *credentialsConfig) { c.log = log }
}

// NewPasswordCredentials logs in with a password, and again whenever the session
// is over. A password that is refused is tried again after pauses that grow from
// some seconds to five minutes. Close does not end the session.
//
// conn goes to Watchword. It must not carry these credentials itself: such calls
// are INTERNAL. It must honour the call option grpc.PerRPCCredentials, as every
// grpc.ClientConn does: the secret goes into the request only once that was asked
// about the very connection that will carry it. The caller closes the
// Credentials, and conn after them.
//
// The error is INVALID_ARGUMENT for arguments that cannot be meant.
func NewPasswordCredentials(conn grpc.ClientConnInterface, username, password string, opts ...CredentialsOption) (*Credentials, error) {
	if username == "" || password == "" {
		return nil, misused(errors.New("NewPasswordCredentials needs a username and a password"))
	}
	c, err := newCredentials(conn, opts)
	if err != nil {
		return nil, err
	}
	c.username, c.password = username, password
	return c, nil
}

// NewRefreshCredentials goes on with the session of a refresh token, which must
// be used nowhere else from now on: every refresh replaces it (see
// WithTokenStore). Once Watchword refuses it, every later call fails with that
// refusal. conn and the error are as in NewPasswordCredentials.
func NewRefreshCredentials(conn grpc.ClientConnInterface, refreshToken string, opts ...CredentialsOption) (*Credentials, error) {
	if refreshToken == "" {
		return nil, misused(errors.New("NewRefreshCredentials needs a refresh token"))
	}
	c, err := newCredentials(conn, opts)
	if err != nil {
		return nil, err
	}
	c.refreshToken = refreshToken
	return c, nil
}

func newCredentials(conn grpc.ClientConnInterface, opts []CredentialsOption) (*Credentials, error) {
	if conn == nil {
		return nil, misused(errors.New("credentials need a connection to Watchword"))
	}
	c := &Credentials{auth: watchwordv1.NewAuthServiceClient(conn), spends: rate.NewLimiter(rate.Every(spendEvery), spendBurst)}
	for _, opt := range opts {
		opt(&c.config)
	}
	if slices.Contains(c.config.audience, "") {
		return nil, misused(errors.New("WithCredentialsAudience: an audience is empty"))
	}
	if c.config.log == nil {
		c.config.log = slog.New(slog.DiscardHandler)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends what runs and waits for it. Every call from then on, and every one
// that waits for a token, is CANCELED. It may be called more than once, and always
// returns nil.
func (c *Credentials) Close() error {
	c.mu.Lock()
	c.over, c.access = errClosed, ""
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	return nil
}

// errClosed has the code that grpc-go gives for a connection that was closed.
var errClosed = status.Error(codes.Canceled, "authn: the credentials are closed")

// DialOptions are what grpc.NewClient needs: the credentials themselves, by
// grpc.WithPerRPCCredentials, and the interceptors that see what services
// answer, by grpc.WithChain…Interceptor. Interceptors given before these stand
// outside and see a call that is made twice as one; those after see both.
func (c *Credentials) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithPerRPCCredentials(c),
		grpc.WithChainUnaryInterceptor(c.callUnary),
		grpc.WithChainStreamInterceptor(c.callStream),
	}
}

// RequireTransportSecurity is false because connections within this machine need
// none. GetRequestMetadata looks at the connection itself.
func (c *Credentials) RequireTransportSecurity() bool { return false }

// GetRequestMetadata is for grpc-go, which asks it when a call has its
// connection. It waits for a token if there is none.
func (c *Credentials) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := c.tokenFor(ctx)
	if a, ok := ctx.Value(attemptKey{c}).(*attempt); ok {
		a.note(token, err)
	}
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// tokenFor returns the token for one call, on the connection that it was given.
func (c *Credentials) tokenFor(ctx context.Context) (string, error) {
	if ctx.Value(renewalKey{c}) != nil { // it would wait for itself
		return "", status.Error(codes.Internal, "authn: the connection to Watchword carries the very credentials that it serves")
	}
	if err := mayCarry(ctx, c.config.plaintext); err != nil {
		return "", err
	}
	return c.token(ctx)
}

// String names the credentials for people, without a secret.
func (c *Credentials) String() string {
	if c.username == "" {
		return "credentials of a session"
	}
	return fmt.Sprintf("credentials of %q", c.username)
}

// Format is String for every verb, so that none prints a secret.
func (c *Credentials) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue is String in structured logs.
func (c *Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }
