package rpc

import (
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/delegation"
	"github.com/watchword-auth/watchword/internal/federation"
	"github.com/watchword-auth/watchword/internal/hub"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/share"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/throttle"
	"github.com/watchword-auth/watchword/internal/user"
)

const (
	// storeRetry is the shortest time that a client should wait while the database does
	// not answer. The server adds a random time of up to the same length to storeRetry and to
	// watchRetry, so that clients return at different moments.
	storeRetry = time.Second
	// watchRetry is the shortest time that a watcher (a verifier with a stream of WatchBundle)
	// should wait before the next stream, if the server had no place for the stream. Without a
	// stream, the verifier of a service misses new revocations. A watcher that is refused a
	// second time waits longer of its own accord.
	watchRetry = 100 * time.Millisecond
)

// refusals maps the errors of the packages that rpc calls, such as login, to gRPC statuses. The
// first row that matches an error applies. An error without a row is a fault of the server: the
// client gets INTERNAL, and the log gets the text of the error. The message of a row is a fixed
// text for the client, since the text of an error may hold details of the server.
var refusals = []struct {
	err     error
	code    codes.Code
	reason  watchwordv1.ErrorReason
	message string
}{
	{store.ErrUnavailable, codes.Unavailable, watchwordv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE, "the database is not available"},
	{password.ErrOverloaded, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "too many passwords to check at once"},
	{hub.ErrTooManyWatchers, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "no place for another watcher from this client's network or certificate"},
	{hub.ErrEvicted, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "another watcher got this place, since all places of the server, or of the client's network or certificate, were taken"},
	{issuer.ErrTooMany, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "too many signing keys that still verify"},
	{issuer.ErrManyWithdrawn, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "too many signing keys were withdrawn within an hour; `watchword key revoke` may withdraw more"},
	{share.ErrNoTurn, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "too many calls of the user, or of the session, at once"},
	{errManyStreams, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "too many streams of WatchEvents, of the caller or of all admins"},
	{errLostStream, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "another admin with fewer streams of WatchEvents got this place"},
	{throttle.ErrTooMany, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_TOO_MANY_ATTEMPTS, "too many wrong passwords; wait before the next try"},
	{login.ErrCredentials, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_INVALID_CREDENTIALS, "unknown user or wrong password"},
	{login.ErrUserDisabled, codes.PermissionDenied, watchwordv1.ErrorReason_ERROR_REASON_USER_DISABLED, "the user is disabled"},
	{federation.ErrInvalid, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_ASSERTION_INVALID, "not a valid token of a trusted issuer for this server; the security record has the reason"},
	{federation.ErrUnbound, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_ASSERTION_UNBOUND, "no single binding names a service account for the token"},
	{federation.ErrDisabled, codes.PermissionDenied, watchwordv1.ErrorReason_ERROR_REASON_USER_DISABLED, "the service account is disabled"},
	{federation.ErrUnavailable, codes.Unavailable, watchwordv1.ErrorReason_ERROR_REASON_ISSUER_UNAVAILABLE, "the keys of the issuer cannot be had now, or do not hold the key of the token yet"},
	{federation.ErrOverloaded, codes.ResourceExhausted, watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, "too many tokens of this network to check at once"},
	{session.ErrRefreshInvalid, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_INVALID, "not a refresh token of this server"},
	{session.ErrRefreshExpired, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_EXPIRED, "the session has expired"},
	{session.ErrRefreshReused, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_REUSED, "the refresh token was spent before; the session has ended"},
	{session.ErrRevoked, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_SESSION_REVOKED, "the session has ended"},
	{session.ErrNotFound, codes.NotFound, watchwordv1.ErrorReason_ERROR_REASON_SESSION_NOT_FOUND, "no such session"},
	{session.ErrNotAllowed, codes.NotFound, watchwordv1.ErrorReason_ERROR_REASON_SESSION_NOT_FOUND, "no such session"}, // as for ErrNotFound, so that the caller does not learn whether the session exists
	{session.ErrAdminAudience, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_AUDIENCE_MISMATCH, "the access token is not for the audience " + caller.AdminAudience},
	{caller.ErrRevoked, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED, "the session behind the token has ended"},
	{caller.ErrStale, codes.Unauthenticated, watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE, "the user's rights have changed"},
	{store.ErrUnfinished, codes.FailedPrecondition, watchwordv1.ErrorReason_ERROR_REASON_UPGRADE_UNFINISHED,
		"earlier versions of Watchword can still use the database, and do not know service accounts; when every server is of this version, run `watchword migrate --finish`"},
	{user.ErrNotFound, codes.NotFound, watchwordv1.ErrorReason_ERROR_REASON_USER_NOT_FOUND, "no such user"},
	{audit.ErrUnknownName, codes.NotFound, watchwordv1.ErrorReason_ERROR_REASON_USER_NOT_FOUND, "no such user"},
	{user.ErrLastAdmin, codes.FailedPrecondition, watchwordv1.ErrorReason_ERROR_REASON_LAST_ADMIN, "the user is the last enabled admin; make another user an admin first"},
	{user.ErrExists, codes.AlreadyExists, watchwordv1.ErrorReason_ERROR_REASON_USER_EXISTS, "the username is taken"},
	{issuer.ErrNotFound, codes.NotFound, watchwordv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND, "no such signing key"},
	{federation.ErrIssuerNotFound, codes.NotFound, watchwordv1.ErrorReason_ERROR_REASON_ISSUER_NOT_FOUND, "no such trusted issuer"},
	{federation.ErrIssuerExists, codes.AlreadyExists, watchwordv1.ErrorReason_ERROR_REASON_ISSUER_EXISTS, "a trusted issuer with this name or this claim iss exists already"},
	{federation.ErrBindingNotFound, codes.NotFound, watchwordv1.ErrorReason_ERROR_REASON_BINDING_NOT_FOUND, "no such binding"},
	{errNoCertificate, codes.PermissionDenied, watchwordv1.ErrorReason_ERROR_REASON_CLIENT_CERTIFICATE_REQUIRED, "a client certificate is required"},
}

