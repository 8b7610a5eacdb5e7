package tokensource

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/retry"
	"github.com/watchword-auth/watchword/internal/spans"
)

const (
	// maxDelegations limits the delegated tokens that one OnBehalfOf remembers: some megabytes.
	// With more than maxDelegations callers within a token's life, tokens are delegated more often.
	maxDelegations = 4096
	// sweepEvery is the time between two removals of expired tokens.
	sweepEvery = 10 * time.Second
)

// OnBehalfOf returns the options for grpc.NewClient by which a handler calls another service on
// behalf of the handler's caller: pass the handler's context to the calls. Each call carries a
// token that Watchword has delegated (DelegateToken, RFC 8693): the token speaks for the caller, is
// for audience alone, names this service as the actor, and can be revoked with the caller's session
// and with this service's account. So the called service learns no token that other services
// accept. Compare [Forward].
//
// source must come from [Workload], by which this service signs in at Watchword. conn leads to
// Watchword, as in [Password], and carries no credentials of its own. The service account needs
// audience among its delegates_to, and the audience of the caller's token among its audiences.
//
// OnBehalfOf gets one delegated token for each token of a caller, and remembers the delegated token
// until the expiry, for the connections that are made with the same options. OnBehalfOf remembers
// 4096 tokens at most. If the
// called method refuses the delegated token, OnBehalfOf forgets the token, and sends a unary call
// once more with a new delegated token, also after TOKEN_REVOKED: the answer of DelegateToken then
// says whether the caller or this service was revoked. A refused stream is not sent again. For each
// token of a caller, services can cause five delegations in a row, and then one every ten seconds.
//
// If Watchword refuses the token of the handler's caller (SUBJECT_TOKEN_REFUSED), the call fails
// with the reason of that refusal, such as TOKEN_EXPIRED, and the error names the method of the
// handler. If the handler returns this error as it is, the caller's Source renews the token and
// calls the handler again. The error names no method if the handler has already called another
// service by a connection of this package. A handler that has done other work first, which must
// not be done twice, has to return another error.
//
// OnBehalfOf takes only the options [WithPlaintextToOtherHosts] and [WithCallersHeaderDropped],
// which apply to the calls of the other service; the options of source apply to the calls of
// Watchword. The source's meters count the delegations. If the call is traced by OpenTelemetry, a
// delegation is a span below the span of the call, tokensource.delegate. Close of source ends the
// delegations.
//
// Errors of calls: INTERNAL if the context is not that of a guarded call, since the call never
// falls back to a token of the service itself; INTERNAL if OnBehalfOf is misused, or if the call
// has authorization metadata of its own, without WithCallersHeaderDropped; UNAUTHENTICATED without
// a reason if the connection is plaintext to another machine; DELEGATION_DENIED and the other
// errors of DelegateToken; those of [Source.Token]; RESOURCE_EXHAUSTED without a reason if 4096
// delegations wait for Watchword.
func OnBehalfOf(source *Source, conn grpc.ClientConnInterface, audience string, opts ...Option) []grpc.DialOption {
	var c config
	for _, opt := range opts {
		opt(&c)
	}
	o := &onBehalf{source: source, conn: conn, audience: audience, plaintext: c.plaintext, delegations: map[subjectKey]*delegation{}}
	switch {
	case c.misplaced():
		o.misuse = "OnBehalfOf takes no option but WithPlaintextToOtherHosts and WithCallersHeaderDropped"
	case source == nil || source.own == nil:
		o.misuse = "OnBehalfOf needs a source of Workload: only a service account may delegate"
	case conn == nil:
		o.misuse = "OnBehalfOf needs a connection to Watchword"
	case audience == "":
		o.misuse = "OnBehalfOf needs the audience of the called service"
	default:
		o.auth = watchwordv1.NewAuthServiceClient(conn)
	}
	return append(interceptors(o, c.dropCallers), grpc.WithPerRPCCredentials(o))
}

