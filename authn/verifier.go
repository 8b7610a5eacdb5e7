// Package authn guards gRPC services with Watchword's access tokens.
//
//	conn, err := tokensource.Dial("auth:50051", grpc.WithTransportCredentials(tls))
//	if err != nil {
//		return err
//	}
//	defer conn.Close()
//	verifier, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"))
//	if err != nil {
//		return err
//	}
//	defer verifier.Close()
//	srv := grpc.NewServer(verifier.ServerOptions()...)
//
// A [Verifier] verifies tokens in the service's own process. Over one stream the Verifier
// watches the trust bundle of the Watchword server: the issuer, the issuer's public keys, and
// the revocations. So a guarded call (a call through the Verifier's interceptors) needs no
// network, and the Verifier knows of a logout within milliseconds. While the server is away,
// the Verifier uses the newest trust bundle, and keeps each revocation until the last token
// concerned has expired; with [WithSnapshotFile], the trust bundle also survives a restart of
// the process.
//
// The promise: if a handler finds a [Principal] by [FromContext], then the issuer has signed
// the call's token for this audience, the token had not expired, and no revocation and no
// change of rights was known. The package offers no way to read a token without these checks,
// which follow RFC 9068 section 4 and RFC 8725.
//
// To be safe, a program
//
//   - gives grpc.NewServer the options of [Verifier.ServerOptions]: with one interceptor
//     alone, calls of the other kind are not guarded;
//   - lets no call reach a handler past the server: a gateway in the same process that calls
//     the handlers itself (RegisterXHandlerServer of grpc-gateway, a connection in memory
//     without a server) bypasses every interceptor. Let a gateway dial the server.
//     authntest.CheckGuarded finds unguarded calls, in a test;
//   - connects to the server with TLS: a Verifier refuses keys over plaintext from another
//     machine;
//   - gives every method an access rule, by the method option of watchword/v1/access.proto: a
//     method without a rule admits every caller with a valid token. [Verifier.CheckServices]
//     finds methods without a rule, and methods with a rule that the program cannot read;
//   - acts on [Reason], and not on an error's message.
//
// A server that grpc-go does not run, such as a server of Connect, calls [Verifier.Authorize]
// before each handler.
//
// Package authn/tokensource is for programs that call guarded services, and has the function
// Dial. Package authn/authntest has an issuer in memory, for tests.
//
// Any number of goroutines can use everything in this package at once.
package authn

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/meter"
	"github.com/watchword-auth/watchword/internal/refusal"
)

// A Verifier verifies access tokens. [NewVerifier] makes a Verifier, and [Verifier.Close] stops
// watching the trust bundle. Until Close a Verifier has a few goroutines, however many calls it
// guards: for the stream of the bundle, for calls of GetTime, for reports ([WithName]), and for
// the file of [WithSnapshotFile].
type Verifier struct {
	audience audience
	access   *accessRules
	bundle   *bundle
	cache    *cache
	open     openStreams
	counters counters
	faults   rareLog // logs access rules that cannot be used
	compared rareLog // logs what was compared for calls refused because of their audience or roles
	feed     *feed
	keeper   *keeper // nil without WithSnapshotFile

	unregister func() // ends the observation of the instruments of WithMeterProvider

	takenUnary, takenStream atomic.Bool // true after the program has taken the interceptor; see CheckServices
}

