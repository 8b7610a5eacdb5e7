package tokensource_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/authn/authntest"
	"github.com/watchword-auth/watchword/authn/tokensource"
)

// near is an address on this machine, of a server or of a proxy.
var near = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9), Port: 1}

// secretAddresses has addresses, and whether a secret may be sent there in plaintext.
var secretAddresses = map[string]struct {
	addr net.Addr
	ok   bool
}{
	"another machine":  {&net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 443}, false},
	"another, IPv6":    {&net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 1}, false},
	"loopback":         {near, true},
	"loopback, IPv6":   {&net.TCPAddr{IP: net.IPv6loopback, Port: 1}, true},
	"Unix socket":      {&net.UnixAddr{Name: "/run/w.sock", Net: "unix"}, true},
	"in memory":        {nil, true},
	"name of loopback": {otherAddr("localhost:1"), false},
}

func TestSecretsOverPlaintext(t *testing.T) {
	for name, test := range secretAddresses {
		for _, allowed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, allowed %t", name, allowed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var opts []tokensource.Option
					if allowed {
						opts = append(opts, tokensource.WithPlaintextToOtherHosts())
					}
					ok := test.ok || allowed
					auth, service := startAuth(t), startService(t)
					near, far := auth.dial(t, nil), auth.dial(t, test.addr)

					// The token goes to a service, with Watchword on this machine. A handler's
					// caller is on this machine too, which must not count.
					source, err := tokensource.Password(near, "alice", "secret", opts...)
					check(t, err)
					defer source.Close()
					conn := service.dial(t, test.addr, source.DialOptions()...)
					for _, stream := range []bool{false, true} {
						_, err = call(nearCaller(t.Context()), conn, unaryMethod, stream)
						wantsPlaintext(t, err, ok)
					}
					if !ok {
						saw(t, auth, "") // the Source asked the server for no token
						saw(t, service, "")
					} else {
						saw(t, service, "access-1 access-1")
					}

					// The password, the refresh token and the assertion go to Watchword.
					for _, make := range []func() (*tokensource.Source, error){
						func() (*tokensource.Source, error) {
							return tokensource.Password(far, "alice", "secret", opts...)
						},
						func() (*tokensource.Source, error) { return tokensource.Refresh(far, "refresh-1", opts...) },
						func() (*tokensource.Source, error) { return tokensource.Workload(far, assertion, opts...) },
					} {
						auth.sinceLast()
						auth.mu.Lock()
						auth.newest = 1
						auth.mu.Unlock()
						source, err := make()
						check(t, err)
						defer source.Close()
						_, err = call(t.Context(), service.dial(t, nil, source.DialOptions()...), unaryMethod, false)
						wantsPlaintext(t, err, ok)
						if (auth.sinceLast() != "") != ok {
							t.Errorf("Watchword got a request: %t, want %t", !ok, ok)
						}
					}
				})
			})
		}
	}
}

// A proxy on this machine leads to another machine: the address of the peer is on this machine,
// and the target is not. The target of the connection counts, not its authority.
func TestSecretsThroughAProxy(t *testing.T) {
	for target, ok := range map[string]bool{"127.0.0.9:1": true, "localhost:1": true, "auth:443": false, "192.0.2.7:443": false} {
		for _, authority := range []string{"", "localhost:1", "auth:443"} {
			t.Run(target+", as "+authority, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					auth, service := startAuth(t), startService(t)
					as := []grpc.DialOption{grpc.WithAuthority(authority)}
					if authority == "" {
						as = nil
					}
					source, err := tokensource.Password(auth.dialAs(t, target, near, as...), "alice", "secret")
					check(t, err)
					defer source.Close()
					_, err = call(t.Context(), service.dial(t, nil, source.DialOptions()...), unaryMethod, false)
					wantsPlaintext(t, err, ok)

					source, err = tokensource.Password(auth.dial(t, nil), "alice", "secret")
					check(t, err)
					defer source.Close()
					conn := service.dialAs(t, target, near, append(as, source.DialOptions()...)...)
					for _, stream := range []bool{false, true} {
						_, err = call(t.Context(), conn, map[bool]string{false: unaryMethod, true: streamMethod}[stream], stream)
						wantsPlaintext(t, err, ok)
					}

					issuer := authntest.New()
					for _, stream := range []bool{false, true} {
						v := issuer.NewVerifier(t, authn.WithAudience("test"), tokenNeeded("/any.v1.Any/*"))
						middle := serveMiddle(t, v, service.dialAs(t, target, near, append(as, tokensource.Forward()...)...), stream)
						_, err = call(bearing(t.Context(), "Bearer "+issuer.Token(alice)), middle, "/any.v1.Any/Method", false)
						wantsPlaintext(t, err, ok)
					}
				})
			})
		}
	}
}

