// Package tokensource calls services that a Verifier of package authn guards. A
// [Source] signs in at Watchword and puts an access token on every call of a
// connection; [Forward] passes on the token of a handler's own caller; [Dial] makes
// the connection to Watchword.
//
//	authConn, err := tokensource.Dial("auth:50051", grpc.WithTransportCredentials(tls))
//	if err != nil {
//		return err
//	}
//	defer authConn.Close()
//	source, err := tokensource.Password(authConn, "billing", password)
//	if err != nil {
//		return err
//	}
//	defer source.Close()
//	conn, err := grpc.NewClient("notes:443", append(source.DialOptions(), grpc.WithTransportCredentials(tls))...)
//	if err != nil {
//		return err
//	}
//	defer conn.Close()
//	resp, err := notesv1.NewNotesServiceClient(conn).ListNotes(ctx, new(notesv1.ListNotesRequest))
//
// What the package promises:
//
//   - No secret (password, refresh token, access token) leaves this machine over a
//     connection without TLS, unless [WithPlaintextToOtherHosts] allows it. The
//     connection that carries the call is checked, for each call. Only the caller of
//     [Source.Token] has to check the connection itself.
//   - No call is made twice unless the called service itself refused the token
//     before any work was done.
//   - No secret appears in a log, in an error or in the text of a Source.
//   - A Source puts little load on Watchword: one request at a time, pauses after
//     failures, and a bound on the renewals that a service can cause by refusing.
//
// To be safe, a program
//
//   - gives each guarded service a token for that service alone ([WithAudience]): a
//     service can use the token that it was shown wherever the token is good;
//   - keeps a refresh token in one place, readable by its owner alone ([WithStore]):
//     Watchword ends the session if two programs use the same one (RFC 9700 section
//     4.14);
//   - forwards a token only to services that may do everything that its caller may;
//   - closes a Source, then the connections.
//
// Everything here may be used by any number of goroutines and connections at once.
// Times are measured by the monotonic clock.
package tokensource

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/retry"
)

// A Source signs in at Watchword and keeps an access token fresh. It implements
// credentials.PerRPCCredentials: give its DialOptions to the connections that need
// the token. A Source is made by [Password] or [Refresh].
//
// The first call that needs a token starts a renewal. One renewal at a time serves
// all calls, in a goroutine of its own: a call whose context ends stops waiting, and
// the renewal goes on for the others. When about a fifth of a token's life is left,
// the next call starts a renewal and goes out with the token that is there. Without
// calls nothing runs.
//
// After a renewal that failed, a later call starts the next one. The pause between
// the two grows to ten seconds, or to five minutes if Watchword refused and only a
// person can help, or to what Watchword asks for. During the pause a call uses the
// token if it is still good, and otherwise fails at once with the error of the
// renewal. If an answer of Watchword gets lost, the same refresh token is sent again,
// which the server accepts.
//
// A service may refuse a token that looked good. A unary call is then made once more
// with a new token, if the reason is TOKEN_STALE, TOKEN_EXPIRED or TOKEN_INVALID and
// the refusal names the method that was called. A refusal that names another method
// comes from further down, and work may have been done before it. A stream is not
// made again, nor is a call after TOKEN_REVOKED: these refusals replace the token for
// the next call. Refusals replace five tokens at once, and then one every ten seconds.
//
// Errors of calls are gRPC statuses: what Watchword answered; UNAUTHENTICATED without
// a reason if the connection is plaintext to another machine; UNAVAILABLE if the store
// fails (see [WithStore]); CANCELED after Close; INTERNAL if the call has authorization
// metadata of its own; CANCELED or DEADLINE_EXCEEDED if the call's context ends.
//
// If a connection is given two Sources, the later one counts.
type Source struct {
	session  *session
	ctx      context.Context // of the renewals; ends at Close, and when the session is over and cannot begin anew
	cancel   context.CancelFunc
	renewals sync.WaitGroup // the renewal that runs

	mu           sync.Mutex // guards the fields below
	access       string     // the token to send; empty if there is none
	goodUntil    time.Time  // from then on access is not sent
	renewAt      time.Time  // from then on a call starts a renewal
	renewal      *renewal   // the one that runs; nil if none does
	lastErr      error      // why the last renewal failed, or why ctx ended
	notBefore    time.Time  // the earliest start of the next renewal
	backoff      retry.Backoff
	replacements *rate.Limiter // of tokens that a service refused
}

// renewalKey marks the context of the source's own requests and of its store.
type renewalKey struct{ *Source }

// An Option sets something about a [Source] or about [Forward].
type Option func(*config)

