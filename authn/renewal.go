package authn

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/retry"
)

const (
	// renewTimeout bounds each question to Watchword and to the store. A login
	// that queues behind others for its hash takes seconds.
	renewTimeout = 10 * time.Second
	// firstRefusedDelay and longestRefusedDelay bound the pause after a refusal
	// that only a person can do something about, such as a wrong password.
	firstRefusedDelay   = 5 * time.Second
	longestRefusedDelay = 5 * time.Minute
	// latestSend is how long before its end a token is no longer sent: it would
	// expire on its way, and a stream is not replayed.
	latestSend = time.Second
	// spendEvery and spendBurst bound the renewals after refusals.
	spendEvery = 10 * time.Second
	spendBurst = 5
)

const (
	refreshTokenInvalid = watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_INVALID
	refreshTokenExpired = watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_EXPIRED
	refreshTokenReused  = watchwordv1.ErrorReason_ERROR_REASON_REFRESH_TOKEN_REUSED
	sessionRevoked      = watchwordv1.ErrorReason_ERROR_REASON_SESSION_REVOKED
)

// A renewal is one attempt to get a new access token. When done is closed, it
// has either a token or an error.
type renewal struct {
	done  chan struct{}
	token string
	err   error
}

// renewalKey marks the context of a renewal's own calls.
type renewalKey struct{ *Credentials }

// token returns the access token to send, and waits for one if there is none.
func (c *Credentials) token(ctx context.Context) (string, error) {
	c.mu.Lock()
	token, r, err := c.pick(time.Now())
	c.mu.Unlock()
	if r == nil {
		return token, err
	}
	select {
	case <-r.done:
		return r.token, r.err
	case <-ctx.Done():
		return "", status.FromContextError(ctx.Err()).Err()
	}
}

// pick returns a token, or the renewal to wait for, or why there is neither. It
// begins a renewal when one is due. The caller holds the lock.
func (c *Credentials) pick(now time.Time) (string, *renewal, error) {
	if c.over != nil {
		return "", nil, c.over
	}
	good := c.access != "" && now.Before(c.goodUntil)
	due := !good || !now.Before(c.renewAt)
	if due && c.renewal == nil && !now.Before(c.notBefore) {
		c.renewal = &renewal{done: make(chan struct{})}
		c.work.Go(c.renew)
	}
	switch {
	case good:
		return c.access, nil, nil
	case c.renewal != nil:
		return "", c.renewal, nil
	}
	return "", nil, c.last
}

// spend takes a token out of use that a service has refused, and reports whether
// another token is there or may be had. A second call that was refused with the same
// token finds it replaced.
func (c *Credentials) spend(token string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.access != token {
		return true
	}
	if !c.spends.Allow() {
		return false
	}
	c.access = ""
	return true
}

// renew runs the renewal.
func (c *Credentials) renew() {
	began, tokens, err := c.obtain()
	if err == nil {
		c.refreshToken, c.unsaved = tokens.GetRefreshToken(), true
		if err := c.save(); err != nil {
			c.config.log.Warn("the new refresh token is not stored; trying again before it is used", "credentials", c, "error", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.renewal
	c.renewal = nil
	defer close(r.done)
	switch {
	case c.over != nil: // closed meanwhile
		r.err = c.over
	case err == nil:
		c.took(tokens, began)
		r.token = c.access
	default:
		c.failed(err)
		r.err = err
	}
}

// took begins to use an access token. It is good for as long as the answer says,
// counted from before the question, so no clock but our own matters.
func (c *Credentials) took(tokens *watchwordv1.TokenPair, began time.Time) {
	life := tokens.GetExpiresIn().AsDuration()
	c.access = tokens.GetAccessToken()
	c.goodUntil = began.Add(life - min(latestSend, life/20))
	// By chance a little earlier or later, so that callers which began together
	// don't come back together.
	c.renewAt = began.Add(life/4*3 + rand.N(life/10+1))
	c.last, c.notBefore = nil, time.Time{}
	c.backoff.Reset()
}

// failed remembers why a renewal failed, and how long to leave Watchword alone.
func (c *Credentials) failed(err error) {
	c.last = err
	if sessionOver(err) && c.password == "" {
		c.over, c.access = err, ""
		c.config.log.Error("the session is over, and there is no password to begin another", "error", err)
		return
	}
	first, longest := firstDelay, longestDelay
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented:
		first, longest = firstRefusedDelay, longestRefusedDelay
	}
	pause := c.backoff.Next(first, longest, retry.Asked(err, longestRefusedDelay))
	c.notBefore = time.Now().Add(pause)
	c.config.log.Warn("no new access token", "credentials", c, "error", err, "pause", pause)
}

// sessionOver says whether a refresh was refused because no refresh token of
// this session will do any more.
func sessionOver(err error) bool {
	switch Reason(err) {
	case refreshTokenInvalid, refreshTokenExpired, refreshTokenReused, sessionRevoked:
		return true
	}
	return false
}

// obtain asks Watchword for tokens: by the refresh token if there is one, and by
// the password if there is none or its session is over. began is when it asked.
func (c *Credentials) obtain() (began time.Time, _ *watchwordv1.TokenPair, _ error) {
	if err := c.save(); err != nil {
		return began, nil, &refusal.Setup{Code: codes.Unavailable, Message: "authn: storing the refresh token: " + err.Error(), Cause: err}
	}
	if c.refreshToken != "" {
		began, tokens, err := c.ask(c.refresh)
		if !sessionOver(err) || c.password == "" {
			return began, tokens, err
		}
		c.config.log.Info("the session is over; logging in again", "credentials", c, "error", err)
		c.refreshToken = ""
		if reason := Reason(err); reason == sessionRevoked || reason == refreshTokenReused {
			c.mu.Lock()
			c.access = "" // revoked with its session
			c.mu.Unlock()
		}
	}
	return c.ask(c.login)
}

// ask puts one question to Watchword.
func (c *Credentials) ask(question func(context.Context) (*watchwordv1.TokenPair, error)) (began time.Time, _ *watchwordv1.TokenPair, _ error) {
	ctx, cancel := context.WithTimeout(context.WithValue(c.ctx, renewalKey{c}, true), renewTimeout)
	defer cancel()
	began = time.Now()
	tokens, err := question(ctx)
	if err == nil && (tokens.GetAccessToken() == "" || tokens.GetRefreshToken() == "" || tokens.GetExpiresIn().AsDuration() <= 0) {
		err = status.Error(codes.Internal, "authn: the server's answer lacks a token or its lifetime")
	}
	return began, tokens, err
}

func (c *Credentials) login(ctx context.Context) (*watchwordv1.TokenPair, error) {
	req := &watchwordv1.LoginRequest{Audience: c.config.audience}
	resp, err := c.auth.Login(ctx, req, c.gate(func() { req.Username, req.Password = c.username, c.password }))
	return resp.GetTokens(), err
}

func (c *Credentials) refresh(ctx context.Context) (*watchwordv1.TokenPair, error) {
	req := &watchwordv1.RefreshRequest{Audience: c.config.audience}
	resp, err := c.auth.Refresh(ctx, req, c.gate(func() { req.RefreshToken = c.refreshToken }))
	return resp.GetTokens(), err
}

func (c *Credentials) gate(open func()) grpc.CallOption {
	return grpc.PerRPCCredentials(gate{c.config.plaintext, open})
}

// save hands the newest refresh token to the caller's store, if that is due.
func (c *Credentials) save() error {
	if c.config.store == nil || !c.unsaved {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, renewTimeout)
	defer cancel()
	err := c.config.store(ctx, c.refreshToken)
	c.unsaved = err != nil
	return err
}
