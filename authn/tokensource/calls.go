package tokensource

import (
	"context"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
)

const (
	// replaceEvery and replaceBurst bound how often a refused token is replaced, so
	// that a service that refuses every token does not make its callers flood Watchword.
	replaceEvery = 10 * time.Second
	replaceBurst = 5
)

const tokenRevoked = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED

// tokenUseless lists the reasons for which a token is replaced. Other refusals would
// meet a new token too.
var tokenUseless = []watchwordv1.ErrorReason{
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED,
	watchwordv1.ErrorReason_ERROR_REASON_TOKEN_INVALID,
	tokenRevoked,
}

// An attempt carries from [Source.GetRequestMetadata] to the interceptors what a call
// went out with. The error of GetRequestMetadata comes this way too: grpc-go replaces
// some errors (gRFC A54), and their details would be lost.
type attempt struct {
	source *Source
	method string
	sent   atomic.Pointer[sent] // grpc-go may ask again, from another goroutine
}

// sent is the token that a call carries, or the error in place of it.
type sent struct {
	token string
	err   error
}

// attemptKey finds the attempt of a source in the context of a call.
type attemptKey struct{ *Source }

func (s *Source) newAttempt(ctx context.Context, method string) (context.Context, *attempt) {
	a := &attempt{source: s, method: method}
	return context.WithValue(ctx, attemptKey{s}, a), a
}

// ended returns the error of a call whose result was err, and reports whether to make
// the call again. If err is the refusal of the token by the method that was called,
// the token goes out of use.
func (a *attempt) ended(err error) (again bool, _ error) {
	sent := a.sent.Load()
	if err == nil || sent == nil {
		return false, err
	}
	if sent.err != nil {
		return false, sent.err
	}
	reason := refusal.Reason(err)
	if refusal.Method(err) != a.method || !slices.Contains(tokenUseless, reason) {
		return false, err
	}
	return a.source.replace(sent.token) && reason != tokenRevoked, err
}

// replace takes a refused token out of use. It reports whether there is another token,
// or may be: not if a service refuses too many. A second call that was refused with
// the same token finds the token replaced.
func (s *Source) replace(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.access == token && s.replacements.Allow() {
		s.access = ""
	}
	return s.access != token
}

// interceptUnary makes a call, and once more if the service refused its token.
func (s *Source) interceptUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) (err error) {
	for tries, again := 0, true; again && tries < 2; tries++ {
		ctx, a := s.newAttempt(ctx, method)
		again, err = a.ended(invoke(ctx, method, req, reply, conn, opts...))
	}
	return err
}

// interceptStream opens a stream that replaces its token if the service refuses it.
func (s *Source) interceptStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, a := s.newAttempt(ctx, method)
	opened, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		_, err = a.ended(err)
		return nil, err
	}
	return &stream{opened, a}, nil
}

// A stream takes note of how it ends.
type stream struct {
	grpc.ClientStream
	attempt *attempt
}

func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != io.EOF {
		_, err = s.attempt.ended(err)
	}
	return err
}