type config struct {
	audience  []string
	plaintext bool
	store     func(ctx context.Context, refreshToken string) error
	log       *slog.Logger
}

// WithAudience names the services that the tokens are for. The default is every
// audience that the server issues for; for [Refresh], every audience of the session's
// login. Names of several WithAudience add up. An empty name is INVALID_ARGUMENT.
func WithAudience(names ...string) Option {
	return func(c *config) { c.audience = append(c.audience, names...) }
}

// WithPlaintextToOtherHosts allows secrets on connections without TLS to other
// machines: the access token, and the password or the refresh token. Anyone on the
// path can then act as this caller (RFC 6750 section 5.3), so use it only where the
// network protects the path by other means.
func WithPlaintextToOtherHosts() Option { return func(c *config) { c.plaintext = true } }

// WithStore hands each new refresh token to store, so that the program can continue
// its session after a restart, by [Refresh].
//
// store is called when a token arrives, before a call goes out with the access token
// that came with it, and from one goroutine at a time. Its context ends after ten
// seconds and at Close; Close waits for store. A call of Token with that context is
// INTERNAL, since it would wait for the renewal that waits for store.
//
// A refresh token is sent only after store has taken it, so the token in the store is
// always good for one more refresh. If store fails, calls go out with the new access
// token. The next renewal first calls store again, and fails as UNAVAILABLE if store
// fails again. A store that returns nil without keeping the token loses this promise.
func WithStore(store func(ctx context.Context, refreshToken string) error) Option {
	return func(c *config) { c.store = store }
}

// WithLogger logs renewals that fail and sessions that are over; no secret is logged.
// The default, and nil, is silence. The logger's handler must not use the Source.
func WithLogger(log *slog.Logger) Option { return func(c *config) { c.log = log } }

// Password returns a Source that logs in with a password, and again when its session
// is over. After a refused password it pauses for some seconds, and longer each time,
// up to five minutes. Close does not end the session at Watchword.
//
// conn leads to Watchword; [Dial] makes one. conn must not carry the Source itself:
// such calls are INTERNAL. conn must honour the call option grpc.PerRPCCredentials, as
// every grpc.ClientConn does: the secret enters the request only after that option was
// asked about the connection that carries it. The caller closes the Source, then conn.
//
// Errors: INVALID_ARGUMENT if conn is nil or a text is empty. Password sends nothing,
// so a wrong password is the error of the first call.
func Password(conn grpc.ClientConnInterface, username, password string, opts ...Option) (*Source, error) {
	if username == "" || password == "" {
		return nil, misused("Password needs a username and a password")
	}
	return newSource(conn, &session{name: strconv.Quote(username), username: username, password: password}, opts)
}

// Refresh returns a Source that continues the session of a refresh token (RFC 6749
// section 6). Nothing else may use that token from now on: every refresh replaces it
// (see [WithStore]), and Watchword ends a session of which an old token appears (RFC
// 9700 section 4.14). After Watchword has refused the refresh token, every call fails
// with that refusal.
//
// conn is as in [Password]. Errors: INVALID_ARGUMENT if conn is nil or a text is empty.
func Refresh(conn grpc.ClientConnInterface, refreshToken string, opts ...Option) (*Source, error) {
	if refreshToken == "" {
		return nil, misused("Refresh needs a refresh token")
	}
	return newSource(conn, &session{name: "a session", refreshToken: refreshToken}, opts)
}

func newSource(conn grpc.ClientConnInterface, begin *session, opts []Option) (*Source, error) {
	if conn == nil {
		return nil, misused("a source needs a connection to Watchword")
	}
	for _, opt := range opts {
		opt(&begin.config)
	}
	if slices.Contains(begin.audience, "") {
		return nil, misused("WithAudience: an audience is empty")
	}
	if begin.log == nil {
		begin.log = slog.New(slog.DiscardHandler)
	}
	begin.auth = watchwordv1.NewAuthServiceClient(conn)
	// A service that refuses every token must not make its callers flood Watchword.
	s := &Source{session: begin, replacements: rate.NewLimiter(rate.Every(10*time.Second), 5)}
	s.ctx, s.cancel = context.WithCancel(context.WithValue(context.Background(), renewalKey{s}, true))
	return s, nil
}

// alive finds within 15 s that a connection died without a word, as by a pulled cable
// or a lost entry of a NAT. A Source has no stream between two renewals, and the
// connection has to last from one to the next: pings keep it in the tables of
// middleboxes. The server allows a ping every 5 s, also without a stream.
var alive = keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}

