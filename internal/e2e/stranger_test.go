package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/watchword-auth/watchword/internal/strangertest"
)

// tryDialAs connects from an address of the loopback network 127.0.0.0/8, and keeps the
// errors of calls as evidence.
func tryDialAs(ip, addr string, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	return strangertest.Dial(ip, addr, append(keepErrors(), grpc.WithTransportCredentials(creds))...)
}

// dialAs is like tryDialAs, and closes the connection at the end of the test.
func dialAs(t *testing.T, ip, addr string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := tryDialAs(ip, addr, creds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// dialFrom is dial from a local address.
func dialFrom(t *testing.T, ip, addr string) *client {
	t.Helper()
	return newClient(dialAs(t, ip, addr, insecure.NewCredentials()))
}

// memory returns a figure of /proc/PID/status in MiB: VmRSS for now, VmHWM for the most so
// far.
func (p *process) memory(t *testing.T, figure string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, figure+":"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatalf("no %s in %s", figure, text)
	return 0
}
