package tokensource

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/retry"
	"github.com/watchword-auth/watchword/internal/spans"
)

const (
	// firstDelay and longestDelay limit the pause after a failure that may end without a
	// person's help. firstDelay is too short to be noticed; longestDelay limits the time
	// until a returned server is noticed.
	firstDelay   = 50 * time.Millisecond
	longestDelay = 10 * time.Second
	// firstRefusedDelay and longestRefusedDelay limit the pause after an error that only a
	// person can resolve, such as a wrong password.
	firstRefusedDelay   = 5 * time.Second
	longestRefusedDelay = 5 * time.Minute
	// longestAssertionDelay takes the place of longestRefusedDelay for a workload: the platform
	// renews the assertion by itself, and a wrong assertion delays no other client.
	longestAssertionDelay = time.Minute
	// replaceBurst and replaceEvery limit the tokens that are replaced because services refuse
	// tokens: five in a row, and then one every ten seconds.
	replaceBurst = 5
	// latestSend is the last part of a token's life, in which the Source no longer sends
	// the token: the token could expire on the way to the service. A stream refused for an
	// expired token fails, because the Source opens no stream a second time.
	latestSend = time.Second
	// requestTimeout limits each request to Watchword and each call of the function given
	// to WithStore. A login that waits for the hash of its password takes seconds.
	requestTimeout = 10 * time.Second
)

var replaceEvery = rate.Every(10 * time.Second)

// A renewal is one attempt to get a new access token. token or err is set before done is
// closed.
type renewal struct {
	done  chan struct{}
	token string
	err   error
}

// renew gets a new access token, and ends the present renewal. renew runs in the renewal's
// goroutine. ctx is s.ctx with the span of the renewal.
func (s *Source) renew(ctx context.Context) {
	got, err := s.renewSession(ctx)
	spans.End(trace.SpanFromContext(ctx), err != nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.renewal
	s.renewal = nil
	defer close(r.done)
	switch {
	case s.ctx.Err() != nil: // the Source was closed while the renewal ran
		r.err = s.lastErr
	case err == nil:
		s.renewed[refusal.Outcome(nil)]++
		s.useLocked(got)
		r.token = s.access
	default:
		s.renewed[refusal.Outcome(err)]++
		s.failedLocked(err)
		r.err = err
	}
}

// renewSession gets new tokens by the refresh token. If there is no refresh token, or if
// the session has ended, renewSession logs in with the password, if there is one.
//
// Errors: UNAVAILABLE if the function given to WithStore fails; those of [askTwice] and of
// [session.request].
func (s *Source) renewSession(ctx context.Context) (*tokens, error) {
	if err := s.session.save(ctx); err != nil {
		return nil, &refusal.Setup{Code: codes.Unavailable, Message: "tokensource: storing the refresh token: " + err.Error(), Cause: err}
	}
	got, err := askTwice(ctx, s.session.request)
	if revoked, over := sessionOver[refusal.Reason(err)]; over && s.session.password != "" {
		s.session.log.Info("the session is over; logging in again", "credentials", s, "error", err)
		if revoked {
			s.mu.Lock()
			s.access = ""
			s.mu.Unlock()
		}
		s.session.previousToken, s.session.refreshToken = s.session.refreshToken, ""
		got, err = askTwice(ctx, s.session.request)
	}
	if err != nil {
		return nil, err
	}
	s.session.refreshToken, s.session.unsaved = got.refresh, true
	if err := s.session.save(ctx); err != nil {
		s.session.log.Warn("the store failed for the new refresh token; the next renewal stores the token first", "credentials", s, "error", err)
	}
	return got, nil
}

// useLocked stores a new access token. The token's life counts from the start of the
// request by this machine's clock, so the server's clock does not matter. s.mu must be
// held.
func (s *Source) useLocked(got *tokens) {
	s.access, s.askedAt = got.access, s.session.asked
	s.goodUntil = goodUntil(s.session.asked, got.life)
	// The random part spreads out the renewals of callers started together.
	s.renewAt = s.session.asked.Add(got.life/4*3 + rand.N(got.life/10+1))
	if s.session.tokenFile != "" {
		s.renewAt = s.session.asked.Add(got.life/5*2 + rand.N(got.life/10+1)) // earlier than without a token file: see WithTokenFile
	}
	s.wakeKeeper()
	s.lastErr, s.notBefore = nil, time.Time{}
	s.backoff.Reset()
}

// goodUntil returns the time until which a token can be sent. asked is the start of the request for
// the token, and life is the lifetime of the token.
func goodUntil(asked time.Time, life time.Duration) time.Time {
	return asked.Add(life - min(latestSend, life/20))
}

// failedLocked stores the error of a renewal, and sets the pause before the next renewal.
// s.mu must be held.
func (s *Source) failedLocked(err error) {
	if _, over := sessionOver[refusal.Reason(err)]; over && s.session.password == "" {
		s.endLocked(err)
		s.session.log.Error("the session is over, and the source has no password to begin another", "error", err)
		return
	}
	first, longest := firstDelay, longestDelay
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented:
		first, longest = firstRefusedDelay, longestRefusedDelay
		if s.session.assertion != nil {
			longest = longestAssertionDelay
		}
	}
	pause := s.backoff.Next(first, longest, retry.Asked(err, longestRefusedDelay))
	s.lastErr, s.notBefore = err, time.Now().Add(pause)
	s.session.log.Warn("no new access token", "credentials", s, "error", err, "pause", pause)
}