// Dial returns a connection to Watchword, for a [Source] and for authn.NewVerifier. It
// is grpc.NewClient with the keepalive that these need: a verifier hears of revocations
// over the connection, and a connection that died is noticed within 15 seconds.
//
// opts come after the options of Dial and override them; they must contain transport
// credentials. target is as for grpc.NewClient: a host and port, or the URL of a
// resolver. The connection is made at the first call. The caller closes it, after the
// sources and verifiers that use it.
//
// Do not dial other services with Dial: a server with the default settings of grpc-go
// ends connections that ping so often.
//
// Errors: those of grpc.NewClient, for a target or options that cannot be used.
func Dial(target string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, append([]grpc.DialOption{grpc.WithKeepaliveParams(alive)}, opts...)...)
}

// misused returns the error for a mistake in the program.
func misused(message string) error {
	return &refusal.Setup{Code: codes.InvalidArgument, Message: "tokensource: " + message}
}

// Close ends the renewal that runs and waits for it. Calls that wait for a token, and
// every later call, are CANCELED. Close may be called more than once, and always
// returns nil. The session at Watchword goes on.
func (s *Source) Close() error {
	s.mu.Lock()
	s.endLocked(status.Error(codes.Canceled, "tokensource: the source is closed")) // the code of a closed grpc.ClientConn
	s.mu.Unlock()
	s.renewals.Wait()
	return nil
}

// endLocked makes every call fail with err from now on. s.mu must be held.
func (s *Source) endLocked(err error) {
	s.lastErr, s.access = err, ""
	s.cancel()
}

// DialOptions returns the options for grpc.NewClient: the Source itself, by
// grpc.WithPerRPCCredentials, and the interceptors that see the answers of services,
// by grpc.WithChainUnaryInterceptor and grpc.WithChainStreamInterceptor. An interceptor
// given before these sees one call where the call is made twice; an interceptor given
// after these sees both.
func (s *Source) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithPerRPCCredentials(s),
		grpc.WithChainUnaryInterceptor(s.interceptUnary),
		grpc.WithChainStreamInterceptor(s.interceptStream),
	}
}

// Token returns the access token to send now, for callers that are not grpc-go: send
// it as "authorization: Bearer TOKEN" (RFC 6750 section 2.1). Token starts a renewal
// if one is due and waits for it if there is no good token. Ask again for each
// request; a token that Token returned lives for a second or more.
//
// Token does not check the connection that will carry the token: send it over TLS or
// within this machine. Nor does Token learn that a service refused the token, so it
// returns the same one until it is due.
//
// Errors: what Watchword answered; UNAVAILABLE if the store fails; CANCELED after
// Close; CANCELED or DEADLINE_EXCEEDED if ctx ends; INTERNAL if ctx is that of the
// store.
func (s *Source) Token(ctx context.Context) (string, error) {
	if ctx.Value(renewalKey{s}) != nil { // it would wait for itself
		return "", status.Error(codes.Internal, "tokensource: the connection to Watchword carries the very credentials that it serves, or the store asks for a token")
	}
	s.mu.Lock()
	now, ended := time.Now(), s.ctx.Err() != nil
	good := s.access != "" && now.Before(s.goodUntil)
	due := !good || !now.Before(s.renewAt)
	if due && !ended && s.renewal == nil && !now.Before(s.notBefore) {
		s.renewal = &renewal{done: make(chan struct{})}
		s.renewals.Go(s.renew)
	}
	access, running, lastErr := s.access, s.renewal, s.lastErr
	s.mu.Unlock()
	switch {
	case good:
		return access, nil
	case ended || running == nil:
		return "", lastErr
	}
	select {
	case <-running.done:
		return running.token, running.err
	case <-ctx.Done():
		return "", status.FromContextError(ctx.Err()).Err()
	}
}

// RequireTransportSecurity returns false, since connections within this machine need
// no TLS. GetRequestMetadata checks the connection.
func (s *Source) RequireTransportSecurity() bool { return false }

// GetRequestMetadata is called by grpc-go when a call has its connection. It checks
// that connection and returns the metadata with the access token, as [Source.Token]
// gives it. Errors: those of Token; UNAUTHENTICATED without a reason if the connection
// is plaintext to another machine; INTERNAL if the call has authorization metadata.
func (s *Source) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	var token string
	err := checkCall(ctx, s.session.plaintext)
	if err == nil {
		token, err = s.Token(ctx)
	}
	if a, ok := ctx.Value(attemptKey{s}).(*attempt); ok {
		a.sent.Store(&sent{token, err})
	}
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// String returns a name for people, without a secret.
func (s *Source) String() string { return "credentials of " + s.session.name }

// Format writes String for every verb, so that no verb prints a secret.
func (s *Source) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue returns String for structured logs.
func (s *Source) LogValue() slog.Value { return slog.StringValue(s.String()) }
