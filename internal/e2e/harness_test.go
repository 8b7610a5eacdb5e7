package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

const (
	startTimeout = 30 * time.Second // bounds the time until a process writes the ready line
	stopTimeout  = 15 * time.Second // above the default of --drain-timeout
	runTimeout   = 30 * time.Second // bounds a command or a call
	pollEvery    = 5 * time.Millisecond
)

var (
	root = filepath.Join("..", "..") // the repository, from the tests' working directory
	bin  string                      // the directory with the built programs
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if bin, err = os.MkdirTemp("", "watchword-e2e-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(bin)
		if left, err = newEvidence(bin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer left.file.Close()
		pgtest.KeepLogs(func(log []byte) { left.keep("PostgreSQL log", "a server", log) })
		return left.judge(pgtest.Main(m)) // every secret is known, and every program has ended
	}())
}

// Each function builds programs at the first call, and returns the first result again at
// later calls.
var (
	buildWatchword = sync.OnceValue(func() error { return build(".", "./cmd/watchword") })
	buildExtAuthz  = sync.OnceValue(func() error { return build(".", "./cmd/watchword-ext-authz") })
	buildNotes     = sync.OnceValue(func() error { return build("examples/notes", "./cmd/notes", "./cmd/notes-client") })
	findGrpcurl    = sync.OnceValues(func() (string, error) {
		pinned, err := filepath.Abs(filepath.Join(root, ".bin", "grpcurl"))
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(pinned); err == nil {
			return pinned, nil
		}
		return filepath.Join(bin, "grpcurl"), build("tools", "github.com/fullstorydev/grpcurl/cmd/grpcurl")
	})
)

func build(dir string, packages ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-buildvcs=false", "-o", bin + string(filepath.Separator)}, packages...)...)
	cmd.Dir = filepath.Join(root, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %v in %s: %w\n%s", packages, dir, err, out)
	}
	return nil
}

// repositoryFile returns the text of a file of the repository, such as docs/tools.md.
func repositoryFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// section returns the text of a document under a heading of the second level.
func section(t *testing.T, document, heading string) string {
	t.Helper()
	_, after, ok := strings.Cut(repositoryFile(t, document), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no heading %q", document, heading)
	}
	under, _, _ := strings.Cut(after, "\n## ")
	return under
}

// freePort returns a port of the loopback address for a program that cannot choose a port itself.
func freePort(t *testing.T) string {
	t.Helper()
	port, err := pgtest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(port)
}

func program(t *testing.T, name string, built func() error) string {
	t.Helper()
	if err := built(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(bin, name)
}

func watchword(t *testing.T) string { t.Helper(); return program(t, "watchword", buildWatchword) }

// environment returns the tests' environment without WATCHWORD_ variables, which would
// change flags, and with the variables in extra.
func environment(extra ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "WATCHWORD_") || strings.HasPrefix(v, "OTEL_") })
	return append(env, extra...)
}

// output collects a process's output and reports each write.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and replaced at each write
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.text.Write(p)
}

func (o *output) read() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String(), o.changed
}

func (o *output) String() string { text, _ := o.read(); return text }

// process is a program that runs until a test stops the program.
type process struct {
	cmd    *exec.Cmd
	stdout string // a file: output from before the ready line is complete when the ready line arrives
	stderr *output
	exited chan struct{} // closed when the program has ended and all output has been read
	killed bool          // whether kill has ended the process
	leave  func()        // called before the first stop; may be nil
}

// start runs a program. The end of the test stops the program, unless the test has done so.
// The exit status must be 0, and the log must hold no secret.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() // the process has a descriptor of its own
	p := &process{cmd: cmd, stdout: file.Name(), stderr: newOutput(), exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = file, p.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // ProcessState has the result
	}()
	t.Cleanup(func() {
		p.stop(t)
		if found := leaks(p.stderr.String()); len(found) > 0 {
			t.Errorf("the log of %s contains secrets: %q", cmd, found)
		}
		left.keep("log", t.Name()+": "+cmd.String(), []byte(p.stderr.String()))
		if t.Failed() {
			t.Logf("log of %s:\n%s", cmd, p.stderr)
		}
	})
	return p
}

// printed returns the process's standard output so far.
func (p *process) printed(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(p.stdout)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

// stop sends SIGTERM, waits for the process's end, and returns the time in between.
func (p *process) stop(t *testing.T) time.Duration {
	t.Helper()
	if p.leave != nil {
		p.leave()
		p.leave = nil
	}
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails if the process has ended
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		t.Errorf("%s did not stop within %v", p.cmd, stopTimeout)
		p.kill()
	}
	took := time.Since(began)
	if code := p.cmd.ProcessState.ExitCode(); code != 0 && !p.killed {
		t.Errorf("%s ended with status %d", p.cmd, code)
	}
	return took
}

