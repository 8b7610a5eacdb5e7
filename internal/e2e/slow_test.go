package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/strangertest"
)

// slow skips a test that waits for minutes, unless `make test-slow` runs the test. The name
// of such a test begins with TestSlow.
func slow(t *testing.T) {
	t.Helper()
	if os.Getenv("WATCHWORD_SLOW") == "" {
		t.Skip("make test-slow runs this test")
	}
	t.Parallel()
}

// The server ends a connection that has carried no call for five minutes.
func TestSlowAnIdleConnectionEnds(t *testing.T) {
	slow(t)
	s := serve(t, t.TempDir())
	conn, err := strangertest.Connect("127.0.0.2", s.grpcAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	began := time.Now()
	if err := conn.Await(ctx, func() bool { return false }); !strangertest.WasClosed(err) {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	t.Logf("ended after %v", time.Since(began))
}

// The server closes the connection of a client that leaves every answer unread for half a
// minute, although the client answers the server's pings.
func TestSlowAClientThatReadsNoAnswerIsClosed(t *testing.T) {
	slow(t)
	s := serve(t, t.TempDir())
	conn, err := strangertest.ConnectDeaf("127.0.0.2", s.grpcAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	if err := errors.Join(conn.Headers(1, "/grpc.health.v1.Health/Check", false), conn.Data(1, true, []byte{0, 0, 0, 0, 0})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // less than the five minutes after which the server closes an idle connection
	defer cancel()
	if err := conn.Await(ctx, func() bool { return false }); !strangertest.WasClosed(err) {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	if took := time.Since(began); took < 30*time.Second {
		t.Errorf("closed after %v: a client on a slow line has 30 seconds", took)
	}
}

// The replies to refused calls, which a client does not read from its connection, are
// bounded: the server closes the connection.
func TestSlowUnreadRepliesAreBounded(t *testing.T) {
	slow(t)
	s := serve(t, t.TempDir())
	before := s.memory(t, "VmRSS")
	c, err := strangertest.ConnectStuck("127.0.0.9", s.grpcAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for stream := uint32(1); err == nil; stream += 2 { // the buffers of the machine's network take some megabytes first
		if stream > 4_000_000 {
			t.Fatal("two million calls, and the server has not closed the connection")
		}
		err = c.Headers(stream, "/no.such.Service/Method", true)
	}
	if !strangertest.WasClosed(err) {
		t.Errorf("the connection ended with %v", err)
	}
	if most := s.memory(t, "VmHWM"); most > before+100 {
		t.Errorf("the server grew from %d to %d MiB", before, most)
	}
}

// Go's linker leaves out methods without a call. The linker keeps every exported method of the
// program if a part of the program looks up methods by a computed name, which makes the program
// larger by a tenth. No code calls reflect.Value.Methods: the program has this method only if the
// linker keeps every exported method. See docs/decisions/2026-11-29-no-method-by-name.md.
func TestSlowUnusedMethodsAreLeftOut(t *testing.T) {
	slow(t)
	dir := t.TempDir()
	// The tag leaves out golang.org/x/net/trace, which looks up methods, as in every release.
	cmd := exec.Command("go", "build", "-tags", "grpcnotrace", "-buildvcs=false", "-o", dir+string(filepath.Separator), "./cmd/...")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"watchword", "watchword-ext-authz"} {
		program, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(program, []byte("\x00reflect.Value.Method\x00")) {
			t.Errorf("%s holds no names of functions", name)
		}
		if bytes.Contains(program, []byte("\x00reflect.Value.Methods\x00")) {
			t.Errorf("%s holds every exported method: to find the cause, build with -ldflags=-dumpdep, and search ReflectMethod", name)
		}
	}
}
