// Package gate stands before the handlers: it finds the source of every call, and bounds
// what clients can cause before a handler runs.
package gate

import (
	"context"
	"net"

	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	"github.com/watchword-auth/watchword/internal/caller"
)

// Gate bounds the calls of one server. A Gate is safe for concurrent use.
type Gate struct {
	proxies caller.Proxies
}

// New returns a gate that believes the header x-forwarded-for of calls from proxies.
func New(proxies caller.Proxies) *Gate { return &Gate{proxies: proxies} }

// Tap puts the source of a call into the context of the call, for package audit and for
// bounds per peer. gRPC calls Tap for the headers of each call, before a goroutine runs for
// the call (grpc.InTapHandle).
func (g *Gate) Tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	var addr net.Addr
	if p, ok := peer.FromContext(ctx); ok {
		addr = p.Addr
	}
	return caller.WithSource(ctx, g.proxies.Source(addr, info.Header.Get("x-forwarded-for"))), nil
}