// onBehalf implements credentials.PerRPCCredentials, and puts delegated tokens on calls.
type onBehalf struct {
	source    *Source
	conn      grpc.ClientConnInterface // the connection to Watchword, for the calls of auth
	auth      watchwordv1.AuthServiceClient
	audience  string
	plaintext bool
	misuse    string // the error of every call; empty: none

	mu          sync.Mutex // guards the fields below, and the fields of every delegation
	delegations map[subjectKey]*delegation
	sweepAt     time.Time // the time of the next removal of expired tokens
	lastErr     error     // the error of the last delegation, if Watchword was away or overloaded
	notBefore   time.Time // before this time a new delegation fails with lastErr
	backoff     retry.Backoff
}

// subjectKey holds the SHA-256 of a caller's token, so that no caller's token stays in memory.
type subjectKey [sha256.Size]byte

// A delegation holds one token of DelegateToken, or stands for the attempt to get a token.
type delegation struct {
	of           *onBehalf
	key          subjectKey
	replacements *rate.Limiter // limits the new delegations that refusals of services cause, for one service and one caller's token
	done         chan struct{} // closed when token or err is set
	token        string
	goodUntil    time.Time
	err          error
	useless      bool // true after a service has refused the token
}

// RequireTransportSecurity returns false: [checkCall] checks the connection instead.
func (o *onBehalf) RequireTransportSecurity() bool { return false }

// GetRequestMetadata returns the metadata with the delegated token for a call.
//
// Errors: see [OnBehalfOf].
func (o *onBehalf) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	d, err := o.get(ctx, uri)
	s := &sent{err: err}
	if err == nil {
		s.holder, s.token = d, d.token
	}
	note(ctx, o, s)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + d.token}, nil
}

// get returns a delegation with a token for the caller of the handler with the context ctx.
func (o *onBehalf) get(ctx context.Context, uri []string) (*delegation, error) {
	if o.misuse != "" {
		return nil, status.Error(codes.Internal, "tokensource: "+o.misuse)
	}
	subject, ok := callersToken(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "tokensource: a call by OnBehalfOf needs the context of a guarded call, and this context has no caller: "+
			"pass on the context of the handler, of a method that is not public")
	}
	if err := checkCall(ctx, uri, o.plaintext); err != nil {
		return nil, err
	}
	d, err := o.find(ctx, subject)
	if err != nil {
		return nil, err
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		return nil, status.Errorf(status.FromContextError(ctx.Err()).Code(), "tokensource: waiting for a delegated token from Watchword: %v", ctx.Err())
	}
	if why := refusal.SubjectReason(d.err); tokenUseless[why] {
		return nil, refusal.CallersToken(ctx, why, "the access token of the caller was refused when it was to be delegated: "+refusal.Name(why))
	}
	return d, aboutOwn(d.err)
}

// aboutOwn adds to the message of a delegation's error that the service's own token was refused,
// if the reason is one of an access token: a handler may return the error to its caller, and the
// token of the caller is good. aboutOwn keeps the reason and the method of the error.
func aboutOwn(err error) error {
	if !tokenUseless[refusal.Reason(err)] {
		return err
	}
	p := status.Convert(err).Proto()
	p.Message = "the service's own access token was refused, perhaps because the service account is disabled: " + p.GetMessage()
	return status.ErrorProto(p)
}

// find returns the delegation for a caller's token, and starts a delegation if there is none.
//
// Errors: the reason for the end of the source; during the pause after a failed delegation, the
// error of the failed delegation; RESOURCE_EXHAUSTED if maxDelegations delegations wait for
// Watchword.
func (o *onBehalf) find(ctx context.Context, subject string) (*delegation, error) {
	key, now := subjectKey(sha256.Sum256([]byte(subject))), time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sweepLocked(now)
	earlier := o.delegations[key]
	if earlier != nil && !earlier.overLocked(now) {
		return earlier, nil
	}
	if now.Before(o.notBefore) {
		return nil, o.lastErr
	}
	if earlier == nil && !o.makeRoomLocked() {
		return nil, status.Errorf(codes.ResourceExhausted, "tokensource: %d delegations wait for Watchword", maxDelegations)
	}
	d := &delegation{of: o, key: key, done: make(chan struct{}), replacements: rate.NewLimiter(replaceEvery, replaceBurst)}
	if earlier != nil {
		d.replacements = earlier.replacements
	}
	_, span := spans.Start(ctx, "tokensource.delegate")
	if err := o.source.launch(func() { d.run(trace.ContextWithSpan(o.source.ctx, span), subject) }); err != nil {
		spans.End(span, true)
		return nil, err
	}
	o.delegations[key] = d
	return d, nil
}

