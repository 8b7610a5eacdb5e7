package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// counting counts the calls that reach a server.
type counting struct {
	watchwordv1.UnimplementedAuthServiceServer
	calls atomic.Int64
}

func (c *counting) Login(context.Context, *watchwordv1.LoginRequest) (*watchwordv1.LoginResponse, error) {
	c.calls.Add(1)
	return &watchwordv1.LoginResponse{Tokens: &watchwordv1.TokenPair{}}, nil
}

func (c *counting) Verify(context.Context, *watchwordv1.VerifyRequest) (*watchwordv1.VerifyResponse, error) {
	c.calls.Add(1)
	return &watchwordv1.VerifyResponse{}, nil
}

func (c *counting) Logout(context.Context, *watchwordv1.LogoutRequest) (*watchwordv1.LogoutResponse, error) {
	c.calls.Add(1)
	return &watchwordv1.LogoutResponse{}, nil
}

// at is a connection whose peer has another address.
type at struct {
	net.Conn
	addr net.Addr
}

func (a at) RemoteAddr() net.Addr { return a.addr }

// serveAt runs a server in memory. network dials the server as if it had an address.
func serveAt(t *testing.T, addr net.Addr) (server *counting, network []grpc.DialOption) {
	t.Helper()
	listener, server, grpcServer := bufconn.Listen(1<<16), new(counting), grpc.NewServer()
	watchwordv1.RegisterAuthServiceServer(grpcServer, server)
	healthv1.RegisterHealthServer(grpcServer, health.NewServer())
	go grpcServer.Serve(listener)
	t.Cleanup(grpcServer.Stop)
	return server, []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := listener.DialContext(ctx)
		return at{conn, addr}, err
	})}
}

// No command sends a password or a token without TLS to another machine, unless a flag
// says so. The address of the connection counts, whatever the name says.
func TestNoSecretOverPlaintextToAnotherMachine(t *testing.T) {
	t.Parallel()
	stdin := filepath.Join(t.TempDir(), "stdin")
	if err := os.WriteFile(stdin, []byte("a secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	type runner interface {
		Run(context.Context, Terminal) error
	}
	for where, c := range map[string]struct {
		addr net.Addr
		near bool
	}{
		"another machine":       {&net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 50051}, false},
		"another machine, IPv6": {&net.TCPAddr{IP: net.ParseIP("2001:db8::7"), Port: 50051}, false},
		"loopback":              {&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50051}, true},
		"loopback, IPv6":        {&net.TCPAddr{IP: net.IPv6loopback, Port: 50051}, true},
		"a Unix socket":         {&net.UnixAddr{Name: "/run/w.sock", Net: "unix"}, true},
	} {
		for _, allowed := range []bool{false, true} {
			server, network := serveAt(t, c.addr)
			r := remote{"passthrough:///localhost:50051", connection{Plaintext: true, PlaintextToOtherHosts: allowed, network: network}}
			want := int64(0)
			for name, command := range map[string]runner{
				"login": &loginCmd{remote: r, Name: "eve", Print: true}, "verify": &verifyCmd{remote: r}, "logout": &logoutCmd{remote: r},
			} {
				what := fmt.Sprintf("%s, %s, allowed %t", name, where, allowed)
				in, err := os.Open(stdin)
				if err != nil {
					t.Fatal(err)
				}
				err = command.Run(t.Context(), Terminal{In: in, Out: new(bytes.Buffer), Err: new(bytes.Buffer)})
				in.Close()
				if c.near || allowed {
					want++
				}
				if ok := err == nil; ok != (c.near || allowed) || !ok && !errors.As(err, new(usageError)) {
					t.Errorf("%s: %v", what, err)
				}
				if n := server.calls.Load(); n != want {
					t.Errorf("%s: the server got %d calls, want %d", what, n, want)
				}
			}
			if err := (&healthcheckCmd{r}).Run(t.Context(), Terminal{}); err != nil { // carries no secret
				t.Errorf("healthcheck, %s: %v", where, err)
			}
		}
	}
}
