// Package tokensource calls services guarded by a Verifier of package authn. A [Source]
// signs in at Watchword and puts an access token on every call of a connection; [OnBehalfOf]
// calls with a token that Watchword delegates for a handler's caller; [Forward] passes on the
// very token of the caller; [Dial] makes the connection to Watchword.
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
// The package promises:
//
//   - No secret (password, refresh token, assertion, access token) leaves this machine over a
//     connection without TLS, unless [WithPlaintextToOtherHosts] allows plaintext. For each
//     call, the connection of the call is checked: its peer, and its target, because a proxy
//     on this machine may lead to another machine. Only the caller of [Source.Token] has
//     to check its own connection.
//   - No call is made twice, unless the called service refused the token before any work
//     was done.
//   - No secret appears in a log, in an error or in the text of a Source.
//   - A Source puts little load on Watchword: one request at a time for each of the Source's
//     tokens and for each caller with a token to be delegated, pauses after failures, and a limit
//     on the renewals and delegations caused by services that refuse tokens.
//   - A call on behalf of a caller carries a token for that caller, or fails.
//
// To be safe, a program
//
//   - gives each guarded service a token for the service alone ([WithAudience]): a service
//     can use a token that it receives wherever the token is accepted;
//   - keeps a refresh token in one place, readable by the program's user alone ([WithStore]):
//     Watchword ends the session if two programs use the same refresh token (RFC 9700
//     section 4.14);
//   - forwards a token only to services that are allowed to do everything that the caller is
//     allowed to do, and calls other services by OnBehalfOf;
//   - closes a Source, then the connections that use the Source.
//
// Any number of goroutines and connections can use everything in this package at once. The package
// measures times by the monotonic clock.
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

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/meter"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/retry"
	"github.com/watchword-auth/watchword/internal/spans"
)

// A Source signs in at Watchword and keeps an access token fresh. A Source implements
// credentials.PerRPCCredentials: give [Source.DialOptions] to the connections that need the
// token. [Password], [Refresh] and [Workload] make a Source.
//
// The first call that needs a token starts a renewal. One renewal at a time serves all
// calls, in a goroutine of its own: a call stops waiting when its context ends, and the
// renewal continues for the other calls. When about a fifth of a token's life is left, the
// next call starts a renewal and goes out with the present token. Without calls nothing
// runs, unless there is a token file ([WithTokenFile]).
//
// After a failed renewal, a later call starts the next renewal. The pause between two renewals
// grows to ten seconds; to five minutes after an error that only a person can resolve,
// such as a wrong password; or to the pause that Watchword asks for. During the pause a
// call uses the present token if the token is still good, and otherwise fails at once with the
// error of the renewal. If an answer of Watchword gets lost, the Source sends the same refresh
// token again, and the server accepts the refresh token again. A request without an answer for
// ten seconds is sent once more; without an answer again, the renewal fails as UNAVAILABLE.
//
// A service may refuse a token before the token's expiry. A unary call is then sent once
// more with a new token, if the reason is TOKEN_STALE, TOKEN_EXPIRED or TOKEN_INVALID and
// the error names the called method. An error that names another method comes from a
// service further down, perhaps after some work was done. A refused stream, and a call
// refused as TOKEN_REVOKED, is not sent again: only later calls get a new token. Services
// that refuse tokens can cause five renewals in a row, and then one every ten seconds.
//
// Errors of calls are gRPC statuses: Watchword's answer; UNAUTHENTICATED without a reason
// if the connection is plaintext to another machine; UNAVAILABLE if the function given to
// [WithStore] fails; CANCELED after Close; INTERNAL if the call has authorization metadata of
// its own, without [WithCallersHeaderDropped]; CANCELED or DEADLINE_EXCEEDED if the call's
// context ends. If the context ends during a renewal, the text says that the call was waiting for
// Watchword.
//
// If the call that starts a renewal is traced by OpenTelemetry, the renewal is a span below the
// span of the call, tokensource.renew, and the call of Watchword is below that span, if the
// connection to Watchword has otelgrpc's stats handler.
//
// If a connection is given two Sources, calls carry the token of the later Source.
type Source struct {
	session    *session
	own        *Source         // in a source of [Workload]: has the token for Watchword itself, by which [OnBehalfOf] delegates
	ctx        context.Context // the context of the renewals; ends at Close, and with a session that cannot begin again
	cancel     context.CancelFunc
	running    sync.WaitGroup // has the present renewal, the delegations and the keeper of the token file
	unregister func()         // ends the observation of the instruments of WithMeterProvider
	wake       chan struct{}  // wakes the keeper of the token file; holds one value

	mu           sync.Mutex        // guards the fields below
	access       string            // the token to send; empty without a token
	goodUntil    time.Time         // the time until which access can be sent
	renewAt      time.Time         // the time from which on a call starts a renewal, before goodUntil
	renewal      *renewal          // the present renewal; nil if no renewal is running
	lastErr      error             // the error of the last renewal, or the reason for the end of ctx
	notBefore    time.Time         // the earliest start of the next renewal
	askedAt      time.Time         // when access was asked for
	renewed      map[string]uint64 // counts the renewals by outcome
	refused      map[string]uint64 // counts the tokens that services have refused, by reason
	delegated    map[string]uint64 // counts the delegations by outcome
	backoff      retry.Backoff
	replacements *rate.Limiter // limits the renewals caused by services that refuse tokens
}

