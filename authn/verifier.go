// Package authn guards gRPC services with Watchword's access tokens.
//
//	conn, err := grpc.NewClient("auth:50051", grpc.WithTransportCredentials(creds))
//	verifier, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"))
//	defer verifier.Close()
//	srv := grpc.NewServer(verifier.ServerOptions()...)
//
// A Verifier judges tokens by itself. Over one stream the Verifier watches the server's
// trust bundle: the issuer, the issuer's public keys, and the revocations. So a guarded
// call needs no network, and a logout is known here within milliseconds. While the server
// is away the Verifier goes on with the newest bundle, and keeps every revocation as long
// as a token could need it; with WithSnapshotFile also across a restart of the process.
//
// The promise: if a handler finds a Principal by FromContext, the issuer has signed the
// call's token for this audience, the token had not expired, and no revocation and no
// change of rights was known. There is no way to look into a token without all of these
// checks.
//
// To be safe:
//
//   - Give grpc.NewServer the options of ServerOptions. One interceptor alone would leave
//     calls of the other kind unguarded.
//   - Dial the server with TLS. Over plaintext to another machine a Verifier refuses to
//     take keys.
//   - A method without a rule needs a valid token, and no more. Ask for roles by the
//     method option of watchword/v1/access.proto; CheckServices finds methods without a
//     rule.
//   - Act on Reason, never on an error's message.
//
// Everything here may be used from several goroutines at once.
package authn

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// A Verifier judges access tokens. NewVerifier makes a Verifier. Until Close a Verifier
// owns one goroutine, and a second one with WithSnapshotFile.
type Verifier struct {
	audience audience
	access   *accessRules
	bundle   *bundle
	cache    *cache
	counters counters
	feed     *feed
	keeper   *keeper // nil without a file
}