// Without the interceptors of DialOptions, the credentials do not know the target of the connection: the
// authority (the name of the server in the request) decides whether a secret may be sent in plaintext.
func TestSecretsThroughAProxyWithoutInterceptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth, service := startAuth(t), startService(t)
		source, err := tokensource.Password(auth.dial(t, nil), "alice", "secret")
		check(t, err)
		defer source.Close()
		for target, ok := range map[string]bool{"127.0.0.9:1": true, "localhost:1": true, "localhost": true, "auth:443": false, "192.0.2.7:443": false} {
			_, err = call(t.Context(), service.dialAs(t, target, near, grpc.WithPerRPCCredentials(source)), unaryMethod, false)
			wantsPlaintext(t, err, ok)
		}
	})
}

func wantsPlaintext(t *testing.T, err error, ok bool) {
	t.Helper()
	if ok {
		check(t, err)
	} else if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "plaintext") {
		t.Fatal(err)
	}
}

// nearCaller returns the context of a handler with a caller on this machine.
func nearCaller(ctx context.Context) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: &net.UnixAddr{Net: "unix"}, AuthInfo: private})
}

type otherAddr string

func (otherAddr) Network() string  { return "vsock" }
func (a otherAddr) String() string { return string(a) }

// says is plaintext with an AuthInfo of any level of security.
type says struct {
	credentials.TransportCredentials
	info credentials.AuthInfo
}

func (s says) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, s.info, nil
}

func (says) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "test"}
}

func (s says) Clone() credentials.TransportCredentials { return s }

// level is an AuthInfo with a level of security.
type level credentials.SecurityLevel

const private = level(credentials.PrivacyAndIntegrity)

func (level) AuthType() string { return "test" }
func (l level) GetCommonAuthInfo() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.SecurityLevel(l)}
}

// silentAuth is an AuthInfo without a level of security.
type silentAuth struct{}

func (silentAuth) AuthType() string { return "silent" }

// A secret needs a connection with an AuthInfo that states privacy.
func TestSecretsByLevelOfSecurity(t *testing.T) {
	for name, test := range map[string]struct {
		info credentials.AuthInfo
		ok   bool
	}{
		"private":        {private, true},
		"integrity only": {level(credentials.IntegrityOnly), false},
		"none":           {level(credentials.NoSecurity), false},
		"invalid":        {level(credentials.InvalidSecurityLevel), false},
		"says nothing":   {silentAuth{}, false},
		"says TLS":       {credentials.TLSInfo{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				auth, service := startAuth(t), startService(t)
				remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 443}
				as := grpc.WithTransportCredentials(says{info: test.info})
				for _, far := range []string{"Watchword", "service"} {
					toAuth := auth.dial(t, nil)
					if far == "Watchword" {
						toAuth = auth.dial(t, remote, as)
					}
					source, err := tokensource.Password(toAuth, "alice", "secret")
					check(t, err)
					defer source.Close()
					opts := source.DialOptions()
					toService := service.dial(t, nil, opts...)
					if far == "service" {
						toService = service.dial(t, remote, append(opts, as)...)
					}
					_, err = call(t.Context(), toService, unaryMethod, false)
					wantsPlaintext(t, err, test.ok)
				}
				if !test.ok {
					saw(t, auth, "")
					saw(t, service, "")
				}
			})
		})
	}
}

// deafConn drops call options, and so the check of the connection.
type deafConn struct{ grpc.ClientConnInterface }

func (c deafConn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	return c.ClientConnInterface.Invoke(ctx, method, args, reply)
}

func TestConnectionThatDropsOptionsGetsNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth, service := startAuth(t), startService(t)
		for want, make := range map[string]func(grpc.ClientConnInterface) (*tokensource.Source, error){
			"login": func(conn grpc.ClientConnInterface) (*tokensource.Source, error) {
				return tokensource.Password(conn, "alice", "secret")
			},
			"": func(conn grpc.ClientConnInterface) (*tokensource.Source, error) {
				return tokensource.Refresh(conn, "refresh-0")
			},
			"exchange:": func(conn grpc.ClientConnInterface) (*tokensource.Source, error) {
				return tokensource.Workload(conn, assertion)
			},
		} {
			source, err := make(deafConn{auth.dial(t, nil)})
			check(t, err)
			defer source.Close()
			if _, err := call(t.Context(), service.dial(t, nil, source.DialOptions()...), unaryMethod, false); err == nil {
				t.Error("the call succeeded")
			}
			saw(t, auth, want)
		}
	})
}
