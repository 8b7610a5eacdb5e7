//go:build unix

package docs_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The README's five minutes, pasted into bash, on other ports and another
// database. It builds grpcurl if .bin has none.
func TestWalk(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the server")
	}
	_, section, _ := strings.Cut(read(t, "README.md"), "\n## Five minutes\n")
	section, _, _ = strings.Cut(section, "\n## ")
	script := strings.Join(blocks(section, "bash"), "")
	grpc, http := freeAddr(t), freeAddr(t)
	script = strings.ReplaceAll(script, "127.0.0.1:50051", grpc)

	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute) // building may be most of it
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash")
	cmd.Dir = root
	cmd.Stdin = strings.NewReader(script)
	cmd.Env = append(withoutMake(os.Environ()),
		"TMPDIR="+t.TempDir(),
		"WATCHWORD_GRPC_ADDR="+grpc, "WATCHWORD_ADDR="+grpc, "WATCHWORD_HTTP_ADDR="+http,
		"WATCHWORD_DATASTORE_URI=sqlite:"+filepath.Join(t.TempDir(), "walk.db"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// The server is a child of bash's child, so all of them end together.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		t.Errorf("bash: %v", err)
	}

	rest := out.String()
	for _, want := range []string{
		`"username": "admin"`, // Verify
		`"reason": "TOKEN_MISSING"`,
		`"username": "alice"`, // CreateUser
		`"reason": "ROLE_REQUIRED"`,
		`"username": "admin"`, // Verify after the refresh
		`{}`,                  // Logout
		`"reason": "TOKEN_REVOKED"`,
	} {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("%s is missing, or not in its place, in\n%s", want, out.String())
		}
		rest = after
	}
}

// withoutMake drops what a make that runs this test says to a make inside of it.
func withoutMake(env []string) (kept []string) {
	for _, v := range env {
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS=") {
			kept = append(kept, v)
		}
	}
	return kept
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
