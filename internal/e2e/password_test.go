//go:build unix

package e2e

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/pgtest"
)

// The first admin's password is printed once, goes into a file if one is named,
// and is never lost in silence.
func TestFirstPassword(t *testing.T) {
	t.Run("bare in a pipe", func(t *testing.T) {
		t.Parallel()
		cmd := exec.Command(watchword(t), serveArgs(t.TempDir())...)
		out, log := firstStart(t, cmd)
		if !adminLine.MatchString(out) {
			t.Errorf("a pipe got %q, want the password and nothing else", out)
		}
		if !strings.Contains(log, "the password of the first user, admin, is on standard output") {
			t.Errorf("the log does not say where the password is:\n%s", log)
		}
	})
	t.Run("in a sentence at a terminal", firstPasswordAtTerminal)
	t.Run("in a file", firstPasswordInFile)
	t.Run("a file that exists", passwordFileExists)
	t.Run("a file without its admin", passwordFileIsRemoved)
	t.Run("standard output that takes nothing", firstPasswordLost)
}

// firstStart runs serve, with standard output in a pipe, until it is ready, and
// returns what was printed and logged by then and at the stop.
func firstStart(t *testing.T, cmd *exec.Cmd) (out, logged string) {
	t.Helper()
	printed, log := newOutput(), newOutput()
	cmd.Env, cmd.Stdout, cmd.Stderr = environment(), printed, log // the two outputs are no files, so the process gets a pipe for each
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, stderr: log, exited: make(chan struct{})}
	go func() { defer close(p.exited); _ = cmd.Wait() }()
	defer p.stop(t)
	p.awaitLog(t, readyLine)
	p.stop(t)
	left.keep("log", t.Name(), []byte(log.String()))
	return printed.String(), log.String()
}

func firstPasswordAtTerminal(t *testing.T) {
	t.Parallel()
	serve := append([]string{watchword(t)}, serveArgs(t.TempDir())...)
	log := filepath.Join(t.TempDir(), "log")
	// script runs a command at a terminal of its own, and copies what is shown.
	inner := `"$0" "$@" 2>` + log
	args := []string{"-q", "/dev/null", "sh", "-c", inner}
	if runtime.GOOS == "linux" {
		quoted := make([]string, len(serve))
		for i, arg := range serve {
			quoted[i] = "'" + arg + "'"
		}
		args = []string{"-qec", "exec " + strings.Join(quoted, " ") + " 2>" + log, os.DevNull}
	} else {
		args = append(args, serve...)
	}
	cmd := exec.Command("script", args...)
	shown := newOutput()
	cmd.Env, cmd.Stdout, cmd.Stderr = environment(), shown, shown
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Write([]byte{3}) // Ctrl-C
	var password []string
	eventually(t, startTimeout, "a sentence with the password", func() error {
		password = regexp.MustCompile(`(?s)first user is admin.*only now:\s+([a-z2-7]{5}(?:-[a-z2-7]{5}){4})\s`).FindStringSubmatch(shown.String())
		if password == nil {
			return fs.ErrNotExist
		}
		return nil
	})
	var ready []string
	eventually(t, startTimeout, "the ready line", func() error {
		text, err := os.ReadFile(log)
		left.keep("log", t.Name(), text)
		if ready = readyLine.FindStringSubmatch(string(text)); ready == nil && err == nil {
			err = fs.ErrNotExist
		}
		return err
	})
	dial(t, ready[1]).login(t, "admin", noteSecret(password[1]))
}

func firstPasswordInFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "password")
	s := serve(t, dir, "--initial-password-file", file)
	text, err := os.ReadFile(file)
	if err != nil || !adminLine.Match(text) || s.admin != "" {
		t.Fatalf("the file has %q (%v), standard output %q: want the password in the file alone", text, err, s.printed(t))
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v", info.Mode())
	}
	dial(t, s.grpcAddr).login(t, "admin", noteSecret(strings.TrimSpace(string(text))))
	s.stop(t)

	again := serve(t, dir, "--initial-password-file", file) // a database that had a user needs no file
	if after, _ := os.ReadFile(file); string(after) != string(text) || again.admin != "" {
		t.Error("the second start made a password")
	}
}

