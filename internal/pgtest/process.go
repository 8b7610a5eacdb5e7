package pgtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// keeper stands between us and a program, so that the program and its
// directory go when we do. A parent-death signal would hang on one thread of
// ours, know only Linux, and leave the directory. The shell's standard input is
// a pipe from us: one line lets go of the directory, and its end, which comes
// with our own however that comes, removes it. The program alone and its
// children hold descriptor 3, so that its other end tells when all are gone.
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
pkill -CONT -P $pid 2>/dev/null # it may be frozen; without pkill PostgreSQL takes 5 s
kill -s CONT $pid 2>/dev/null
wait $pid
status=$?
[ "$word" = keep ] || rm -rf "$dir"
exit $status`

// process is a program in a directory of its own.
type process struct {
	shell *exec.Cmd
	hold  io.WriteCloser
	gone  *os.File
}

// start starts a program in dir. It ends by the signal when we end or let go.
// What it says goes to the file "log" there.
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
	// None of the PG… variables of whoever runs the tests.
	shell.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C"}, env...)
	shell.Stdout, shell.Stderr = log, log
	shell.ExtraFiles = []*os.File{held}
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: unprivileged()}
	hold, err := shell.StdinPipe()
	if err != nil {
		gone.Close()
		return nil, err
	}
	if err := shell.Start(); err != nil {
		gone.Close()
		return nil, fmt.Errorf("starting %s in %s, which its user must be able to reach: %w", filepath.Base(program[0]), dir, err)
	}
	return &process{shell, hold, gone}, nil
}

// wait waits until the program and all of its children are gone.
func (p *process) wait() error {
	if !p.goneWithin(patience) {
		return fmt.Errorf("some of it is still there after %v", patience)
	}
	return nil
}

// goneWithin waits, and no longer than that, and says whether all are gone.
func (p *process) goneWithin(d time.Duration) bool {
	p.gone.SetReadDeadline(time.Now().Add(d))
	_, err := p.gone.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// until waits until the program is ready, or no longer there. Nothing tells of
// readiness, so it is asked again and again.
func (p *process) until(ready func() bool) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if ready() {
			return nil
		}
		if p.goneWithin(5 * time.Millisecond) {
			return errors.New("it ended at once")
		}
	}
	return fmt.Errorf("it is not ready after %v", patience)
}

// release ends the program, leaves its directory alone, and returns how the
// program ended.
func (p *process) release() error {
	io.WriteString(p.hold, "keep\n")
	return p.end()
}

// discard ends the program and removes its directory.
func (p *process) discard() { p.end() }

func (p *process) end() error {
	p.hold.Close()
	err := p.shell.Wait()
	p.gone.Close()
	return err
}

// run runs a program in dir to its end.
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

// logOf returns the end of what programs said in dir.
func logOf(dir string) string {
	log, _ := os.ReadFile(filepath.Join(dir, "log"))
	return string(log[max(0, len(log)-4096):])
}

// temporary makes a directory that the unprivileged user owns.
func temporary(parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, "pgtest")
	if err != nil {
		return "", err
	}
	if c := unprivileged(); c != nil {
		if err := os.Chown(dir, int(c.Uid), int(c.Gid)); err != nil {
			os.Remove(dir)
			return "", err
		}
	}
	return dir, nil
}

// memory is where Linux keeps files in memory. A database is some 300 files,
// which cost a virtual disk up to ten times as much. TMPDIR goes before it, and
// so does the disk where there is little room, as in a container by default.
func memory() string {
	const dir, enough = "/dev/shm", 2 << 30
	var fs syscall.Statfs_t
	if os.Getenv("TMPDIR") != "" || syscall.Statfs(dir, &fs) != nil || fs.Bavail*uint64(fs.Bsize) < enough {
		return os.TempDir()
	}
	return dir
}

// write writes a file into a directory of temporary, which is closed to others.
func write(dir, name, text string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
}

// unprivileged is who the programs run as: PostgreSQL and PgBouncer refuse to
// be root. It is nil for whoever is not root.
func unprivileged() *syscall.Credential {
	if os.Getuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	return &syscall.Credential{Uid: 65534, Gid: 65534}
}
