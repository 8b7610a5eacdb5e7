package authn_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/watchword-auth/watchword/authn"
	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// proxyProcess marks the process that has HTTPS_PROXY: the standard library reads it once.
const proxyProcess = "WATCHWORD_TEST_PROXY_PROCESS"

// connectProxy serves the method CONNECT on loopback. Every CONNECT leads to the server at
// address to, as if the target were there. asked returns the targets asked for since the last
// call.
func connectProxy(t *testing.T, to string) (address string, asked func() []string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var mu sync.Mutex
	var targets []string
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer client.Close()
				from := bufio.NewReader(client)
				request, err := http.ReadRequest(from)
				if err != nil || request.Method != http.MethodConnect {
					return
				}
				mu.Lock()
				targets = append(targets, request.Host)
				mu.Unlock()
				server, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer server.Close()
				if _, err := io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
					return
				}
				running.Go(func() { _, _ = io.Copy(server, from); server.Close() })
				_, _ = io.Copy(client, server)
			})
		}
	})
	t.Cleanup(func() { listener.Close(); running.Wait() })
	return listener.Addr().String(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		got := targets
		targets = nil
		return got
	}
}

// A proxy on this machine can lead to any machine: keys that come through the proxy in plaintext
// are refused, and keys from a server on this machine are accepted.
func TestProxy(t *testing.T) {
	if os.Getenv(proxyProcess) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProxy$", "-test.v")
		cmd.Env = append(os.Environ(), proxyProcess+"=yes")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestProxy") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	key := newKey(t)
	trust := &trustServer{streams: make(chan *watch)}
	server := grpc.NewServer()
	watchwordv1.RegisterTrustServiceServer(server, trust)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	stop := make(chan struct{})
	running.Go(func() {
		for {
			select {
			case w := <-trust.streams:
				w.send(snapshot(trustState(key)), heartbeat(time.Now()))
			case <-stop:
				return
			}
		}
	})
	address := listener.Addr().String()
	_, port, err := net.SplitHostPort(address)
	check(t, err)
	proxy, asked := connectProxy(t, address)
	t.Cleanup(func() { close(stop); server.Stop(); running.Wait() })
	t.Setenv("HTTPS_PROXY", "http://"+proxy)
	for _, name := range []string{"NO_PROXY", "no_proxy", "https_proxy"} {
		t.Setenv(name, "")
	}

	for target, want := range map[string]struct {
		proxied bool
		code    codes.Code
	}{
		address:                          {false, codes.OK},
		"localhost:" + port:              {false, codes.OK},
		":" + port:                       {false, codes.OK},
		"passthrough:///" + address:      {false, codes.OK},
		"auth.example:50051":             {true, codes.FailedPrecondition},
		"192.0.2.7:50051":                {true, codes.FailedPrecondition},
		"LOCALHOST:" + port:              {true, codes.FailedPrecondition},
		"localhost.:" + port:             {true, codes.FailedPrecondition},
		"passthrough:///192.0.2.7:50051": {true, codes.FailedPrecondition},
	} {
		for _, allowed := range []bool{false, true} {
			opts := []authn.Option{authn.WithAudience("internal")}
			if allowed {
				opts, want.code = append(opts, authn.WithPlaintextFromOtherHosts()), codes.OK
			}
			conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
			check(t, err)
			v, err := authn.NewVerifier(t.Context(), conn, opts...)
			if status.Code(err) != want.code || err != nil && !strings.Contains(err.Error(), " at "+proxy+" (an address of this machine, perhaps that of a proxy") {
				t.Errorf("%s, allowed %t: %v, want %v", target, allowed, err, want.code)
			}
			if err == nil {
				check(t, v.Close())
			}
			check(t, conn.Close())
			if through := asked(); len(through) > 0 != want.proxied {
				t.Errorf("%s: through the proxy: %q", target, through)
			}
		}
	}
}
