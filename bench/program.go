package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// program is a running program with its lines of output, standard error included.
type program struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
	read  chan struct{} // set by discard; closed at the end of the output
}

// launch starts a program without the variables of the environment that configure Watchword.
func launch(args ...string) (*program, error) {
	p := &program{cmd: exec.Command(args[0], args[1:]...)}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "WATCHWORD_") && !strings.HasPrefix(v, "OTEL_") {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stderr = p.cmd.Stdout
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	p.lines = bufio.NewScanner(out)
	return p, p.cmd.Start()
}

// line returns the next line of output that contains a text.
func (p *program) line(with string) (string, error) {
	var last string
	for p.lines.Scan() {
		if last = p.lines.Text(); strings.Contains(last, with) {
			return last, nil
		}
	}
	return "", fmt.Errorf("%s: no line with %q, the last line is %q: %w", p.cmd.Path, with, last, cmp.Or(p.lines.Err(), io.EOF))
}

// discard reads the rest of the output in the background, until stop: a server that writes to a
// full pipe waits, and a few hundred logins fill the pipe with their lines of the log.
func (p *program) discard() {
	p.read = make(chan struct{})
	go func() {
		defer close(p.read)
		for p.lines.Scan() {
		}
	}()
}

// stop ends the program, by a signal that lets Watchword stop in order.
func (p *program) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if p.read == nil {
		p.discard()
	}
	<-p.read
	if err := p.cmd.Wait(); err != nil && p.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		return fmt.Errorf("%s: %w", p.cmd.Path, err)
	}
	return nil
}

// settle waits until the chores that follow the start of a server are done: the server looks
// for sessions to delete within 30 seconds, and reads the whole table.
func (p *program) settle() error {
	const first, looks, idle = 31 * time.Second, time.Second, 2 * tick
	time.Sleep(first)
	for last := time.Duration(-looks); ; {
		used, err := processorTime(p.cmd.Process.Pid, false)
		if err != nil || last >= 0 && used-last <= idle {
			return err
		}
		last = used
		time.Sleep(looks)
	}
}

// parentOf returns the id of the parent of a process.
func parentOf(pid int) (int, error) {
	fields, err := statOf(pid)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(fields[1])
}

// statOf returns the fields of /proc/PID/stat behind the name of the process.
func statOf(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	// The name is in parentheses, and may contain spaces.
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])), nil
}

// tick is the unit of the times in /proc.
const tick = time.Second / 100

// processorTime returns the processor time that a process has used. With children, the time of
// the process's children counts too, of those that have ended as well.
func processorTime(pid int, children bool) (time.Duration, error) {
	fields, err := statOf(pid)
	if err != nil {
		return 0, err
	}
	const user, endedChildrenSystem = 11, 14
	counted := fields[user : endedChildrenSystem-1]
	if children {
		counted = fields[user : endedChildrenSystem+1]
	}
	var sum time.Duration
	for _, field := range counted {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	if !children {
		return sum, nil
	}
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0, err
	}
	for _, field := range strings.Fields(string(list)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		used, err := processorTime(child, false)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // the child has ended
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// pageFaults returns how many pages of memory a process has got from the operating system, without a
// reading of a disk.
func pageFaults(pid int) (int, error) {
	fields, err := statOf(pid)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(fields[7])
}

// diskBytes returns how many bytes a process has caused to be written to a disk.
func diskBytes(pid int) (n int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "write_bytes: %d", &n); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("no write_bytes in %s", text)
}

// profiling is the main function of Watchword. Each signal SIGUSR1 ends a profile of the
// processor time, and begins the next profile.
const profiling = `package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"

	"github.com/watchword-auth/watchword/internal/cli"
)

func main() {
	next := make(chan os.Signal, 1)
	signal.Notify(next, syscall.SIGUSR1)
	go func() {
		for n := 1; ; n++ {
			<-next
			pprof.StopCPUProfile()
			file, err := os.Create(fmt.Sprintf(%q, n))
			if err == nil {
				err = pprof.StartCPUProfile(file)
			}
			if err != nil {
				panic(err)
			}
		}
	}()
	code := cli.Main(os.Args[1:], cli.Terminal{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	pprof.StopCPUProfile()
	os.Exit(code)
}
`

// nextProfile ends the profile of a server that shipProfiled has built, and begins the next profile.
// Without the flag -profiles, nextProfile does nothing.
func (b *bench) nextProfile(server *program) error {
	if b.profiles == "" {
		return nil
	}
	return server.cmd.Process.Signal(syscall.SIGUSR1)
}

// shipProfiled builds the server. If the flag -profiles is given, the server writes the profiles
// NAME-1.pprof, NAME-2.pprof and so on.
func (b *bench) shipProfiled(program, name string) error {
	const pkg = "./cmd/watchword"
	if b.profiles == "" {
		return ship(program, "..", pkg)
	}
	profiles, err1 := filepath.Abs(filepath.Join(b.profiles, name+"-%d.pprof"))
	main, err2 := filepath.Abs(filepath.Join("..", pkg, "main.go"))
	source, overlay := program+".go", program+".json"
	list, err3 := json.Marshal(map[string]any{"Replace": map[string]string{main: source}})
	err := errors.Join(err1, err2, err3, os.MkdirAll(b.profiles, 0o700),
		os.WriteFile(source, fmt.Appendf(nil, profiling, profiles), 0o600), os.WriteFile(overlay, list, 0o600))
	if err != nil {
		return err
	}
	return ship(program, "..", pkg, "-overlay", overlay)
}
