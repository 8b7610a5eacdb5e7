package transport_test

import (
	"errors"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/test/bufconn"

	"github.com/watchword-auth/watchword/internal/transport"
)

// address is an address of any network.
type address struct{ network, text string }

func (a address) Network() string { return a.network }
func (a address) String() string  { return a.text }

func tcp(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 443} }

// Without transport security, only the address of the peer decides.
func TestProtectsByAddress(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	memory := bufconn.Listen(1)
	defer memory.Close()
	for name, test := range map[string]struct {
		addr net.Addr
		want bool
	}{
		"loopback":             {tcp("127.0.0.1"), true},
		"loopback, another":    {tcp("127.0.0.9"), true},
		"loopback, IPv6":       {tcp("::1"), true},
		"loopback, mapped":     {tcp("::ffff:127.0.0.1"), true},
		"loopback, mapped too": {address{"tcp", "[::ffff:127.0.0.1]:443"}, true},
		"another machine":      {tcp("192.0.2.7"), false},
		"another, IPv6":        {tcp("2001:db8::1"), false},
		"another, mapped":      {address{"tcp", "[::ffff:192.0.2.7]:443"}, false},
		"any address":          {tcp("0.0.0.0"), false},
		"link-local":           {tcp("169.254.1.1"), false},
		"private":              {tcp("10.0.0.1"), false},
		"Unix socket":          {&net.UnixAddr{Name: "/run/w.sock", Net: "unix"}, true},
		"bufconn":              {memory.Addr(), true},
		"pipe":                 {near.RemoteAddr(), true},
		"named pipe":           {address{"pipe", `\\another\pipe\auth`}, false},
		"name of loopback":     {address{"tcp", "localhost:443"}, false},
		"guest's host":         {address{"vsock", "host(2):1"}, false},
		"no port":              {address{"tcp", "127.0.0.1"}, false},
		"empty":                {address{}, false},
		"none":                 {nil, false},
	} {
		for _, info := range []credentials.AuthInfo{nil, silent{}} {
			if got := transport.Protects(&peer.Peer{Addr: test.addr, AuthInfo: info}, "", credentials.IntegrityOnly); got != test.want {
				t.Errorf("%s: %t with %v", name, got, info)
			}
		}
	}
	if transport.Protects(nil, "", credentials.NoSecurity) {
		t.Error("a connection without a peer is taken")
	}
}

// silent is an AuthInfo without a security level.
type silent struct{}

func (silent) AuthType() string { return "silent" }

// level is an AuthInfo with a security level.
type level credentials.SecurityLevel

func (level) AuthType() string { return "test" }
func (l level) GetCommonAuthInfo() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.SecurityLevel(l)}
}

// For a peer on another machine, the security level of the handshake decides.
func TestProtectsByLevel(t *testing.T) {
	tls := func(l credentials.SecurityLevel) credentials.AuthInfo {
		return credentials.TLSInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: l}}
	}
	for name, test := range map[string]struct {
		info               credentials.AuthInfo
		integrity, privacy bool
	}{
		"private":        {level(credentials.PrivacyAndIntegrity), true, true},
		"integrity only": {level(credentials.IntegrityOnly), true, false},
		"none":           {level(credentials.NoSecurity), false, false},
		"invalid":        {level(credentials.InvalidSecurityLevel), false, false},
		"TLS":            {tls(credentials.PrivacyAndIntegrity), true, true},
		"says TLS":       {credentials.TLSInfo{}, false, false},
		"says nothing":   {silent{}, false, false},
		"no info":        {nil, false, false},
	} {
		for _, addr := range []net.Addr{tcp("192.0.2.7"), nil} {
			p := &peer.Peer{Addr: addr, AuthInfo: test.info}
			if got := transport.Protects(p, "dns:///localhost:443", credentials.IntegrityOnly); got != test.integrity {
				t.Errorf("%s, integrity, to %v: %t", name, addr, got)
			}
			if got := transport.Protects(p, "dns:///localhost:443", credentials.PrivacyAndIntegrity); got != test.privacy {
				t.Errorf("%s, privacy, to %v: %t", name, addr, got)
			}
		}
	}
}

