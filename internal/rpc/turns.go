package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/share"
)

const (
	// callsAtOnce bounds the calls of one user that run at a time. A list reads the rows of one
	// page, which takes some milliseconds, so other users wait for less than a tenth of a
	// second while 32 calls of one user have their turns at the database. While the database
	// does not answer, the 32 calls fail together. With a smaller bound, the waiting calls of
	// the user would wait until their deadlines.
	callsAtOnce = 32
	// callsWaiting bounds the waiting calls of one user, and the memory of these calls. A call
	// that runs or waits is one of the unfinished requests of its network, and a network is
	// allowed to have 256 by default. With 32 running and 32 waiting calls, one user takes at
	// most a quarter of the requests of a gateway.
	callsWaiting = 32
)

// InTurn returns an interceptor for unary calls that runs after the verifier. The interceptor
// gives each signed-in user a share of the server: callsAtOnce calls of one user run at a time,
// and callsWaiting more wait; see [share.Turns]. With these bounds, one user delays other users
// little, however many calls the user makes. A call of a public method has no user: the call
// runs at once. After a valid token, the interceptor adds the network of the call to known
// ([share.Known]).
func InTurn(known *share.Known) grpc.UnaryServerInterceptor {
	turns := share.NewTurns(callsAtOnce, callsWaiting)
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		p, ok := authn.FromContext(ctx)
		if !ok {
			return handler(ctx, req)
		}
		known.Add(caller.SourceOf(ctx).Network(), p.Subject())
		leave, err := turns.Enter(ctx, p.Subject())
		if errors.Is(err, share.ErrNoTurn) {
			err = audit.Refusal{UserID: p.Subject(), SessionID: p.SessionID(), Err: err}
		}
		if err != nil {
			return nil, err
		}
		defer leave()
		return handler(ctx, req)
	}
}
