package tokensource

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	// latestSend is the last part of a token's life, in which the Source no longer sends
	// the token: the token could expire on the way to the service. A stream refused for an
	// expired token fails, because the Source opens no stream a second time.
	latestSend = time.Second
	// requestTimeout limits each request to Watchword and each call of the function given
	// to WithStore. A login that waits for the hash of its password takes seconds.
	requestTimeout = 10 * time.Second
)

// A renewal is one attempt to get a new access token. token or err is set before done is
// closed.
type renewal struct {
	done  chan struct{}
	token string
	err   error
}

// renew gets a new access token, and ends the present renewal. It runs in the renewal's
// goroutine. ctx is s.ctx with the span of the renewal.
func (s *Source) renew(ctx context.Context) {
	tokens, err := s.renewSession(ctx)
	spans.End(trace.SpanFromContext(ctx), err != nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.renewal
	s.renewal = nil
	defer close(r.done)
	switch {
	case s.ctx.Err() != nil: // closed while the renewal ran
		r.err = s.lastErr
	case err == nil:
		s.renewed[refusal.Outcome(nil)]++
		s.useLocked(tokens)
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
// Errors: UNAVAILABLE if the function given to WithStore fails; those of [session.requestTwice].
func (s *Source) renewSession(ctx context.Context) (*watchwordv1.TokenPair, error) {
	if err := s.session.save(ctx); err != nil {
		return nil, &refusal.Setup{Code: codes.Unavailable, Message: "tokensource: storing the refresh token: " + err.Error(), Cause: err}
	}
	tokens, err := s.session.requestTwice(ctx)
	if revoked, over := sessionOver[refusal.Reason(err)]; over && s.session.password != "" {
		s.session.log.Info("the session is over; logging in again", "credentials", s, "error", err)
		if revoked {
			s.mu.Lock()
			s.access = ""
			s.mu.Unlock()
		}
		s.session.previousToken, s.session.refreshToken = s.session.refreshToken, ""
		tokens, err = s.session.requestTwice(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.session.refreshToken, s.session.unsaved = tokens.GetRefreshToken(), true
	if err := s.session.save(ctx); err != nil {
		s.session.log.Warn("the store failed for the new refresh token; the next renewal stores the token first", "credentials", s, "error", err)
	}
	return tokens, nil
}

// useLocked stores a new access token. The token's life counts from the start of the
// request by this machine's clock, so the server's clock does not matter. s.mu must be
// held.
func (s *Source) useLocked(tokens *watchwordv1.TokenPair) {
	life := tokens.GetExpiresIn().AsDuration()
	s.access, s.askedAt = tokens.GetAccessToken(), s.session.asked
	s.goodUntil = s.session.asked.Add(life - min(latestSend, life/20))
	// The random part spreads out the renewals of callers started together.
	s.renewAt = s.session.asked.Add(life/4*3 + rand.N(life/10+1))
	s.lastErr, s.notBefore = nil, time.Time{}
	s.backoff.Reset()
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
	}
	pause := s.backoff.Next(first, longest, retry.Asked(err, longestRefusedDelay))
	s.lastErr, s.notBefore = err, time.Now().Add(pause)
	s.session.log.Warn("no new access token", "credentials", s, "error", err, "pause", pause)
}

// sessionOver holds the reasons that end a session: Watchword accepts no refresh token of
// the session any more. The value says whether the session's access tokens are revoked too.
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
	conn               grpc.ClientConnInterface // to Watchword, for auth
	auth               watchwordv1.AuthServiceClient
	name               string // for people
	username, password string // empty in a source made by [Refresh]

	refreshToken  string    // the newest; empty: log in
	previousToken string    // of the session that is over; shows Watchword that the user is known here
	unsaved       bool      // the function given to WithStore has not returned nil for refreshToken
	asked         time.Time // the start of the last request
}

// requestTwice calls request, and calls request again on another stream after
// requestTimeout: a proxy may have lost the stream, or the connection is dead and another
// connection is made. A login or a refresh may be sent twice without harm.
//
// Errors: those of request; UNAVAILABLE without two answers.
func (s *session) requestTwice(ctx context.Context) (tokens *watchwordv1.TokenPair, err error) {
	for range 2 {
		tokens, err = s.request(ctx)
		if status.Code(err) != codes.DeadlineExceeded || ctx.Err() != nil {
			return tokens, err
		}
	}
	return nil, &refusal.Setup{Code: codes.Unavailable, Cause: err, Message: fmt.Sprintf("tokensource: no answer from Watchword, "+
		"twice for %v; Dial makes connections that notice within 15s that the other side is dead", requestTimeout)}
}

// request asks Watchword for tokens: by the refresh token, or by the password without one.
//
// Errors: Watchword's status; INTERNAL if the answer is incomplete.
func (s *session) request(ctx context.Context) (*watchwordv1.TokenPair, error) {
	ctx, cancel := context.WithTimeout(withTarget(ctx, s.conn), requestTimeout)
	defer cancel()
	s.asked = time.Now()
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
	tokens := answer.GetTokens()
	if err == nil && (tokens.GetAccessToken() == "" || tokens.GetRefreshToken() == "" || tokens.GetExpiresIn().AsDuration() <= 0) {
		err = status.Error(codes.Internal, "tokensource: the server's answer lacks a token or its lifetime")
	}
	return tokens, err
}

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
