package caller

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Source names the origin of a call, for the security record and for bounds per client:
// an address without the port, or one of the names below.
type Source string

// Sources of actions that come from no address.
const (
	CommandLine Source = "cli"
	Server      Source = "server" // the server itself, such as a key rotation
)

func (s Source) String() string { return string(s) }

// Network returns the part of an address that bounds per client count: an IPv4 address,
// or the /64 of an IPv6 address. An IPv6 host may use any of the 2^64 addresses of its
// /64. The loopback address stays whole.
func (s Source) Network() string {
	addr, err := netip.ParseAddr(string(s))
	if err != nil {
		return string(s)
	}
	if addr = addr.Unmap(); addr.Is6() && !addr.IsLoopback() {
		return netip.PrefixFrom(addr.WithZone(""), 64).Masked().String()
	}
	return addr.String()
}

// Address holds a peer's address and makes the text of the Source when it is needed:
// most calls are never recorded.
type Address struct{ net.Addr }

// Source returns the address without the port, or "" if there is no address.
func (a Address) Source() Source {
	if a.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(a.Addr.String())
	if err != nil {
		return Source(a.Addr.String())
	}
	return Source(host)
}

func (a Address) String() string { return a.Source().String() }

type sourceKey struct{}

// WithSource returns a context with the origin of a call: a [Source] or an [Address].
func WithSource(ctx context.Context, source fmt.Stringer) context.Context {
	return context.WithValue(ctx, sourceKey{}, source)
}

// SourceOf returns the origin in a context; empty if the context has none.
func SourceOf(ctx context.Context) Source {
	source, ok := ctx.Value(sourceKey{}).(fmt.Stringer)
	if !ok {
		return ""
	}
	return Source(source.String())
}
