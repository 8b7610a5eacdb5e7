package caller

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/watchword-auth/watchword/internal/share"
)

// Source tells from where a call came: an address without the port, or one of the constants
// CommandLine and Server. The security record and the bounds per client use the Source.
type Source string

// These values of Source stand for actions that no network address has caused.
const (
	CommandLine Source = "cli"
	Server      Source = "server" // the server itself, such as a key rotation
)

// Network returns the part of a source's address that the server's bounds treat as one client:
// see [share.Network].
func (s Source) Network() string {
	addr, err := netip.ParseAddr(string(s))
	if err != nil {
		return string(s)
	}
	return share.Network(addr)
}

// Site returns the range of addresses that one owner commonly has: the /24 of an IPv4 address,
// or the /48 of an IPv6 address. The owner of a /48 can make calls from 65,536 different
// [Source.Network] values.
func (s Source) Site() string { return s.prefix(24, 48) }

// Block returns the range of addresses that one provider commonly has: the /32 of an IPv6
// address. The owner of a /32 can make calls from 65,536 different [Source.Site] values. An
// IPv4 /24 costs its owner as much as an IPv6 /32, so the block of an IPv4 address is its site.
func (s Source) Block() string { return s.prefix(24, 32) }

// prefix returns the network with the first of4 bits of an IPv4 address, or the first of6 bits
// of an IPv6 address.
func (s Source) prefix(of4, of6 int) string {
	addr, err := netip.ParseAddr(string(s))
	if err != nil {
		return string(s)
	}
	bits := of4
	if addr = addr.Unmap(); addr.Is6() {
		bits = of6
	}
	return netip.PrefixFrom(addr.WithZone(""), bits).Masked().String()
}

// Proxies lists the networks of trusted proxies (--trusted-proxy): the server believes the
// header x-forwarded-for of calls from these networks alone.
type Proxies []netip.Prefix

// ParseProxies parses networks such as 10.0.0.0/8, and single addresses.
//
// Errors: an error that gives the number of the first text that is no network and no address.
// The error does not repeat the text: a wrong flag may hold a secret.
func ParseProxies(networks []string) (Proxies, error) {
	var p Proxies
	for i, text := range networks {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil || addr.Zone() != "" {
				return nil, fmt.Errorf("value %d is not a network such as 10.0.0.0/8, and not an address", i+1)
			}
			network = netip.PrefixFrom(addr, addr.BitLen())
		}
		p = append(p, network.Masked())
	}
	return p, nil
}

// trusts reports whether an address belongs to a trusted proxy.
func (p Proxies) trusts(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(p, func(network netip.Prefix) bool { return network.Contains(addr) })
}

// TrustPeer reports whether the peer of a connection is a trusted proxy.
func (p Proxies) TrustPeer(peer net.Addr) bool {
	addr, ok := addressOf(peer)
	return ok && p.trusts(addr)
}

// Source returns the source of a call from a peer's address and the values of x-forwarded-for,
// in the order of the request. If the peer is a trusted proxy, the source is the last forwarded
// address that does not belong to a trusted proxy: each proxy appends the address from which
// the proxy was called, and a client can write any address before the appended addresses. If
// every forwarded address belongs to a trusted proxy, the source is the first forwarded
// address. Source reads the values from the last to the first and stops at a text that is no
// address: the source is then the proxy that has sent the text.
func (p Proxies) Source(peer net.Addr, forwarded []string) Source {
	source, ok := addressOf(peer)
	if !ok {
		if peer == nil {
			return ""
		}
		return Source(peer.String()) // String returns the path of a Unix socket
	}
	hops := strings.Split(strings.Join(forwarded, ","), ",")
	for _, hop := range slices.Backward(hops) {
		if !p.trusts(source) {
			break
		}
		addr, ok := parseHop(strings.TrimSpace(hop))
		if !ok {
			break
		}
		source = addr
	}
	return Source(source.Unmap().String())
}

// addressOf returns the IP address of a peer. addressOf returns false for a peer without an IP
// address, such as a peer at a Unix socket.
func addressOf(peer net.Addr) (netip.Addr, bool) {
	if peer == nil {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddrPort(peer.String())
	return addr.Addr(), err == nil
}

// parseHop parses one address of x-forwarded-for. Some proxies append the port to the address.
func parseHop(text string) (netip.Addr, bool) {
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return addr.WithZone(""), true // a client can write any zone
	}
	addr, err := netip.ParseAddrPort(text)
	return addr.Addr().WithZone(""), err == nil
}

type sourceKey struct{}

// Context is a context with the [Source] of a call. Package gate embeds a Context in the
// context of each call, so that the source needs no memory of its own.
type Context struct {
	context.Context
	Source Source
}

// Value returns the [Source] for the key that [SourceOf] uses, and otherwise the value of the
// parent context.
func (c *Context) Value(key any) any {
	if key == (sourceKey{}) {
		return c.Source
	}
	return c.Context.Value(key)
}

// WithSource returns a context with the [Source] of a call.
func WithSource(ctx context.Context, source Source) context.Context { return &Context{ctx, source} }

// SourceOf returns the [Source] that WithSource has put into ctx: from where the call came.
// SourceOf returns the zero Source if ctx has none.
func SourceOf(ctx context.Context) Source {
	source, _ := ctx.Value(sourceKey{}).(Source)
	return source
}
