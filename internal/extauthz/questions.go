package extauthz

import (
	"context"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/watchword-auth/watchword/internal/share"
)

// questions bounds the number of questions open at a time, on all connections together: without
// --client-ca, every client that reaches the port can ask.
type questions struct {
	places *share.Pool
	// within is the time in which a question must arrive whole and be answered. Envoy sends a
	// question in one piece, and an answer takes microseconds.
	within time.Duration
}

// newQuestions returns the bounds for a server. If every place holds a question of maxMessage
// bytes, the questions take 1 GiB. One Envoy has only some questions open at a time.
func newQuestions() *questions {
	return &questions{places(4096), 5 * time.Second}
}

// places returns a pool of n places, of which one network can hold at most half.
func places(n int) *share.Pool {
	return share.NewPool(share.Limits{Places: n, PerPeer: n / 2, KeepOrdinary: true})
}

// tap takes a place for a question, before gRPC reads the question ([grpc.InTapHandle]). The
// place is free again when the call ends, at the latest after q.within.
//
// Errors: RESOURCE_EXHAUSTED if no place is free.
func (q *questions) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	var network string
	if client, ok := peer.FromContext(ctx); ok {
		network = networkOf(client.Addr)
	}
	place := q.places.Take(network, share.Ordinary, nil)
	if place == nil {
		return nil, status.Error(codes.ResourceExhausted, "too many questions at a time")
	}
	ctx, cancel := context.WithTimeout(ctx, q.within)
	context.AfterFunc(ctx, func() {
		cancel()
		place.Release()
	})
	return ctx, nil
}

// networkOf returns the network of a client (see [share.Network]); empty for a client without an
// IP address.
func networkOf(client net.Addr) string {
	at, err := netip.ParseAddrPort(client.String())
	if err != nil {
		return ""
	}
	return share.Network(at.Addr())
}
