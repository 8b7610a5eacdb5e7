// Package authn guards gRPC services with Watchword's access tokens.
//
//	conn, err := grpc.NewClient("auth:50051", grpc.WithTransportCredentials(creds))
//	verifier, err := authn.NewVerifier(ctx, conn, authn.WithAudience("internal"))
//	defer verifier.Close()
//	srv := grpc.NewServer(verifier.ServerOptions()...)
//
// A Verifier judges tokens by itself. It watches the server's trust bundle (the
// issuer, its public keys, and what has been revoked) over one stream, so that
// a guarded call needs no network, and a logout is known here within a blink.
// While the server is away it goes on with what it knows, and forgets no
// revocation that still matters; with WithSnapshotFile also across its own restart.
//
// What it promises: a handler that finds a Principal by FromContext was called
// with a token that this issuer signed, for this audience, that had not expired,
// and that was not known to be revoked or out of date. There is no way to look
// into a token without all of that being checked.
//
// To be safe:
//
//   - Give grpc.NewServer the options of ServerOptions, not one interceptor
//     alone: the other kind of call would stand open.
//   - Dial the server with TLS. Over plaintext to another machine a Verifier
//     refuses to take keys.
//   - A method without a rule needs a valid token, and no more. Ask for roles by
//     the method option of watchword/v1/access.proto; CheckServices finds the
//     methods that say nothing.
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

// A Verifier judges access tokens. It is made by NewVerifier and owns one
// goroutine until Close, and another with WithSnapshotFile.
type Verifier struct {
	audience audience
	access   *accessRules
	bundle   *bundle
	cache    *cache
	counters counters
	feed     *feed
	keeper   *keeper // nil without a file
}

// NewVerifier watches the trust bundle of the server behind conn, and waits for
// the first one. ctx bounds this wait and nothing else. The wait goes on through
// UNAVAILABLE and RESOURCE_EXHAUSTED, so services can be started in any order and all
// at once; it ends at once with any other answer. With a good file of WithSnapshotFile
// it ends well after two seconds, or at ctx's deadline, whatever the server answers
// but PERMISSION_DENIED and FAILED_PRECONDITION: those an operator has to set right.
//
// Errors are gRPC statuses: INVALID_ARGUMENT for options that cannot be meant,
// and for a method linked into this program whose option contradicts itself or
// WithPublicMethods; FAILED_PRECONDITION for plaintext to another machine;
// DEADLINE_EXCEEDED or CANCELED, which match ctx.Err() by errors.Is too, when
// ctx ended first; otherwise what the server answered.
//
// The caller closes the Verifier, and conn after it. A conn that is no
// grpc.ClientConn must name its peer, in the stream's context or by the call
// option grpc.Peer, and its streams must end with their context.
//
// That a connection has died without a word (a pulled cable, a forgotten NAT
// entry) only conn itself can notice. Dial it with grpc.WithKeepaliveParams, every
// 10 s say: the operating system takes a quarter of an hour, and nothing newer is
// known here until then.
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

// Ready waits for the first bundle as NewVerifier does, and fails as it does;
// after Close it is BUNDLE_STALE. A Verifier goes on trying after a failure, so
// Ready may be called again. Once it has returned nil it does so until Close.
func (v *Verifier) Ready(ctx context.Context) error {
	if v.bundle.fresh.closed.Load() {
		return refuse(bundleStale, "")
	}
	return v.feed.wait(ctx)
}

// Close ends the watch and waits until it has ended. From then on every guarded
// call is refused as BUNDLE_STALE; public methods stay open. conn is left alone.
// The file of WithSnapshotFile is written a last time, if anything is new. It may be
// called more than once, and always returns nil.
func (v *Verifier) Close() error {
	v.bundle.fresh.close()
	v.feed.stop()
	if v.keeper != nil {
		v.keeper.stop()
	}
	return nil
}

// Verify judges an access token (without "Bearer") as the interceptors do, and
// returns whom it speaks for. ctx serves to name the method in errors; nothing
// here waits.
//
// The first of these that holds is the answer: BUNDLE_STALE without a bundle or
// after Close; INVALID_REQUEST for an empty token; TOKEN_INVALID for its form,
// type, key, signature, issuer, or a lifetime longer than any of this issuer;
// AUDIENCE_MISMATCH; TOKEN_EXPIRED; TOKEN_REVOKED; TOKEN_STALE.
func (v *Verifier) Verify(ctx context.Context, token string) (*Principal, error) {
	return v.verifyArgument(ctx, token, v.audience)
}

// VerifyFor is Verify with another audience in place of WithAudience: the token
// must be for at least one of those named. To name none, or an empty one, is
// INVALID_REQUEST: it is a list that got lost rather than an open door.
func (v *Verifier) VerifyFor(ctx context.Context, token string, audiences ...string) (*Principal, error) {
	return v.verifyArgument(ctx, token, audience{names: audiences})
}

// verifyArgument is Verify for a token that somebody passed as an argument, and
// may have left out.
func (v *Verifier) verifyArgument(ctx context.Context, token string, want audience) (*Principal, error) {
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

// verify is the one path from a token to a Principal. own says that want is the
// verifier's own audience.
func (v *Verifier) verify(raw string, want audience) (*Principal, watchwordv1.ErrorReason) {
	if t := v.cache.get(raw); t != nil {
		if v.bundle.stillAccepted(t) && want.accepts(t.principal.claims.Audience) {
			return t.principal, accepted
		}
		reason := v.bundle.judge(t, want)
		if reason == accepted {
			return t.principal, accepted
		}
		if reason != tokenInvalid { // else the key may have been named again, as a new object
			return nil, v.counters.refused(reason)
		}
	}
	v.counters.checked.Add(1)
	t, reason := v.bundle.authenticate(raw)
	if reason == accepted {
		reason = v.bundle.judge(&t, want)
	}
	if reason != accepted {
		return nil, v.counters.refused(reason)
	}
	return v.cache.put(raw, t).principal, accepted
}
