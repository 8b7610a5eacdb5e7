// Package transport decides whether a gRPC connection is protected against an attacker on the
// network path. The decision depends on the peer's address, since an attacker can control to
// which address a host name leads. If the peer is on this machine, the decision also depends on
// the target of the connection: the peer can be a proxy that leads to another machine. Package
// transport also opens the listeners of the programs, and decides which listeners other machines
// cannot reach.
package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"syscall"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
)

// Protects reports whether the connection to p has at least the given security level: by the
// handshake, or because the connection stays on this machine. Credentials that tell no security
// level do not protect a connection. For a nil p, Protects returns false.
//
// target is the result of [Target]; empty if unknown. A connection to a peer on a loopback
// address stays on this machine only if the target is a loopback address too: with HTTPS_PROXY,
// grpc-go connects to the proxy, and the proxy connects to the target. If the target is
// unknown, only the peer's address decides. If the target is a tunnel on this machine, Protects
// treats the connection as one that stays on this machine: Protects cannot see the far end of
// the tunnel.
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

// Target returns the target of a connection, as a URL such as dns:///auth:50051. A
// *grpc.ClientConn names its target by the method CanonicalTarget. For a connection without
// this method, Target returns "".
func Target(conn any) string {
	if c, ok := conn.(interface{ CanonicalTarget() string }); ok {
		return c.CanonicalTarget()
	}
	return ""
}

// Name describes the peer for an error message by the peer's address. If the peer is on this
// machine, and the target is another name than a loopback address or localhost, Name also tells
// the target, and how to name a server on this machine.
func Name(p *peer.Peer, target string) string {
	if p == nil || p.Addr == nil {
		return "a machine that the connection does not name"
	}
	if loopback(p.Addr) && target != "" && !loopbackTarget(target) {
		return target + " at " + p.Addr.String() + " (an address of this machine, perhaps that of a proxy to another machine; " +
			"for a server on this machine, write localhost or a loopback address in the target)"
	}
	return p.Addr.String()
}

// Listen listens on the TCP address that a flag names, such as --grpc-addr.
//
// Errors: an error that names the flag, and that tells what to do if another program listens on
// the address.
func Listen(ctx context.Context, flag, address string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %w: end the program that listens on the address, or give another address by %[1]s", flag, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return l, nil
}

// LoopbackListener reports whether a listener on host is reachable from this machine alone. For an
// empty host, LoopbackListener returns false: the listener has every address of the machine.
func LoopbackListener(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// inMemory reports whether an address is a Unix socket or a pipe in memory (bufconn,
// net.Pipe). The proxies of grpc-go have other kinds of addresses.
func inMemory(addr net.Addr) bool {
	if addr == nil {
		return false
	}
	switch addr.Network() {
	case "unix", "bufconn":
		return true
	case "pipe": // a pipe of net.Pipe; a named pipe of Windows has a longer address, and may lead to another machine
		return addr.String() == "pipe"
	}
	return false
}

// loopback reports whether an address is a loopback address with a port.
func loopback(addr net.Addr) bool {
	if addr == nil {
		return false
	}
	host, err := netip.ParseAddrPort(addr.String())
	return err == nil && host.Addr().IsLoopback()
}

// loopbackTarget reports whether a target is a loopback address, the name localhost in lower
// case, or an empty host, which grpc-go reads as localhost. The standard library (net/http's
// ProxyFromEnvironment) connects to localhost and to loopback addresses directly. A connection
// to any other name, even a name of this machine, may go through a proxy.
func loopbackTarget(target string) bool {
	u, err := url.Parse(target)
	if err != nil {
		return false
	}
	endpoint := resolver.Target{URL: *u}.Endpoint()
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		host = endpoint // the target has no port
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || host == "" && endpoint != "" || err == nil && addr.IsLoopback()
}