// renewalKey is the key of a value in the context of every renewal of a Source: in the
// requests of the Source to Watchword, and in the calls of the function given to
// [WithStore]. By this value [Source.Token] detects a call that would wait for itself.
type renewalKey struct{ *Source }

// An Option sets a property of a [Source], of [Forward] or of [OnBehalfOf].
type Option func(*config)

type config struct {
	audience    []string
	plaintext   bool
	dropCallers bool // the value of WithCallersHeaderDropped
	store       func(ctx context.Context, refreshToken string) error
	tokenFile   string // the path of WithTokenFile; empty without WithTokenFile
	fileGiven   bool   // true if WithTokenFile is among the options
	log         *slog.Logger
	meters      metric.MeterProvider // the value of WithMeterProvider; nil: no metrics
	attributes  []attribute.KeyValue // the attributes given to WithMeterProvider
}

// misplaced reports whether there is an option that [Forward] and [OnBehalfOf] do not take.
func (c *config) misplaced() bool {
	return len(c.audience) > 0 || c.store != nil || c.fileGiven || c.log != nil || c.meters != nil
}

// WithAudience names the services to get tokens for. The default is the first audience in
// the server's --audience; for [Refresh], every audience of the session's login. The methods
// that administer Watchword ask for the audience "watchword", and no token for "watchword" is for
// another audience too: a Source with this audience is for connections to Watchword. If
// WithAudience is given several times, the names add up. An empty name is INVALID_ARGUMENT.
func WithAudience(names ...string) Option {
	return func(c *config) { c.audience = append(c.audience, names...) }
}

// WithPlaintextToOtherHosts allows secrets on connections without TLS to other machines:
// the access token, and the password, the refresh token or the assertion. Anyone on the path can
// then act as the caller (RFC 6750 section 5.3), so use the option only where the network protects
// the path by other means.
func WithPlaintextToOtherHosts() Option { return func(c *config) { c.plaintext = true } }

// WithCallersHeaderDropped drops the authorization metadata of a call, and sends the token of the
// Source alone; without the option such a call is INTERNAL. The option is for a gateway that calls
// in its own name, such as grpc-gateway, which copies the headers of its caller into the metadata
// of its call. The called service then knows the gateway and not the gateway's caller, so the
// gateway has to decide itself which callers it serves. To pass on the caller, give the connection
// no Source and let the service verify the caller's token, or use [OnBehalfOf].
//
// The Source drops every value of the metadata "authorization", and of each key that ends in
// "-authorization", such as grpcgateway-authorization, in which grpc-gateway repeats the caller's
// header. Cookies and other metadata stay in the call: a gateway that gets tokens by such metadata
// has to drop them itself.
//
// The interceptors of [Source.DialOptions] drop the metadata. So a call with the Source by
// grpc.PerRPCCredentials alone stays INTERNAL, and so does a call to which an interceptor after
// those of DialOptions has added authorization metadata.
func WithCallersHeaderDropped() Option { return func(c *config) { c.dropCallers = true } }