// overLocked reports whether the token of a delegation must not be sent any more. o.mu must be
// held.
func (d *delegation) overLocked(now time.Time) bool { return d.useless || d.expiredLocked(now) }

func (d *delegation) expiredLocked(now time.Time) bool {
	return d.token != "" && !now.Before(d.goodUntil)
}

// sweepLocked removes the expired tokens, once in sweepEvery. o.mu must be held.
func (o *onBehalf) sweepLocked(now time.Time) {
	if !now.Before(o.sweepAt) {
		maps.DeleteFunc(o.delegations, func(_ subjectKey, d *delegation) bool { return d.expiredLocked(now) })
		o.sweepAt = now.Add(sweepEvery)
	}
}

// makeRoomLocked makes room for one more delegation, and reports whether there is room. If
// necessary, makeRoomLocked removes a random token: so in a flood of new tokens, each token has
// the same chance to stay. o.mu must be held.
func (o *onBehalf) makeRoomLocked() bool {
	if len(o.delegations) < maxDelegations {
		return true
	}
	for key, d := range o.delegations { // a range over a map takes the entries in random order
		if d.token != "" {
			delete(o.delegations, key)
			return true
		}
	}
	return false
}

// run gets the token of a delegation. ctx is the source's context, with the span of the delegation.
func (d *delegation) run(ctx context.Context, subject string) {
	o := d.of
	var asked time.Time
	got, err := askTwice(ctx, func(ctx context.Context) (*tokens, error) {
		asked = time.Now()
		return o.ask(ctx, subject)
	})
	spans.End(trace.SpanFromContext(ctx), err != nil)
	o.source.count(o.source.delegated, refusal.Outcome(err))
	o.mu.Lock()
	defer o.mu.Unlock()
	defer close(d.done)
	if err == nil {
		d.token, d.goodUntil = got.access, goodUntil(asked, got.life)
		o.notBefore = time.Time{}
		o.backoff.Reset()
		return
	}
	d.err = err
	if o.delegations[d.key] == d {
		delete(o.delegations, d.key)
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted: // every other delegation would fail in the same way
		o.lastErr = err
		o.notBefore = time.Now().Add(o.backoff.Next(firstDelay, longestDelay, retry.Asked(err, longestRefusedDelay)))
	}
}

// ask asks Watchword for a delegated token, with the source's token for Watchword. As in
// [session.fillIn], the caller's token enters the request only after the connection was checked.
func (o *onBehalf) ask(ctx context.Context, subject string) (*tokens, error) {
	req := &watchwordv1.DelegateTokenRequest{Audience: o.audience}
	own := grpc.PerRPCCredentials(perRPC(func(ctx context.Context, uri []string) (map[string]string, error) {
		md, err := o.source.own.GetRequestMetadata(ctx, uri...)
		if err == nil {
			req.SubjectToken = subject
		}
		return md, err
	}))
	var answer *watchwordv1.DelegateTokenResponse
	err := sendTwice(withTarget(ctx, o.conn), o.source.own, watchwordv1.AuthService_DelegateToken_FullMethodName, func(ctx context.Context) (err error) {
		answer, err = o.auth.DelegateToken(ctx, req, own)
		return err
	})
	if err != nil {
		return nil, err
	}
	return accessToken(answer, "")
}

// replace forgets a delegated token, which a service has refused, and reports whether to send the
// call again, as [Source.replace] does.
func (d *delegation) replace(_ string, why watchwordv1.ErrorReason) (again bool) {
	d.of.source.count(d.of.source.refused, refusal.Name(why))
	d.of.mu.Lock()
	defer d.of.mu.Unlock()
	if !d.useless && d.replacements.Allow() {
		d.useless = true
	}
	return d.useless
}

// String returns a name for people, without a secret.
func (o *onBehalf) String() string {
	return fmt.Sprintf("credentials on behalf of callers, for %q", o.audience)
}
