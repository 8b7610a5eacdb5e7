//go:build unix

package docs_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// walkTimeout is long because building may be most of a walk.
const walkTimeout = 8 * time.Minute

// TestWalk pastes the README's walk twice into an interactive shell at a terminal, while `make
// run` serves from the same folder and something holds the default ports.
func TestWalk(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the server")
	}
	section := section(t, "README.md", "## Try every kind of call in five minutes")
	walk := strings.Join(blocks(section, "bash"), "")
	if strings.Contains(walk, "\t") {
		t.Error("a shell takes a pasted tab for a request to complete a word")
	}
	for _, addr := range []string{"127.0.0.1:50051", "127.0.0.1:8080"} {
		if held, err := net.Listen("tcp", addr); err == nil {
			defer held.Close()
		} else if !errors.Is(err, syscall.EADDRINUSE) { // all is well if the port is in use: the test, or another program, holds the port
			t.Fatal(err)
		}
	}
	beside := makeRun(t)

	folder := t.TempDir()
	shell := openShell(t, "TMPDIR="+folder)
	leaks := watchForLeaks(t, folder)
	for range 2 {
		wantWalk(t, shell.paste(walk))
		if left, _ := os.ReadDir(folder); len(left) > 0 {
			t.Errorf("the walk left %v", left)
		}
	}
	if seen := leaks(); seen == 0 && runtime.GOOS == "linux" {
		t.Error("no grpcurl was seen in the list of processes: the look for tokens there is worth nothing")
	}
	if shown := shell.paste("cd /\n" + walk); !strings.Contains(shown, "The walk stops: paste it in the folder") {
		t.Errorf("in another folder the walk shows\n%s", shown)
	}
	if out, err := exec.Command(filepath.Join(root, ".bin/watchword"), "healthcheck", "--plaintext", "--addr", beside).CombinedOutput(); err != nil {
		t.Errorf("the server of make run: %v: %s", err, out)
	}
}

// wantWalk checks what a walk has shown, in the order in which the README says so.
func wantWalk(t *testing.T, shown string) {
	t.Helper()
	rest := shown
	for _, want := range []string{
		`"username": "admin"`, // Verify
		`"reason": "TOKEN_MISSING"`,
		`"username": "alice"`, // CreateUser
		`"reason": "ROLE_REQUIRED"`,
		`"username": "admin"`, // Verify after the refresh
		`{}`,                  // Logout
		`"reason": "TOKEN_REVOKED"`,
		"== Stopped the server",
	} {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("%s is missing, or not in its place, in\n%s", want, shown)
		}
		rest = after
	}
	served := regexp.MustCompile(`serving gRPC on (127\.0\.0\.1:\d+)`).FindStringSubmatch(shown)
	if served == nil {
		t.Fatalf("no address in\n%s", shown)
	}
	if conn, err := net.Dial("tcp", served[1]); err == nil {
		conn.Close()
		t.Error("the walk's server is still there")
	}
}

// makeRun runs `make run` with a database and ports of its own, and returns the
// gRPC address.
func makeRun(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("make", "run", "ARGS=--grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 --datastore-uri sqlite:"+filepath.Join(t.TempDir(), "run.db"))
	cmd.Dir, cmd.Env = root, environment()
	log := new(screen)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the server is a child of make
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		_ = cmd.Wait()
	})
	return log.await(t, `msg=ready grpc=(\S+)`)
}

// shell is an interactive bash at a terminal of its own.
type shell struct {
	t      *testing.T
	stdin  io.Writer
	screen *screen
	pastes int
}

// openShell starts a shell in the repository's folder.
func openShell(t *testing.T, env ...string) *shell {
	t.Helper()
	args := []string{"-q", os.DevNull, "bash", "--norc", "--noprofile", "-i"}
	if runtime.GOOS == "linux" {
		args = []string{"-qec", "bash --norc --noprofile -i", os.DevNull}
	}
	cmd := exec.Command("script", args...) // runs a command at a new terminal
	cmd.Dir = root
	cmd.Env = append(environment(), append(env, "TERM=dumb", "HISTFILE="+os.DevNull)...)
	s := &shell{t: t, screen: new(screen)}
	cmd.Stdout, cmd.Stderr = s.screen, s.screen
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stdin = stdin
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		timer := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		stdin.Write([]byte("exit\n"))
		_ = cmd.Wait()
	})
	s.screen.await(t, `[$#] $`)
	return s
}

// paste types a text and returns what the shell shows until it is ready for the
// next command.
func (s *shell) paste(text string) string {
	s.t.Helper()
	s.screen.clear()
	s.pastes++
	// The shell shows its input too. There the number is in quotation marks.
	end := strings.Repeat("x", s.pastes)
	if _, err := io.WriteString(s.stdin, text+"echo 'end of '\""+end+"\"\n"); err != nil {
		s.t.Fatal(err)
	}
	s.screen.await(s.t, `end of `+end+`\b`)
	return s.screen.String()
}

// screen holds the text that a process has written so far.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.ReplaceAll(s.text.String(), "\r\n", "\n")
}

func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Reset()
}

// await polls for a pattern and returns the last group of the match.
func (s *screen) await(t *testing.T, pattern string) string {
	t.Helper()
	wanted := regexp.MustCompile(pattern)
	for end := time.Now().Add(walkTimeout); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if match := wanted.FindStringSubmatch(s.String()); match != nil {
			return match[len(match)-1]
		}
	}
	t.Fatalf("no %s within %v in\n%s", pattern, walkTimeout, s)
	return ""
}

// watchForLeaks looks at the arguments of the walk's processes and at the modes of what is
// made in a folder, until stop is called. No argument may hold a token, and no other
// user may read the folder's files. stop returns how often a grpcurl was seen. A process is
// the walk's if the folder is its TMPDIR: other tests, which run at the same time, pass tokens
// to grpcurl as arguments.
func watchForLeaks(t *testing.T, folder string) (stop func() (seen int)) {
	done, ended := make(chan struct{}), make(chan int)
	go func() {
		seen := 0
		defer func() { ended <- seen }()
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
			processes, _ := filepath.Glob("/proc/[0-9]*") // only Linux has /proc
			for _, process := range processes {
				line, _ := os.ReadFile(filepath.Join(process, "cmdline"))
				environment, _ := os.ReadFile(filepath.Join(process, "environ"))
				if !bytes.Contains(line, []byte("grpcurl\x00-plaintext")) || !bytes.Contains(environment, []byte("TMPDIR="+folder)) {
					continue
				}
				if seen++; bytes.Contains(line, []byte("eyJ")) { // every access token begins with eyJ
					t.Errorf("a token among the arguments %q", line)
					return
				}
			}
			made, _ := os.ReadDir(folder)
			for _, entry := range made {
				if info, err := entry.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s has mode %v", entry.Name(), info.Mode())
					return
				}
			}
		}
	}()
	stop = sync.OnceValue(func() int {
		close(done)
		return <-ended
	})
	t.Cleanup(func() { stop() })
	return stop
}

// environment returns the environment of this test, without the variables of a make that runs
// this test, and without variables that would set a flag of watchword.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS=") || strings.HasPrefix(v, "WATCHWORD_") || strings.HasPrefix(v, "OTEL_")
	})
}