// WithStore names a function, store, that saves each new refresh token, so that the program
// can continue its session after a restart, by [Refresh].
//
// The Source calls store after a login or a refresh, before any call goes out with the new
// access token, and from one goroutine at a time. The context given to store ends after ten
// seconds and at Close; Close waits until store has returned. store must not ask for a
// token: [Source.Token] with the context of store returns INTERNAL, because Token would wait
// for the renewal that waits for store.
//
// store must have saved the token when store returns nil. The Source sends the refresh token to
// Watchword only after store has returned nil, so the saved token is always good for one more
// refresh. If store returns an error, calls still go out with the new access token. The next
// renewal first calls store again, and fails as UNAVAILABLE if store fails again.
func WithStore(store func(ctx context.Context, refreshToken string) error) Option {
	return func(c *config) { c.store = store }
}

// WithLogger names the logger for failed renewals and ended sessions; no secret is logged. The
// default, also for nil, is slog.Default(); for silence, give slog.New(slog.DiscardHandler). The
// logger's handler must not use the Source.
func WithLogger(log *slog.Logger) Option { return func(c *config) { c.log = log } }

// Password returns a Source that logs in with a password, and logs in again when the session is
// over. A later login carries the refresh token of the session that is over: so guesses at
// the same username by clients without such a token do not delay the login. After a wrong
// password the Source pauses for some seconds, and longer each time, up to five minutes.
// Close does not end the session at Watchword.
//
// conn leads to Watchword; [Dial] makes such a connection. conn must not carry the Source itself:
// otherwise its calls are INTERNAL. conn must honour the call option grpc.PerRPCCredentials, as
// every grpc.ClientConn does: the secret enters the request only when grpc-go asks the option
// about the connection of the request. The caller closes the Source, then conn.
//
// Password sends nothing, so a wrong password is the error of the first call. Errors:
// INVALID_ARGUMENT if conn is nil or a text is empty.
func Password(conn grpc.ClientConnInterface, username, password string, opts ...Option) (*Source, error) {
	if username == "" || password == "" {
		return nil, misused("Password needs a username and a password")
	}
	return newSource(conn, &session{name: strconv.Quote(username), username: username, password: password}, opts)
}

// Refresh returns a Source that continues the session of a refresh token (RFC 6749 section
// 6). From now on only the Source may use the token: every refresh replaces the token (see
// [WithStore]), and Watchword ends a session if an old token appears (RFC 9700 section
// 4.14). After Watchword has refused the refresh token, every call fails with the same error.
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
		return nil, misused("WithAudience: a name is empty")
	}
	if err := begin.checkOptions(); err != nil {
		return nil, err
	}
	if begin.log == nil {
		begin.log = slog.Default()
	}
	begin.conn, begin.auth = conn, watchwordv1.NewAuthServiceClient(conn)
	s := begin.source()
	if begin.assertion != nil {
		own := *begin
		own.name, own.config = "a workload, at Watchword", config{audience: []string{"watchword"}, plaintext: begin.plaintext, log: begin.log}
		s.own = own.source()
	}
	var err error
	if s.unregister, err = meter.Register(begin.meters, scope, begin.attributes, s.numbers, instruments); err != nil {
		return nil, misused("WithMeterProvider: " + err.Error())
	}
	if begin.tokenFile != "" {
		s.running.Go(s.keepFile)
	}
	return s, nil
}

// source makes the Source of a session.
func (s *session) source() *Source {
	// The limiter keeps a service that refuses every token from flooding Watchword.
	made := &Source{
		session: s, replacements: rate.NewLimiter(replaceEvery, replaceBurst), unregister: func() {}, wake: make(chan struct{}, 1),
		renewed: map[string]uint64{}, refused: map[string]uint64{}, delegated: map[string]uint64{},
	}
	made.ctx, made.cancel = context.WithCancel(context.WithValue(context.Background(), renewalKey{made}, true))
	return made
}

// misused returns the error for a mistake in the program.
func misused(message string) error {
	return &refusal.Setup{Code: codes.InvalidArgument, Message: "tokensource: " + message}
}