func passwordFileExists(t *testing.T) {
	t.Parallel()
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, dir, file+" exists already", "--initial-password-file", file)
	if made, _ := os.ReadDir(dir); len(made) > 0 {
		t.Errorf("it made %v", made)
	}
	// A database may be there without a user.
	wantExit(t, 0, cli(t, dir, "", "migrate", "--datastore-uri", database(dir)))
	refusesToStart(t, dir, file+" exists already", "--initial-password-file", file)
	if text, _ := os.ReadFile(file); string(text) != "mine\n" {
		t.Errorf("the file holds %q now", text)
	}
	// A file that cannot be made leaves no admin behind, so the next start makes one.
	refusesToStart(t, dir, "--initial-password-file", "--initial-password-file", filepath.Join(dir, "no-such-folder", "password"))
	if s := serve(t, dir); s.admin == "" {
		t.Error("an admin was made whose password is lost")
	}
}

// A file is written before the commit, and goes away when nothing was committed:
// here the first start on PostgreSQL names no issuer.
func passwordFileIsRemoved(t *testing.T) {
	t.Parallel()
	dir, uri := t.TempDir(), pgtest.URI(t)
	keepDatabase(t, func() string { return uri })
	key, file := filepath.Join(dir, "master.key"), filepath.Join(dir, "password")
	wantExit(t, 0, cli(t, dir, "", "key", "create-master-key", key))
	command := func(args ...string) *exec.Cmd { // the URI holds a password
		cmd := exec.Command(watchword(t), args...)
		cmd.Dir, cmd.Env = dir, environment("WATCHWORD_DATASTORE_URI="+uri)
		return cmd
	}
	wantExit(t, 0, run(t, command("migrate")))
	args := []string{"serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--master-key-file", key, "--initial-password-file", file}
	r := run(t, command(args...))
	if wantExit(t, 1, r); r.stdout != "" || !strings.Contains(r.stderr, "--issuer") {
		t.Errorf("the first start without an issuer: %v", r)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the password of no user is still there")
	}
	serveCommand(t, dir, command(append(args, "--issuer", "https://auth.example")...))
	if text, err := os.ReadFile(file); err != nil || !adminLine.Match(text) {
		t.Errorf("the next start wrote %q: %v", text, err)
	}
}

// firstPasswordLost starts a server on a new database whose standard output takes no password.
// The start fails before the database has a user, so the next start prints a password. The
// null device is a choice of the operator.
func firstPasswordLost(t *testing.T) {
	t.Parallel()
	command := func(dir, to string) *exec.Cmd {
		cmd := exec.Command("sh", append([]string{"-c", `exec "$0" "$@" ` + to, watchword(t)}, serveArgs(dir)...)...)
		cmd.Env = environment()
		return cmd
	}
	for to, said := range map[string]string{">/dev/full": "", ">&-": "standard output is closed", "1<>/dev/null": "or is the null device, opened for reading too"} {
		if _, err := os.Stat("/dev/full"); err != nil && to == ">/dev/full" {
			continue // only Linux has /proc
		}
		dir := t.TempDir()
		for range 2 {
			r := run(t, command(dir, to))
			if wantExit(t, 1, r); !strings.Contains(r.stderr, said) || !strings.Contains(r.stderr, "the database has no user yet") || strings.Contains(r.stderr, "ready") {
				t.Errorf("%s: got %v, want a refusal that says what to do", to, r)
			}
		}
		s := serve(t, dir)
		dial(t, s.grpcAddr).login(t, "admin", s.admin)
	}
	dir, password := t.TempDir(), newPassword()
	s := serveCommand(t, dir, command(dir, ">/dev/null"))
	if !strings.Contains(s.stderr.String(), "watchword user set-password admin") {
		t.Error("standard output is the null device, and the log does not say what to do")
	}
	wantExit(t, 0, cli(t, dir, password+"\n", "user", "set-password", "admin", "--password-stdin", "--datastore-uri", database(dir)))
	dial(t, s.grpcAddr).login(t, "admin", password)
}
