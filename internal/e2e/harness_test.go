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
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

const (
	startTimeout = 30 * time.Second // for a process to say that it is ready
	stopTimeout  = 15 * time.Second // above the default of --drain-timeout
	runTimeout   = 30 * time.Second // for a command that ends by itself
	pollEvery    = 5 * time.Millisecond
)

var (
	root = filepath.Join("..", "..") // of the repository, from the tests' working directory
	bin  string                      // where the programs are built
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if bin, err = os.MkdirTemp("", "watchword-e2e-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(bin)
		return pgtest.Main(m)
	}())
}

// The programs, each built once, by the first test that needs it.
var (
	buildWatchword = sync.OnceValue(func() error { return build(".", "./cmd/watchword") })
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

func program(t *testing.T, name string, built func() error) string {
	t.Helper()
	if err := built(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(bin, name)
}

func watchword(t *testing.T) string { t.Helper(); return program(t, "watchword", buildWatchword) }

// environment is ours, less what would set a flag behind a test's back.
func environment(extra ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "WATCHWORD_") })
	return append(env, extra...)
}

// secrets are every password, token and key that any test has used. No process
// may log one, and no watchword process may be given one as an argument.
var secrets = struct {
	sync.Mutex
	tails map[string]bool
}{tails: map[string]bool{}}

// tailLength is how many bytes of a secret are looked for: a tail gives a token
// away as well as the whole does.
const tailLength = 20

// secret notes a secret and returns it.
func secret(s string) string {
	secrets.Lock()
	defer secrets.Unlock()
	if s != "" {
		secrets.tails[s[max(0, len(s)-tailLength):]] = true
	}
	return s
}

// leaks returns the secrets that stand in a text. There are thousands of them,
// so it looks each piece of the text up rather than each secret.
func leaks(text string) (found []string) {
	secrets.Lock()
	defer secrets.Unlock()
	for i := range max(0, len(text)-tailLength+1) {
		if piece := text[i : i+tailLength]; secrets.tails[piece] {
			found = append(found, piece)
		}
	}
	for tail := range secrets.tails {
		if len(tail) < tailLength && strings.Contains(text, tail) {
			found = append(found, tail)
		}
	}
	return found
}

// output is what a process writes, while it writes it.
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

// process is a program that runs until it is told to stop.
type process struct {
	cmd    *exec.Cmd
	stdout string // a file, so that what was written before the ready line is there when that is
	stderr *output
	exited chan struct{} // closed when it has ended and all that it wrote is here
	killed bool          // by us, with SIGKILL
}

// start runs a program. It is stopped when the test ends, unless it has been
// before; then its status must be 0 and its log must hold no secret.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() // the process has its own
	p := &process{cmd: cmd, stdout: file.Name(), stderr: newOutput(), exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = file, p.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // ProcessState says it all
	}()
	t.Cleanup(func() {
		p.stop(t)
		if found := leaks(p.stderr.String()); len(found) > 0 {
			t.Errorf("the log of %s holds secrets: %q", cmd, found)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", cmd, p.stderr)
		}
	})
	return p
}

// printed is what the process has written to standard output.
func (p *process) printed(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(p.stdout)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

// stop asks the process to end, waits for it, and returns how long it took.
func (p *process) stop(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails where it has ended
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

// kill ends the process as a power cut would, but for the disk's cache.
func (p *process) kill() {
	p.killed = true
	_ = p.cmd.Process.Kill() // fails where it has ended
	<-p.exited
}

func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Error(err)
	}
}

// awaitLog waits for a line on standard error and returns its submatches.
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
	// In either --log-format.
	readyLine = regexp.MustCompile(`(?m)^.*msg"?[=:]"?ready"?[ ,]"?grpc"?[=:]"?([^\s"]+)"?[ ,]"?http"?[=:]"?([^\s"]+)"?}?$`)
	adminLine = regexp.MustCompile(`^([a-z2-7]{5}(?:-[a-z2-7]{5}){4})\n$`) // the password and nothing else
	notesLine = regexp.MustCompile(`(?m)^notes: ready on (\S+)$`)
)

// server is a running `watchword serve`.
type server struct {
	*process
	dir      string
	grpcAddr string
	httpAddr string
	admin    string // the password that its first start printed; else empty
}

// database is the URI of the database in a folder.
func database(dir string) string { return "sqlite:" + filepath.Join(dir, "watchword.db") }

func serveArgs(dir string, args ...string) []string {
	return append([]string{"serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--datastore-uri", database(dir)}, args...)
}

// serve runs a server on the database in a folder, and waits until it is ready.
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

// launch starts a server, and await waits until it is ready.
func launch(t *testing.T, dir string, cmd *exec.Cmd) *server {
	t.Helper()
	cmd.Env = append(environment(), cmd.Env...)
	return &server{process: start(t, cmd), dir: dir}
}

func (s *server) await(t *testing.T) {
	t.Helper()
	ready := s.awaitLog(t, readyLine)
	s.grpcAddr, s.httpAddr = ready[1], ready[2]
	switch out := s.printed(t); {
	case out == "":
	case adminLine.MatchString(out):
		s.admin = secret(adminLine.FindStringSubmatch(out)[1])
	default:
		t.Errorf("standard output is %q: it must carry the admin's password and nothing else", out)
	}
}

// serveNotes runs the downstream example against a server, and returns its address.
func serveNotes(t *testing.T, s *server) string {
	t.Helper()
	cmd := exec.Command(program(t, "notes", buildNotes), "--addr", "127.0.0.1:0", "--auth-addr", s.grpcAddr)
	cmd.Env = environment()
	return start(t, cmd).awaitLog(t, notesLine)[1]
}

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("status %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// run runs a command to its end.
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
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// eventually polls until check returns nil, and returns how long that took.
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
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}

// soon bounds a call.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runTimeout)
	t.Cleanup(cancel)
	return ctx
}