// Close ends the present renewal and waits for its end. Calls waiting for a token, and every
// later call, are CANCELED. The session at Watchword continues after Close. A second Close does
// nothing. Close always returns nil.
func (s *Source) Close() error {
	s.unregister()
	s.mu.Lock()
	s.endLocked(status.Error(codes.Canceled, "tokensource: the source is closed")) // the code of a closed grpc.ClientConn
	s.mu.Unlock()
	if s.own != nil {
		_ = s.own.Close() // Close always returns nil
	}
	s.running.Wait()
	return nil
}

// launch runs f in a goroutine that Close waits for. After the end of the Source, launch
// returns the reason for the end instead.
func (s *Source) launch(f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return s.lastErr
	}
	s.running.Go(f)
	return nil
}

// endLocked ends the Source: every later call fails with err. s.mu must be held.
func (s *Source) endLocked(err error) {
	s.lastErr, s.access = err, ""
	s.cancel()
}

// DialOptions returns the options for grpc.NewClient: the Source itself, by
// grpc.WithPerRPCCredentials, and the interceptors that read the answers of services, by
// grpc.WithChainUnaryInterceptor and grpc.WithChainStreamInterceptor. If a call is made
// twice, an interceptor given before these options sees one call, and an interceptor given after
// these options sees both calls.
func (s *Source) DialOptions() []grpc.DialOption {
	return append(interceptors(s, s.session.dropCallers), grpc.WithPerRPCCredentials(s))
}

// Token returns the present access token, for clients of another kind than grpc-go: send
// the token as "authorization: Bearer TOKEN" (RFC 6750 section 2.1). Token starts a renewal
// when due, and waits for the renewal if there is no good token. Call Token for each
// request: the token returned lives for at least a second.
//
// Token does not check the caller's connection: send the token over TLS or within this
// machine. Token returns the same token until the next renewal is due, also after a service
// has refused the token.
//
// Errors: Watchword's answer; UNAVAILABLE if the function given to [WithStore] fails;
// CANCELED after Close; CANCELED or DEADLINE_EXCEEDED if ctx ends; INTERNAL if ctx is the
// context that the function given to WithStore has received.
func (s *Source) Token(ctx context.Context) (string, error) {
	if ctx.Value(renewalKey{s}) != nil { // the renewal would wait for itself
		return "", status.Error(codes.Internal, "tokensource: the source's own connection to Watchword uses the source, or its store asks for a token")
	}
	s.mu.Lock()
	now, ended := time.Now(), s.ctx.Err() != nil
	good := s.access != "" && now.Before(s.goodUntil)
	due := !good || !now.Before(s.renewAt)
	if due && !ended && s.renewal == nil && !now.Before(s.notBefore) {
		s.renewal = &renewal{done: make(chan struct{})}
		_, span := spans.Start(ctx, "tokensource.renew")
		s.running.Go(func() { s.renew(trace.ContextWithSpan(s.ctx, span)) })
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
		return "", status.Errorf(status.FromContextError(ctx.Err()).Code(), "tokensource: waiting for an access token from Watchword: %v", ctx.Err())
	}
}

// replace takes a refused token out of use, and reports whether to send the refused call again:
// another token is available, or a renewal may bring another token. After TOKEN_REVOKED the next
// token may speak for another session, so the call is not sent again. replace returns false if
// services refuse tokens too often. If another refused call has replaced the same token already,
// that token counts as replaced.
func (s *Source) replace(token string, why watchwordv1.ErrorReason) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[refusal.Name(why)]++
	if s.access == token && s.replacements.Allow() {
		s.access = ""
		s.wakeKeeper()
	}
	return s.access != token && why != watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED
}

// count adds one to the count of key in counts, a field that s.mu guards.
func (s *Source) count(counts map[string]uint64, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts[key]++
}

// RequireTransportSecurity returns false, because connections within this machine need no
// TLS. GetRequestMetadata checks the connection.
func (s *Source) RequireTransportSecurity() bool { return false }

// GetRequestMetadata returns the metadata with the access token for a call. grpc-go calls
// GetRequestMetadata when the call has a connection, and GetRequestMetadata checks the connection.
//
// Errors: those of [Source.Token]; UNAUTHENTICATED without a reason if the connection is
// plaintext to another machine; INTERNAL if the call has authorization metadata.
func (s *Source) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	var token string
	err := checkCall(ctx, uri, s.session.plaintext)
	if err == nil {
		token, err = s.Token(ctx)
	}
	note(ctx, s, &sent{s, token, err})
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
