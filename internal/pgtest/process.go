package pgtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// keeper is a shell script that runs a program for the tests, such as PostgreSQL. The script
// ends the program and removes the program's directory when the tests' process ends, even after
// SIGKILL.
//
// The script's standard input is a pipe from the tests' process. At the end of the pipe,
// the script ends the program and removes the directory; after the line "keep", the
// script leaves the directory. Only the program and the program's children hold
// descriptor 3, an end of a second pipe, so the other end (process.gone) reports when all of
// these processes have ended.
//
// A parent-death signal in place of the script would depend on a single thread, work on Linux
// alone, and leave the directory behind.
const keeper = `
signal=$1 dir=$2
shift 2
ulimit -c 0
"$@" &
pid=$!
exec 3>&-
trap '' HUP INT TERM
read -r word
kill -s "$signal" $pid 2>/dev/null
pkill -CONT -P $pid 2>/dev/null # the children may be frozen; without pkill PostgreSQL takes 5 s
kill -s CONT $pid 2>/dev/null
wait $pid
status=$?
[ "$word" = keep ] || rm -rf "$dir"
exit $status`

// process stands for a program that the tests have started, such as PostgreSQL, and for the
// program's directory.
type process struct {
	shell *exec.Cmd      // runs the script keeper
	hold  io.WriteCloser // keeper's standard input
	gone  *os.File       // reaches its end when the program and all of its children have ended
}

// start starts a program in dir. keeper sends the signal to the program when the tests'
// process ends, or after release or discard. The program's output goes to the file "log"
// in dir.
func start(dir, signal string, env []string, program ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	gone, held, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer held.Close()
	shell := exec.Command("/bin/sh", append([]string{"-c", keeper, "sh", signal, dir}, program...)...)
	shell.Dir = dir
	// The environment leaves out the variables PG… of the tests, which would change what
	// PostgreSQL's programs do.
	shell.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C"}, env...)
	shell.Stdout, shell.Stderr = log, log
	shell.ExtraFiles = []*os.File{held}
	shell.SysProcAttr = attributes()
	hold, err := shell.StdinPipe()
	if err != nil {
		gone.Close()
		return nil, err
	}
	if err := shell.Start(); err != nil {
		gone.Close()
		return nil, fmt.Errorf("starting %s in %s (the unprivileged user must be able to reach the directory): %w", filepath.Base(program[0]), dir, err)
	}
	return &process{shell, hold, gone}, nil
}

// wait waits until the program and all of its children have ended.
func (p *process) wait() error {
	if !p.goneWithin(patience) {
		return fmt.Errorf("the program or a child still runs after %v", patience)
	}
	return nil
}

// goneWithin waits for the end of the program and all children, at most for d. goneWithin
// returns false if a process still runs.
func (p *process) goneWithin(d time.Duration) bool {
	p.gone.SetReadDeadline(time.Now().Add(d))
	_, err := p.gone.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// waitUntil calls ready every 5 ms until ready returns true. Programs send no event when
// they become ready.
//
// Errors: an error if the program ends, or if ready still returns false after patience.
func (p *process) waitUntil(ready func() bool) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if ready() {
			return nil
		}
		if p.goneWithin(5 * time.Millisecond) {
			return errors.New("the program ended before it was ready")
		}
	}
	return fmt.Errorf("the program is not ready after %v", patience)
}

// release ends the program and keeps the program's directory. release returns an error if the
// program's exit status is not 0.
func (p *process) release() error {
	io.WriteString(p.hold, "keep\n")
	return p.end()
}

// keepLog gets the programs' output before a directory is removed; see [KeepLogs].
var keepLog = func(log []byte) {}

// KeepLogs calls keep with the log of each PostgreSQL server, when the server is discarded, so
// that a package can search the logs for secrets after the last test. TestMain calls KeepLogs
// before [Main].
func KeepLogs(keep func(log []byte)) { keepLog = keep }

// discard ends the program and removes the program's directory.
func (p *process) discard() {
	log, _ := os.ReadFile(filepath.Join(p.shell.Dir, "log"))
	keepLog(log)
	p.end()
}

func (p *process) end() error {
	p.hold.Close()
	err := p.shell.Wait()
	p.gone.Close()
	return err
}

// run runs a program in dir and waits for the program's end.
func run(dir string, env []string, program ...string) error {
	p, err := start(dir, "TERM", env, program...)
	if err != nil {
		return err
	}
	if err := errors.Join(p.wait(), p.release()); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(program[0]), err, logOf(dir))
	}
	return nil
}

// logOf returns the last 4096 bytes of the programs' output in dir.
func logOf(dir string) string {
	log, _ := os.ReadFile(filepath.Join(dir, "log"))
	return string(log[max(0, len(log)-4096):])
}

// temporary makes a directory, owned by the unprivileged user if the tests run as root.
func temporary(parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, "pgtest")
	if err != nil {
		return "", err
	}
	if err := handOver(dir); err != nil {
		os.Remove(dir)
		return "", err
	}
	return dir, nil
}

// write writes a file that every user is allowed to read. The directory must come from the
// function temporary, which closes the directory to other users.
func write(dir, name, text string) error {
	path := filepath.Join(dir, name)
	// The umask can take rights away from a new file.
	return errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, 0o644))
}