// kill ends the process by SIGKILL, like a power cut; but the kernel still writes cached
// files to the disk.
func (p *process) kill() {
	p.killed = true
	_ = p.cmd.Process.Kill() // fails if the process has ended
	<-p.exited
}

func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Error(err)
	}
}

// awaitLog waits for a line on standard error, and returns the line's submatches.
func (p *process) awaitLog(t *testing.T, line *regexp.Regexp) []string {
	t.Helper()
	deadline := time.After(startTimeout)
	for {
		text, changed := p.stderr.read()
		if match := line.FindStringSubmatch(text); match != nil {
			return match
		}
		select {
		case <-changed:
		case <-p.exited:
			t.Fatalf("%s ended before it wrote %v:\n%s", p.cmd, line, p.stderr)
		case <-deadline:
			t.Fatalf("%s did not write %v within %v:\n%s", p.cmd, line, startTimeout, text)
		}
	}
}

var (
	// Matches both values of --log-format.
	readyLine = regexp.MustCompile(`(?m)^.*msg"?[=:]"?ready"?[ ,]"?grpc"?[=:]"?([^\s"]+)"?[ ,]"?http"?[=:]"?([^\s",]+)"?(?:[ ,}].*)?$`)
	adminLine = regexp.MustCompile(`^([a-z2-7]{5}(?:-[a-z2-7]{5}){4})\n$`) // a line with the password alone
	notesLine = regexp.MustCompile(`(?m)^notes: ready on (\S+)$`)
)

// server is a running `watchword serve`.
type server struct {
	*process
	dir      string
	grpcAddr string
	httpAddr string
	admin    string // the password that the first start on a database prints; else empty
}

// database returns the URI of the database in a folder.
func database(dir string) string { return "sqlite:" + filepath.Join(dir, "watchword.db") }

func serveArgs(dir string, args ...string) []string {
	return append([]string{"serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--datastore-uri", database(dir)}, args...)
}

// serve runs a server on the database in a folder, and waits until the server is ready.
func serve(t *testing.T, dir string, args ...string) *server {
	t.Helper()
	return serveCommand(t, dir, exec.Command(watchword(t), serveArgs(dir, args...)...))
}

func serveCommand(t *testing.T, dir string, cmd *exec.Cmd) *server {
	t.Helper()
	s := launch(t, dir, cmd)
	s.await(t)
	return s
}

// launch starts a server without waiting until the server is ready; see [server.await].
func launch(t *testing.T, dir string, cmd *exec.Cmd) *server {
	t.Helper()
	cmd.Env = append(environment(), cmd.Env...)
	if dir != "" {
		t.Cleanup(func() { keepFolder(t, dir) }) // runs after the stop of the server
	}
	s := &server{process: start(t, cmd), dir: dir}
	s.leave = func() {
		s.keepPages(t)
		if dir != "" {
			keepFolder(t, dir) // the folder has the log of the running server
		}
	}
	return s
}

// await waits until the server is ready.
func (s *server) await(t *testing.T) {
	t.Helper()
	ready := s.awaitLog(t, readyLine)
	s.grpcAddr, s.httpAddr = ready[1], ready[2]
	switch out := s.printed(t); {
	case out == "":
	case adminLine.MatchString(out):
		s.admin = noteSecret(adminLine.FindStringSubmatch(out)[1])
	default:
		t.Errorf("standard output is %q, want the admin's password alone, or nothing", out)
	}
}

// serveNotes runs the downstream example against a server, and returns the example's
// address.
func serveNotes(t *testing.T, s *server) string {
	t.Helper()
	return start(t, notesAt(t, s)).awaitLog(t, notesLine)[1]
}

// notesAt returns the command that runs the downstream example against a server.
func notesAt(t *testing.T, s *server) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program(t, "notes", buildNotes), "--addr", "127.0.0.1:0", "--auth-addr", s.grpcAddr)
	cmd.Env = environment()
	return cmd
}

// result holds a command's exit status and output.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("status %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// run runs a command and waits for the command's end.
func run(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(runTimeout, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		t.Errorf("%s did not end within %v", cmd, runTimeout)
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	left.keep("log", t.Name()+": "+cmd.String(), stderr.Bytes())
	if name := filepath.Base(cmd.Path); name == "watchword" && !slices.Contains(cmd.Args, "login") && !slices.Contains(cmd.Args, "serve") {
		left.keep("output", t.Name()+": "+cmd.String(), stdout.Bytes())
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// eventually polls until check returns nil, and returns the time until then. The test ends
// if check still fails after within.
func eventually(t *testing.T, within time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		err := check()
		took := time.Since(began)
		if err == nil && took < within {
			return took
		}
		if took >= within {
			t.Fatalf("%s: still failing after %v: %v", what, within, err)
		}
	}
}

// callCtx returns a context with a deadline for a call.
func callCtx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runTimeout)
	t.Cleanup(cancel)
	return ctx
}
