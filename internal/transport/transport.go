// Package transport decides whether a gRPC connection is protected against an
// attacker on the network path. A host name proves nothing, so the peer's address
// counts; and where the peer is on this machine, also the target of the connection:
// the peer may be a proxy.
package transport

import (
	"net"
	"net/netip"
	"net/url"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
)

// Protects reports whether the connection to p has at least the given security level:
// by its handshake, or because the connection stays on this machine. Credentials that
// state no security level count as unprotected. p may be nil.
//
// target is the target of the connection, as [Target] returns it; empty if unknown. A
// connection to a peer on a loopback address stays on this machine only if its target
// is such an address too: with HTTPS_PROXY, grpc-go connects to the proxy, and the proxy
// connects to the target. With an unknown target, the peer alone counts. A tunnel that
// is itself the target counts as this machine, since its far end cannot be seen from
// here.
func Protects(p *peer.Peer, target string, level credentials.SecurityLevel) bool {
	if p == nil {
		return false
	}
	info, ok := p.AuthInfo.(interface {
		GetCommonAuthInfo() credentials.CommonAuthInfo
	})
	return ok && info.GetCommonAuthInfo().SecurityLevel >= level || inMemory(p.Addr) ||
		loopback(p.Addr) && (target == "" || loopbackTarget(target))
}

// Target returns the target of a connection, as a URL such as dns:///auth:50051; empty
// for a connection that does not say, which may be any type but *grpc.ClientConn.
func Target(conn any) string {
	if c, ok := conn.(interface{ CanonicalTarget() string }); ok {
		return c.CanonicalTarget()
	}
	return ""
}

// Name returns the peer's address for an error message, and the target of a connection
// through a proxy.
func Name(p *peer.Peer, target string) string {
	if p == nil || p.Addr == nil {
		return "a machine that the connection does not name"
	}
	if loopback(p.Addr) && target != "" {
		return target + ", through a proxy on this machine at " + p.Addr.String()
	}
	return p.Addr.String()
}

// inMemory reports whether an address is a Unix socket or a pipe in memory (bufconn,
// net.Pipe). No proxy of grpc-go has such an address.
func inMemory(addr net.Addr) bool {
	if addr == nil {
		return false
	}
	switch addr.Network() {
	case "unix", "bufconn":
		return true
	case "pipe": // on Windows, a named pipe may be another machine's
		return addr.String() == "pipe"
	}
	return false
}

// loopback reports whether an address has a port at a loopback address.
func loopback(addr net.Addr) bool {
	if addr == nil {
		return false
	}
	host, err := netip.ParseAddrPort(addr.String())
	return err == nil && host.Addr().IsLoopback()
}

// loopbackTarget reports whether a target is a loopback address, or the name that stands
// for one: localhost in this spelling, or an empty host, which grpc-go reads as
// localhost. Any other name, even one that resolves to this machine, may go to a proxy:
// these are the targets that the standard library connects to itself.
func loopbackTarget(target string) bool {
	u, err := url.Parse(target)
	if err != nil {
		return false
	}
	endpoint := resolver.Target{URL: *u}.Endpoint()
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		host = endpoint // without a port
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || host == "" && endpoint != "" || err == nil && addr.IsLoopback()
}
