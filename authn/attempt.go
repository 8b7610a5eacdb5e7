package authn

import (
	"context"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/internal/refusal"
)

// An attempt is what the interceptors learn of the token that a call went out
// with. An error of the credentials comes this way too: grpc-go replaces some
// (gRFC A54), and their details would be lost.
type attempt struct {
	mu    sync.Mutex
	token string
	err   error
}

// attemptKey finds the attempt of these credentials in a call's context.
type attemptKey struct{ *Credentials }

func (c *Credentials) newAttempt(ctx context.Context) (context.Context, *attempt) {
	a := new(attempt)
	return context.WithValue(ctx, attemptKey{c}, a), a
}

func (a *attempt) note(token string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.token, a.err = token, err
}

// ended is the error of a call that failed, and the token that it went out with,
// empty if it never did.
func (a *attempt) ended(err error) (token string, _ error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return "", a.err
	}
	return a.token, err
}

// callUnary makes a call, and once more if its token was refused.
func (c *Credentials) callUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for first := true; ; first = false {
		ctx, a := c.newAttempt(ctx)
		err := invoke(ctx, method, req, reply, cc, opts...)
		if err == nil {
			return nil
		}
		token, err := a.ended(err)
		if again := c.refused(token, method, err); !again || !first {
			return err
		}
	}
}

func (c *Credentials) callStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, a := c.newAttempt(ctx)
	stream, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		_, err = a.ended(err)
		return nil, err
	}
	return &carryingStream{ClientStream: stream, creds: c, attempt: a, method: method}, nil
}

// carryingStream watches a stream for the refusal of its token.
type carryingStream struct {
	grpc.ClientStream
	creds   *Credentials
	attempt *attempt
	method  string
}

func (s *carryingStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || err == io.EOF {
		return err
	}
	token, err := s.attempt.ended(err)
	s.creds.refused(token, s.method, err)
	return err
}

// refused takes in how a call failed. If its token was refused, it is out of use
// from now on. again says whether the call may be made with another.
func (c *Credentials) refused(token, method string, err error) (again bool) {
	if token == "" {
		return false
	}
	switch reason := Reason(err); reason {
	case tokenStale, tokenExpired, tokenInvalid, tokenRevoked:
		return refusal.Method(err) == method && c.spend(token) && reason != tokenRevoked
	}
	return false
}