// invalidField is the error for a field of a request that breaks a rule. The field err holds
// the rule, as text for the client.
type invalidField struct {
	field string
	err   error
}

func (e invalidField) Error() string { return e.field + ": " + e.err.Error() }

// statusOf returns the status for an error of a handler. Only if the access token of the call
// was refused, the status names the called method. A client that finds the method in the status
// gets another access token and calls again, which helps only after a refused access token.
func statusOf(err error, method string, retryAfter func() time.Duration) *status.Status {
	for _, broken := range []error{session.ErrAudience, session.ErrNotAlone} {
		if errors.Is(err, broken) {
			err = invalidField{"audience", broken}
		}
	}
	var field invalidField
	if errors.As(err, &field) {
		return badRequest(field)
	}
	var denied *delegation.Denied
	if errors.As(err, &denied) {
		return refusal.Status(codes.PermissionDenied, watchwordv1.ErrorReason_ERROR_REASON_DELEGATION_DENIED, "", denied.Error())
	}
	var subject *delegation.SubjectRefused
	if errors.As(err, &subject) {
		return refusal.SubjectRefused(subject.Reason)
	}
	for _, r := range refusals {
		if !errors.Is(err, r.err) {
			continue
		}
		if r.err != caller.ErrRevoked && r.err != caller.ErrStale && r.err != session.ErrAdminAudience {
			method = ""
		}
		if r.err == hub.ErrTooManyWatchers || r.err == hub.ErrEvicted {
			retryAfter = func() time.Duration { return watchRetry + rand.N(watchRetry) }
		}
		if away := (*federation.Unavailable)(nil); errors.As(err, &away) {
			retryAfter = func() time.Duration { return away.After }
		}
		if tooMany := (*throttle.Refused)(nil); errors.As(err, &tooMany) {
			// The client gets whole seconds, since a precise time could tell how long single
			// steps in the server take.
			retryAfter = func() time.Duration { return (tooMany.RetryAfter + time.Second - 1).Truncate(time.Second) }
			if tooMany.Full {
				r.message = "too many wrong passwords; all times of the next hour, or those of this network's neighborhood, are promised to other networks"
			}
		}
		return refusal.Status(r.code, r.reason, method, r.message, details(r.reason, retryAfter)...)
	}
	return status.New(codes.Internal, "internal error")
}

// details returns how long the client should wait before the next call (google.rpc.RetryInfo).
// If waiting does not help, details returns nil.
func details(reason watchwordv1.ErrorReason, retryAfter func() time.Duration) []protoadapt.MessageV1 {
	switch reason {
	case watchwordv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE:
		return []protoadapt.MessageV1{&errdetails.RetryInfo{RetryDelay: durationpb.New(storeRetry + rand.N(storeRetry))}}
	case watchwordv1.ErrorReason_ERROR_REASON_OVERLOADED, watchwordv1.ErrorReason_ERROR_REASON_TOO_MANY_ATTEMPTS, watchwordv1.ErrorReason_ERROR_REASON_ISSUER_UNAVAILABLE:
		return []protoadapt.MessageV1{&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter())}}
	}
	return nil
}

// badRequest returns INVALID_ARGUMENT, with the field and the rule for the client
// (google.rpc.BadRequest).
func badRequest(field invalidField) *status.Status {
	reason := watchwordv1.ErrorReason_ERROR_REASON_INVALID_REQUEST
	if errors.Is(field.err, password.ErrTooWeak) {
		reason = watchwordv1.ErrorReason_ERROR_REASON_PASSWORD_TOO_WEAK
	}
	return refusal.Status(codes.InvalidArgument, reason, "", field.Error(), refusal.BadField(field.field, field.err.Error()))
}

// nameField adds the name of the request's field to the error for a new username that
// breaks a rule, and weakField to the error for a weak password. Only package rpc knows
// the names of the fields in requests.
func nameField(field string, err error) error { return addField(field, user.ErrMalformed, err) }
func weakField(field string, err error) error { return addField(field, password.ErrTooWeak, err) }

// addField adds a field's name to err, if err matches the error `rule`.
func addField(field string, rule, err error) error {
	if errors.Is(err, rule) {
		return invalidField{field, err}
	}
	return err
}