// sessionOver holds the reasons that end a session: Watchword accepts no refresh token of
// the session any more. For each reason, the value says whether the session's access tokens are
// revoked too.
var sessionOver = map[watchwordv1.ErrorReason]bool{
	watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_INVALID: false,
	watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_EXPIRED: false,
	watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_REUSED:  true,
	watchwordv1.ErrorReason_ERROR_REASON_SESSION_REVOKED:       true,
}

// A session gets tokens from Watchword. The first group of fields never changes. The second
// group belongs to the renewal's goroutine, of which one runs at a time, and needs no lock.
type session struct {
	config
	conn               grpc.ClientConnInterface // the connection to Watchword, for the calls of auth
	auth               watchwordv1.AuthServiceClient
	name               string    // a name for logs
	username, password string    // the arguments of [Password]
	assertion          Assertion // the argument of [Workload]

	refreshToken  string    // the newest refresh token; empty: the next request logs in
	previousToken string    // the refresh token of the session that is over; shows Watchword that the user is known here
	unsaved       bool      // the function given to WithStore has not returned nil for refreshToken
	asked         time.Time // the start of the last request
}

// tokens holds what Watchword gives for a password, a refresh token or an assertion.
type tokens struct {
	access  string
	life    time.Duration // the lifetime of access, from the start of the request
	refresh string        // empty for an assertion
}

// askTwice calls ask, and calls ask again after requestTimeout, which sends the request on
// another stream: a proxy may have lost the stream, or the connection is dead and another
// connection is made. A request for tokens can be sent twice without harm.
//
// Errors: those of ask; UNAVAILABLE if both requests stay without an answer.
func askTwice[T any](ctx context.Context, ask func(context.Context) (T, error)) (answer T, err error) {
	for range 2 {
		limited, cancel := context.WithTimeout(ctx, requestTimeout)
		answer, err = ask(limited)
		cancel()
		if status.Code(err) != codes.DeadlineExceeded || ctx.Err() != nil {
			return answer, err
		}
	}
	return answer, &refusal.Setup{Code: codes.Unavailable, Cause: err, Message: fmt.Sprintf("tokensource: no answer from Watchword, "+
		"twice for %v; Dial makes connections that notice within 15s that the other side is dead", requestTimeout)}
}

// request asks Watchword for tokens: by the assertion, by the refresh token, or by the
// password.
//
// Errors: Watchword's status; INTERNAL if the answer is incomplete; those of [session.exchange].
func (s *session) request(ctx context.Context) (*tokens, error) {
	ctx = withTarget(ctx, s.conn)
	s.asked = time.Now()
	if s.assertion != nil {
		return s.exchange(ctx)
	}
	var answer interface{ GetTokens() *watchwordv1.TokenPair }
	var err error
	if s.refreshToken != "" {
		req := &watchwordv1.RefreshRequest{Audience: s.audience}
		answer, err = s.auth.Refresh(ctx, req, s.fillIn(func() { req.RefreshToken = s.refreshToken }))
	} else {
		req := &watchwordv1.LoginRequest{Audience: s.audience}
		answer, err = s.auth.Login(ctx, req, s.fillIn(func() {
			req.Username, req.Password, req.PreviousRefreshToken = s.username, s.password, s.previousToken
		}))
	}
	if err != nil {
		return nil, err
	}
	pair := answer.GetTokens()
	if pair.GetRefreshToken() == "" {
		return nil, errIncomplete
	}
	return accessToken(pair, pair.GetRefreshToken())
}

// accessToken returns the tokens of an answer that has an access token.
//
// Errors: INTERNAL if the answer is incomplete.
func accessToken(answer interface {
	GetAccessToken() string
	GetExpiresIn() *durationpb.Duration
}, refresh string) (*tokens, error) {
	t := &tokens{answer.GetAccessToken(), answer.GetExpiresIn().AsDuration(), refresh}
	if t.access == "" || t.life <= 0 {
		return nil, errIncomplete
	}
	return t, nil
}

var errIncomplete = status.Error(codes.Internal, "tokensource: the server's answer lacks a token or its lifetime")

// fillIn returns the call option that puts the secret into a request. grpc-go asks per-RPC
// credentials when a call has its connection, and encodes the request afterwards. So no
// secret goes over an unchecked connection, and a conn that drops the option sends no
// secret.
func (s *session) fillIn(secret func()) grpc.CallOption {
	return grpc.PerRPCCredentials(perRPC(func(ctx context.Context, uri []string) (map[string]string, error) {
		err := checkCall(ctx, uri, s.plaintext)
		if err == nil {
			secret()
		}
		return nil, err
	}))
}

// save passes the newest refresh token to the function given to WithStore, unless that
// function has already returned nil for the token.
func (s *session) save(ctx context.Context) error {
	if s.store == nil || !s.unsaved {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := s.store(ctx, s.refreshToken)
	s.unsaved = err != nil
	return err
}
