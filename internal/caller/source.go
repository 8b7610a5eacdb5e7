package caller

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Source names where a call comes from, for the security record and for bounds: an
// address without its port, or one of the names below.
type Source string

// Sources that are no address.
const (
	CommandLine Source = "cli"
	Server      Source = "server" // the server by itself
)

func (s Source) String() string { return string(s) }

// Network returns the part of an address that counts as one peer. A host of IPv6 may
// have any of the 2^64 addresses of its network, so an IPv6 address counts as its
// /64.
func (s Source) Network() string {
	addr, err := netip.ParseAddr(string(s))
	if err != nil {
		return string(s)
	}
	if addr = addr.Unmap(); addr.Is6() {
		return netip.PrefixFrom(addr.WithZone(""), 64).Masked().String()
	}
	return addr.String()
}

// Address is a peer's address. It becomes a Source when a call is recorded, which is
// seldom.
type Address struct{ net.Addr }

// Source returns the address without the port, which tells nothing; empty without an
// address.
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

// WithSource returns a context that says where its call comes from: a [Source], or an
// [Address].
func WithSource(ctx context.Context, source fmt.Stringer) context.Context {
	return context.WithValue(ctx, sourceKey{}, source)
}

// SourceOf returns where the call of a context comes from; empty if the context does
// not say.
func SourceOf(ctx context.Context) Source {
	source, ok := ctx.Value(sourceKey{}).(fmt.Stringer)
	if !ok {
		return ""
	}
	return Source(source.String())
}