// Without transport security, a peer at a loopback address is enough only if the target is
// such an address too: the peer may be a proxy. Which of these targets grpc-go gives to a
// proxy, TestProxy in package authn shows.
func TestProtectsByTarget(t *testing.T) {
	for target, want := range map[string]bool{
		"127.0.0.1:443":                   true,
		"127.8.8.8:443":                   true,
		"[::1]:443":                       true,
		"::1":                             true, // without a port
		"[::ffff:127.0.0.1]:443":          true,
		"localhost:443":                   true,
		"localhost":                       true,
		":443":                            true,
		"dns:///127.0.0.1:443":            true,
		"dns://8.8.8.8/localhost:443":     true,
		"passthrough:///127.0.0.1:443":    true,
		"passthrough:127.0.0.1:443":       true,
		"auth:443":                        false,
		"auth":                            false,
		"192.0.2.7:443":                   false,
		"[2001:db8::1]:443":               false,
		"0.0.0.0:443":                     false,
		"LOCALHOST:443":                   false, // grpc-go gives this one to a proxy
		"localhost.:443":                  false,
		"localhost.example:443":           false,
		"a.localhost:443":                 false,
		"127.0.0.1.example:443":           false,
		"127.1:443":                       false,
		"dns://127.0.0.1/auth:443":        false,
		"dns:///auth:443":                 false,
		"passthrough:///auth:443":         false,
		"xds:///auth":                     false,
		"unknown:///":                     false,
		"dns:///127.0.0.1:443,auth:443":   false,
		"passthrough:///auth/127.0.0.1:1": false,
	} {
		conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(other{"xds"}, other{"unknown"}))
		if err != nil {
			t.Fatal(target, err)
		}
		canonical := transport.Target(conn)
		conn.Close()
		if canonical == "" {
			t.Fatal("a ClientConn does not say its target")
		}
		for _, addr := range []net.Addr{tcp("127.0.0.1"), tcp("::1")} {
			if got := transport.Protects(&peer.Peer{Addr: addr}, canonical, credentials.IntegrityOnly); got != want {
				t.Errorf("%s (%s) by %v: %t", target, canonical, addr, got)
			}
		}
		// No proxy has one of these addresses.
		for _, addr := range []net.Addr{&net.UnixAddr{Name: "/run/w.sock", Net: "unix"}, address{"pipe", "pipe"}} {
			if !transport.Protects(&peer.Peer{Addr: addr}, canonical, credentials.IntegrityOnly) {
				t.Errorf("%s by %v is refused", target, addr)
			}
		}
		// For a peer on another machine, no target makes the connection one that stays on this
		// machine.
		if transport.Protects(&peer.Peer{Addr: tcp("192.0.2.7")}, canonical, credentials.IntegrityOnly) {
			t.Errorf("%s by another machine is taken", target)
		}
	}
	if got := transport.Target(struct{}{}); got != "" {
		t.Errorf("the target of a connection that does not say: %q", got)
	}
}

// other is a resolver of the program's own.
type other struct{ scheme string }

func (o other) Scheme() string { return o.scheme }
func (other) Build(resolver.Target, resolver.ClientConn, resolver.BuildOptions) (resolver.Resolver, error) {
	return nil, errors.New("not used")
}

func TestName(t *testing.T) {
	const unknown = "a machine that the connection does not name"
	for _, test := range []struct {
		peer   *peer.Peer
		target string
		want   string
	}{
		{nil, "dns:///auth:1", unknown},
		{&peer.Peer{}, "dns:///auth:1", unknown},
		{&peer.Peer{Addr: tcp("192.0.2.7")}, "dns:///auth:1", "192.0.2.7:443"},
		{&peer.Peer{Addr: tcp("127.0.0.1")}, "", "127.0.0.1:443"},
		{&peer.Peer{Addr: tcp("127.0.0.1")}, "replicas:///localhost", "127.0.0.1:443"},
		{&peer.Peer{Addr: tcp("127.0.0.1")}, "dns:///auth:1", "dns:///auth:1 at 127.0.0.1:443 (an address of this machine, perhaps that of a proxy to another machine; for a server on this machine, write localhost or a loopback address in the target)"},
	} {
		if got := transport.Name(test.peer, test.target); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// An address in use is refused with the flag, and with what to do.
func TestListenOnAnAddressInUse(t *testing.T) {
	first, err := transport.Listen(t.Context(), "--a", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	address := first.Addr().String()
	want := "--b: listen tcp " + address + ": bind: address already in use: end the program that listens on the address, or give another address by --b"
	if _, err := transport.Listen(t.Context(), "--b", address); err == nil || err.Error() != want {
		t.Errorf("got the error %v, want %s", err, want)
	}
}
