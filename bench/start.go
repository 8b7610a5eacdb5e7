package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// settled is the time from the line "ready" until the memory is read.
const settled = time.Second

// begun holds what was measured of one start of a program. Sizes are in MiB.
type begun struct {
	ready           time.Duration // the time from the exec until the line "ready"
	rss, anon, file float64
}

// starts starts the shipped program on an existing database, and the program bare, in turns.
func starts(b *bench) error {
	folder, err := os.MkdirTemp("", "watchword-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	ours, bare := filepath.Join(folder, "watchword"), filepath.Join(folder, "bare")
	if err := errors.Join(ship(ours, "..", "./cmd/watchword"), ship(bare, ".", "./bare")); err != nil {
		return err
	}
	file := filepath.Join(folder, "watchword.db")
	commands := [][]string{
		{ours, "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--datastore-uri", "sqlite:" + file},
		{bare, file},
	}
	all := make([][]begun, len(commands))
	for turn := range b.of(5, 30) + 1 { // the first turn makes the database, and does not count
		for i := range commands {
			if turn%2 == 1 {
				i = len(commands) - 1 - i
			}
			one, err := startOnce(commands[i])
			if err != nil {
				return fmt.Errorf("%s: %w", filepath.Base(commands[i][0]), err)
			}
			if turn > 0 {
				all[i] = append(all[i], one)
			}
		}
	}
	reportStarts(b, "start/", all[0], atMost(25), atMost(28))
	reportStarts(b, "start/bare/", all[1], limit{}, limit{})
	return nil
}

// ship builds a program of the module in a folder, as the Dockerfile does.
func ship(program, module, pkg string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-tags", "grpcnotrace", "-buildvcs=false", "-ldflags", "-s -w", "-o", program}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// startOnce starts a program, reads its memory a while after the line "ready", and stops the
// program.
func startOnce(args []string) (one begun, err error) {
	began := time.Now()
	p, err := launch(args...)
	if err != nil {
		return begun{}, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if _, err := p.line("msg=ready"); err != nil {
		return begun{}, err
	}
	one = begun{ready: time.Since(began)}
	time.Sleep(settled)
	return one, one.read(p.cmd.Process.Pid)
}

var statusLine = regexp.MustCompile(`(?m)^(VmRSS|RssAnon|RssFile):\s+(\d+) kB$`)

// read reads the memory of a process.
func (s *begun) read(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	into := map[string]*float64{"VmRSS": &s.rss, "RssAnon": &s.anon, "RssFile": &s.file}
	found := statusLine.FindAllSubmatch(text, -1)
	if len(found) != len(into) {
		return fmt.Errorf("/proc tells %d of %d sizes", len(found), len(into))
	}
	for _, m := range found {
		kilobytes, err := strconv.ParseFloat(string(m[2]), 64)
		if err != nil {
			return err
		}
		*into[string(m[1])] = kilobytes / 1024
	}
	return nil
}

// reportStarts reports the starts of one program. Other work of the machine delays some of the
// starts, so the limit is for the fastest start.
func reportStarts(b *bench, name string, all []begun, time, memory limit) {
	sorted := func(of func(begun) float64) []float64 {
		values := make([]float64, len(all))
		for i, one := range all {
			values[i] = of(one)
		}
		slices.Sort(values)
		return values
	}
	middle := len(all) / 2
	ready := sorted(func(s begun) float64 { return milliseconds(s.ready) })
	b.report(name+"ready/min", ready[0], "ms", time)
	b.report(name+"ready/median", ready[middle], "ms", limit{})
	b.report(name+"memory/resident", sorted(func(s begun) float64 { return s.rss })[middle], "MiB", memory)
	b.report(name+"memory/anonymous", sorted(func(s begun) float64 { return s.anon })[middle], "MiB", limit{})
	b.report(name+"memory/of-files", sorted(func(s begun) float64 { return s.file })[middle], "MiB", limit{})
}