// NewVerifier watches the trust bundle of the server behind conn, and waits for the first
// bundle. ctx bounds the wait and nothing else.
//
// The wait goes on through UNAVAILABLE and RESOURCE_EXHAUSTED, so services can be started
// in any order and all at once; any other answer ends the wait. With a good file of
// WithSnapshotFile the wait ends well after two seconds, or at ctx's deadline. Then only
// PERMISSION_DENIED and FAILED_PRECONDITION end the wait with an error, because an
// operator has to set the cause right.
//
// Errors are gRPC statuses: INVALID_ARGUMENT for options without a sensible meaning, and
// for a method linked into this program whose option contradicts itself or
// WithPublicMethods; FAILED_PRECONDITION for plaintext to another machine;
// DEADLINE_EXCEEDED or CANCELED if ctx ended first, and errors.Is matches ctx.Err() too;
// otherwise the server's answer.
//
// The caller closes the Verifier, and conn afterwards. A conn of another type than
// *grpc.ClientConn must name its peer, in the stream's context or by the call option
// grpc.Peer, and must end a stream with its context.
//
// Only conn can notice a connection dead without a sign (a pulled cable, a forgotten NAT
// entry). Dial with grpc.WithKeepaliveParams, such as every 10 s: without keepalive the
// operating system takes a quarter of an hour, and the Verifier learns nothing new until
// then.
func NewVerifier(ctx context.Context, conn grpc.ClientConnInterface, opts ...Option) (*Verifier, error) {
	if conn == nil {
		return nil, misused(errors.New("NewVerifier needs a connection"))
	}
	c, err := newConfig(opts)
	if err != nil {
		return nil, misused(err)
	}
	access, err := newAccessRules(c.public)
	if err != nil {
		return nil, misused(err)
	}
	b, unread := loadBundle(c)
	v := &Verifier{audience: c.audience, access: access, bundle: b, cache: newCache(c.cacheBytes)}
	if c.snapshot != nil {
		v.keeper = startKeeper(*c.snapshot, b, unread)
	}
	v.feed = startFeed(conn, b, c.plaintext)
	if c.withoutWait {
		return v, nil
	}
	if err := v.Ready(ctx); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// Ready waits for the first bundle as NewVerifier does. After a failure the Verifier goes
// on trying, so Ready may be called again. Once Ready has returned nil, Ready returns nil
// until Close.
//
// Errors: those of NewVerifier's wait; BUNDLE_STALE after Close.
func (v *Verifier) Ready(ctx context.Context) error {
	if v.bundle.fresh.closed.Load() {
		return refuse(bundleStale, "")
	}
	return v.feed.wait(ctx)
}

// Close ends the watch and waits for its end. From then on every guarded call is refused
// as BUNDLE_STALE; public methods stay open, and so does conn. The file of
// WithSnapshotFile is written a last time if anything is new. Close may be called again,
// and always returns nil.
func (v *Verifier) Close() error {
	v.bundle.fresh.close()
	v.feed.stop()
	if v.keeper != nil {
		v.keeper.stop()
	}
	return nil
}

// Verify judges an access token (without "Bearer") as the interceptors do, and returns
// the token's principal. ctx only names the method in errors; Verify never waits.
//
// Errors, the first to apply: BUNDLE_STALE without a bundle or after Close;
// INVALID_REQUEST for an empty token; TOKEN_INVALID for the token's form, type, key,
// signature or issuer, or a lifetime longer than any of this issuer; AUDIENCE_MISMATCH;
// TOKEN_EXPIRED; TOKEN_REVOKED; TOKEN_STALE.
func (v *Verifier) Verify(ctx context.Context, token string) (*Principal, error) {
	return v.verifyArgument(ctx, token, &v.audience)
}

// VerifyFor is [Verifier.Verify] with another audience in place of WithAudience: the token
// must be for at least one of the audiences named.
//
// Errors: as Verify; INVALID_REQUEST for no audience, or an empty one, because a lost list
// must not accept every token.
func (v *Verifier) VerifyFor(ctx context.Context, token string, audiences ...string) (*Principal, error) {
	return v.verifyArgument(ctx, token, &audience{names: audiences})
}

// verifyArgument judges a token and an audience passed as arguments, either of which may
// be empty.
func (v *Verifier) verifyArgument(ctx context.Context, token string, want *audience) (*Principal, error) {
	method, _ := grpc.Method(ctx)
	switch {
	case !v.bundle.fresh.judging():
		return nil, refuse(bundleStale, method)
	case token == "":
		return nil, refuseField(method, "access_token", "is empty")
	case !want.any && (len(want.names) == 0 || slices.Contains(want.names, "")):
		return nil, refuseField(method, "audience", "is empty")
	}
	p, reason := v.verify(token, want)
	if reason != accepted {
		return nil, refuse(reason, method)
	}
	return p, nil
}

// verify is the one path from a token to a Principal. Refusals are counted by reason.
func (v *Verifier) verify(raw string, want *audience) (*Principal, watchwordv1.ErrorReason) {
	t, reason := v.cache.get(raw), tokenInvalid
	if t != nil {
		forAudience := v.isFor(t, want)
		if forAudience && v.bundle.stillAccepted(t) {
			return t.principal, accepted
		}
		reason = v.bundle.judge(t, forAudience)
	}
	if reason == tokenInvalid { // not cached, or the key was named again, as a new object
		v.counters.checked.Add(1)
		checked, why := v.bundle.authenticate(raw)
		if reason = why; reason == accepted {
			checked.own = v.audience.accepts(checked.principal.claims.Audience)
			reason = v.bundle.judge(&checked, v.isFor(&checked, want))
		}
		if reason == accepted {
			t = v.cache.put(raw, checked)
		}
	}
	if reason != accepted {
		return nil, v.counters.refused(reason)
	}
	return t.principal, accepted
}

// isFor returns whether a token is for an audience. The answer for the verifier's own
// audience is computed once for each token: reading the audience of one token among
// thousands takes longer than the rest of a call, because it is in no processor's cache.
func (v *Verifier) isFor(t *authentic, want *audience) bool {
	if want == &v.audience {
		return t.own
	}
	return want.accepts(t.principal.claims.Audience)
}