// NewVerifier returns a Verifier that trusts the server behind conn, after the first trust
// bundle has come. ctx bounds only the wait for the bundle: the Verifier continues after the
// end of ctx.
//
// conn leads to Watchword; tokensource.Dial makes such a connection, with a keepalive. The
// caller closes the Verifier, then conn. Any other conn needs a keepalive too, of about ten
// seconds: only conn can notice that its path is dead (a pulled cable, a lost entry of a NAT).
// Without a keepalive the operating system notices the dead path after a quarter of an hour,
// and until then the Verifier receives no revocation. A conn of another type than
// *grpc.ClientConn must name its peer, in the stream's context or by the call option grpc.Peer,
// and must end a stream when the stream's context ends. A conn that may lead through a proxy
// also needs the method CanonicalTarget of *grpc.ClientConn, by which a Verifier tells a proxy
// on this machine from a server on this machine.
//
// The wait continues after UNAVAILABLE and RESOURCE_EXHAUSTED, so services can be started in
// any order and all at once; any other error of the server ends the wait. With a good file of
// [WithSnapshotFile] the wait ends with success after two seconds, or at ctx's deadline. With a
// good file, only PERMISSION_DENIED and FAILED_PRECONDITION end the wait with an error, because an
// operator has to correct the cause. With [WithoutWaiting], NewVerifier does not wait.
//
// Errors are gRPC statuses: INVALID_ARGUMENT for options with a value that makes no sense, for
// a nil conn, and for a method linked into this program with an option that contradicts itself,
// that demands a role that no user can have, or that contradicts [WithMethodRule] or
// [WithPublicMethods]; FAILED_PRECONDITION for a connection without TLS to another machine,
// even through a proxy on this machine, without [WithPlaintextFromOtherHosts];
// DEADLINE_EXCEEDED or CANCELED if ctx ended first, and then errors.Is matches ctx.Err() too;
// otherwise the server's answer.
func NewVerifier(ctx context.Context, conn grpc.ClientConnInterface, opts ...Option) (*Verifier, error) {
	if conn == nil {
		return nil, misused(errors.New("NewVerifier needs a connection"))
	}
	c, err := newConfig(opts)
	if err != nil {
		return nil, misused(err)
	}
	named, err := c.namedRules()
	if err != nil {
		return nil, misused(err)
	}
	access, err := newAccessRules(named)
	if err != nil {
		return nil, misused(err)
	}
	b, k, err := openBundle(c)
	if err != nil {
		return nil, misused(err)
	}
	v := &Verifier{audience: c.audience, access: access, bundle: b, cache: newCache(c.cacheBytes, c.meters != nil), open: openStreams{bundle: b}, keeper: k}
	v.faults, v.compared = rareLog{log: c.log, pause: time.Minute}, rareLog{log: c.log, pause: time.Second}
	if v.unregister, err = meter.Register(c.meters, scope, c.attributes, v.Status, instruments); err != nil {
		b.fresh.close()
		return nil, misused(err)
	}
	v.feed = startFeed(conn, b, c.plaintext, newReporter(c.identity(), v.report))
	if k != nil {
		go k.run(v.feed.done)
	}
	if c.withoutWait {
		return v, nil
	}
	if err := v.Ready(ctx); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// Ready waits for the first trust bundle, as NewVerifier does. After an error the Verifier
// keeps trying, so a program can call Ready again. After Ready has returned nil, every later
// call returns nil at once, until Close.
//
// Errors: those of NewVerifier's wait; BUNDLE_STALE after Close.
func (v *Verifier) Ready(ctx context.Context) error {
	if v.bundle.fresh.closed.Load() {
		return refuse(bundleStale, "")
	}
	return v.feed.wait(ctx)
}

// Close stops watching the trust bundle, writes the file of [WithSnapshotFile] if the bundle
// has changed, and waits for the end of the goroutines. After Close every guarded call is
// BUNDLE_STALE. Public methods stay open, and Close does not close conn. A second Close does
// nothing. Close always returns nil.
func (v *Verifier) Close() error {
	v.unregister()
	v.bundle.fresh.close()
	v.feed.stop()
	if v.keeper != nil {
		<-v.keeper.done
	}
	return nil
}

// Verify verifies an access token (without "Bearer") as the interceptors do, and returns the
// token's principal. Verify needs no network and does not wait. If ctx is a handler's context,
// an error of Verify names the handler's method; Verify uses ctx for nothing else.
//
// Errors; if several apply, the first of these: BUNDLE_STALE without a trust bundle, after
// Close, and with RefuseWhenStale (see [WithMaxStaleness]); INVALID_REQUEST for an empty token;
// TOKEN_INVALID for the token's form (RFC 7515 section 7.1), type, key, signature or issuer, and
// for a lifetime longer than the issuer gives; AUDIENCE_MISMATCH; TOKEN_INVALID for a token
// minted further ahead than the margin that the server announces; TOKEN_EXPIRED; TOKEN_REVOKED;
// TOKEN_STALE after a change of the user's rights. The client of a call that is TOKEN_EXPIRED or
// TOKEN_STALE can refresh the token and call again.
func (v *Verifier) Verify(ctx context.Context, token string) (*Principal, error) {
	return v.verifyArgument(ctx, token, &v.audience)
}

// VerifyFor verifies an access token as [Verifier.Verify] does, and ignores the audiences of
// [WithAudience]: the token must be for at least one of the audiences given.
//
// Errors: those of Verify; also INVALID_REQUEST if no audience is given, or an empty audience:
// otherwise VerifyFor with a list that was lost by mistake would accept every token.
func (v *Verifier) VerifyFor(ctx context.Context, token string, audiences ...string) (*Principal, error) {
	return v.verifyArgument(ctx, token, &audience{names: audiences})
}

// verifyArgument verifies a token that the caller of Verify or VerifyFor has passed, for the
// audience want.
func (v *Verifier) verifyArgument(ctx context.Context, token string, want *audience) (*Principal, error) {
	method, _ := grpc.Method(ctx)
	switch {
	case !v.bundle.fresh.judging():
		return nil, refuse(bundleStale, method)
	case token == "":
		return nil, refuse(invalidRequest, method, refusal.BadField("access_token", "is empty"))
	case !want.any && (len(want.names) == 0 || slices.Contains(want.names, "")):
		return nil, refuse(invalidRequest, method, refusal.BadField("audience", "is empty"))
	}
	t, reason, _ := v.verify(token, want)
	if reason != accepted {
		return nil, refuse(reason, method)
	}
	return &t.principal, nil
}

// verify verifies a token, from the header of a call or from an argument. Every check of a
// token goes through verify, so verify counts the refused tokens by reason. verify returns the
// token also for AUDIENCE_MISMATCH, for the message of the refusal. cached is true if the
// token was accepted without checking the signature.
func (v *Verifier) verify(raw string, want *audience) (t *authentic, reason watchwordv1.ErrorReason, cached bool) {
	reason = tokenInvalid
	if t = v.cache.get(raw); t != nil {
		forAudience := v.isFor(t, want)
		if forAudience && v.bundle.stillAccepted(t) {
			return t, accepted, true
		}
		if reason = v.bundle.judge(t, forAudience); reason != accepted {
			v.counters.foundRefused.Add(1)
		}
		cached = reason == accepted
	}
	if reason == tokenInvalid { // the token is not cached, or is cached with a key object that a new trust state has replaced
		v.counters.checked.Add(1)
		if t, reason = v.bundle.authenticate(raw); reason == accepted {
			t.own = v.audience.accepts(t.principal.claims.Audience)
			reason = v.bundle.judge(t, v.isFor(t, want))
		}
		if reason == accepted {
			t = v.cache.put(raw, t)
			v.counters.checkedAccepted.Add(1)
		}
	}
	switch reason {
	case accepted:
		return t, accepted, cached
	case audienceMismatch:
		return t, v.counters.refused(reason), false
	}
	return nil, v.counters.refused(reason), false
}

// isFor reports whether a token is for an audience. For the audience of WithAudience, isFor
// computes the answer once for each token: the audience of one token among thousands is in no
// processor's cache, and reading the audience takes longer than the rest of a call.
func (v *Verifier) isFor(t *authentic, want *audience) bool {
	if want == &v.audience {
		return t.own
	}
	return want.accepts(t.principal.claims.Audience)
}
