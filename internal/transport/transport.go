// Package transport decides whether a gRPC connection is protected against an
// attacker on the network path. A host name proves nothing, so the peer's address
// counts.
package transport

import (
	"net"
	"net/netip"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Protects reports whether the connection to p has at least the given security level:
// by its handshake, or because the peer is on this machine. Credentials that state no
// security level count as unprotected. p may be nil. A proxy or a tunnel on this
// machine counts as this machine, since the far end of the proxy cannot be seen from
// here.
func Protects(p *peer.Peer, level credentials.SecurityLevel) bool {
	if p == nil {
		return false
	}
	info, ok := p.AuthInfo.(interface {
		GetCommonAuthInfo() credentials.CommonAuthInfo
	})
	return ok && info.GetCommonAuthInfo().SecurityLevel >= level || local(p.Addr)
}

// Name returns the peer's address for an error message.
func Name(p *peer.Peer) string {
	if p == nil || p.Addr == nil {
		return "a machine that the connection does not name"
	}
	return p.Addr.String()
}

// local reports whether an address is on this machine: loopback, a Unix socket, or
// a pipe in memory (bufconn, net.Pipe).
func local(addr net.Addr) bool {
	if addr == nil {
		return false
	}
	switch addr.Network() {
	case "unix", "bufconn":
		return true
	case "pipe": // on Windows, a named pipe may be another machine's
		return addr.String() == "pipe"
	}
	host, err := netip.ParseAddrPort(addr.String())
	return err == nil && host.Addr().IsLoopback()
}
