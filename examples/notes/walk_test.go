package notes

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A walk runs the commands of the README as processes, at other addresses than in the README.
type walk struct {
	bin      string              // folder of the programs
	env      []string            // the environment of every process
	more     map[string][]string // further arguments by program
	password string              // the password of admin, for the standard input
	unseen   string              // the part of the README after the last command
}

// TestWalk makes the walk of the section "Call search on behalf of a user". The test takes each
// command from the README, and fails if the README has the commands in another order or form.
func TestWalk(t *testing.T) {
	w := newWalk(t)
	w.env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "WATCHWORD_") || strings.HasPrefix(v, "OTEL_") })
	w.env = append(w.env, "HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir())
	platform := filepath.Join(t.TempDir(), "platform")
	const anyPort = "127.0.0.1:0"

	w.next(t, `make run ARGS="--audience internal --audience search"`)
	server := w.start(t, t.TempDir(), "watchword", "serve", "--audience", "internal", "--audience", "search", "--grpc-addr", anyPort, "--http-addr", anyPort)
	w.password = server.line(t, "^([^ ]+)$")
	ready := strings.Fields(server.line(t, `msg=ready grpc=(\S+ http=\S+)`))
	grpcAddr, httpAddr := ready[0], strings.TrimPrefix(ready[1], "http=")
	w.env = append(w.env, "WATCHWORD_ADDR="+grpcAddr, "WATCHWORD_PLAINTEXT=true")
	w.more = map[string][]string{
		"issuer": {"--dir", platform, "--audience", "http://" + httpAddr},
		"search": {"--addr", anyPort, "--auth-addr", grpcAddr},
		"notes":  {"--addr", anyPort, "--auth-addr", grpcAddr},
	}
	readme := strings.NewReplacer("examples/notes/platform", platform, "platform/token", platform+"/token")
	for _, line := range []string{
		".bin/watchword login admin --audience watchword",
		".bin/watchword service create notes --audience internal --delegates-to search",
		"(cd examples/notes && go run -v ./cmd/issuer)",
		".bin/watchword issuer add laptop --issuer https://laptop.example --jwks-file examples/notes/platform/jwks.json",
		".bin/watchword service bind notes --issuer laptop --subject notes",
	} {
		w.run(t, readme.Replace(w.next(t, line)))
	}
	serve := func(line string, address *strings.Replacer) (p *process, addr string) {
		t.Helper()
		args := w.args(address.Replace(readme.Replace(w.next(t, line))))
		p = w.start(t, t.TempDir(), args[0], args[1:]...)
		return p, p.line(t, `ready on (\S+)`)
	}
	search, searchAddr := serve("go run -v ./cmd/search --show-revocations", strings.NewReplacer())
	notes, notesAddr := serve("go run -v ./cmd/notes --show-revocations --search-addr 127.0.0.1:50062 --assertion-file platform/token",
		strings.NewReplacer("127.0.0.1:50062", searchAddr))
	w.more["notes-client"] = []string{"--addr", notesAddr, "--auth-addr", grpcAddr}
	client := w.next(t, "go run -v ./cmd/notes-client --username admin")
	out := w.atTerminal(t, client)

	// The README shows what the programs print, but for the time.
	times := regexp.MustCompile(`[0-9.]+[mµ]?s after`)
	for _, want := range []string{
		`search the notes: ok, 1 found; search was called for "admin" by "notes"`,
		"list notes after the logout: refused with TOKEN_REVOKED, 5.9ms after the logout",
	} {
		w.next(t, want)
		if !slices.Contains(strings.Split(times.ReplaceAllString(out, "5.9ms after"), "\n"), want) {
			t.Errorf("the client does not print %q:\n%s", want, out)
		}
	}
	for p, line := range map[*process]string{
		notes:  `notes: the token of "admin" is refused from now on: TOKEN_REVOKED`,
		search: `search: the token of "admin", shown by "notes", is refused from now on: TOKEN_REVOKED`,
	} {
		if !strings.Contains(w.unseen, "\n    "+line+"\n") {
			t.Errorf("the README does not show %q", line)
		}
		p.line(t, "^"+regexp.QuoteMeta(line)+"$")
	}

	// After a change of the account's rights, notes renews its own token.
	w.run(t, ".bin/watchword service set notes --role reader")
	if out := w.run(t, client); !strings.Contains(out, "search the notes: ok, 2 found") {
		t.Errorf("after a change of rights:\n%s", out)
	}
	if disable := ".bin/watchword service disable notes"; !strings.Contains(w.unseen, disable) {
		t.Errorf("the README does not show %s", disable)
	}
	w.run(t, ".bin/watchword service disable notes")
	if out, err := w.command(t, client).CombinedOutput(); err == nil || !strings.Contains(string(out), "search the notes: rpc error") {
		t.Errorf("with a disabled account: %v\n%s", err, out)
	}
}

// newWalk builds the programs, and reads the README.
func newWalk(t *testing.T) *walk {
	t.Helper()
	w := &walk{bin: t.TempDir()}
	build := func(folder, packages string) {
		cmd := exec.Command("go", "build", "-o", w.bin, packages)
		cmd.Dir = folder
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	build(".", "./cmd/...")
	build("../..", "./cmd/watchword") // the module of Watchword names what the server is built from
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var found bool
	if _, w.unseen, found = strings.Cut(string(text), "\n## Call search on behalf of a user\n"); !found {
		t.Fatal("the README has no walk")
	}
	w.unseen, _, _ = strings.Cut(w.unseen, "\n## ")
	return w
}

// next checks that the README has the line after the lines before, and returns the line.
func (w *walk) next(t *testing.T, line string) string {
	t.Helper()
	_, after, found := strings.Cut(w.unseen, "\n    "+line+"\n")
	if !found {
		t.Fatalf("the README does not have this line, or not in this order: %s", line)
	}
	w.unseen = "\n" + after
	return line
}

// args returns the program and the arguments of a command line of the README.
func (w *walk) args(line string) []string {
	line = strings.TrimSuffix(strings.TrimPrefix(line, "(cd examples/notes && "), ")")
	args := strings.Fields(strings.TrimPrefix(strings.TrimPrefix(line, "go run -v ./cmd/"), ".bin/"))
	return append(args, w.more[args[0]]...)
}

// run runs a command to its end, and returns the output.
func (w *walk) run(t *testing.T, line string) string {
	t.Helper()
	out, err := w.command(t, line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// atTerminal runs a command at a terminal, which the program script makes, and types the password
// when the command asks for it. The password must not be seen.
func (w *walk) atTerminal(t *testing.T, line string) string {
	t.Helper()
	if runtime.GOOS != "linux" { // the flags of script differ
		return w.run(t, line)
	}
	args := w.args(line)
	args[0] = filepath.Join(w.bin, args[0])
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "script", "-qec", strings.Join(args, " "), os.DevNull)
	cmd.Env = w.env
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		writer.Close()
	}()
	var seen bytes.Buffer
	for !strings.HasSuffix(seen.String(), "Password of admin: ") {
		if _, err := io.CopyN(&seen, reader, 1); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, seen.String())
		}
	}
	if _, err := io.WriteString(stdin, w.password+"\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(&seen, reader); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || strings.Contains(seen.String(), w.password) {
		t.Errorf("%s: %v, and the password is not to be seen in:\n%s", line, err, seen.String())
	}
	return strings.ReplaceAll(seen.String(), "\r\n", "\n")
}

// command returns the process of a command line, which gets the password of admin.
func (w *walk) command(t *testing.T, line string) *exec.Cmd {
	args := w.args(line)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, args[0]), args[1:]...)
	cmd.Env, cmd.Stdin = w.env, strings.NewReader(w.password+"\n")
	return cmd
}

// A process is a server of the walk, which prints lines.
type process struct {
	name  string
	lines chan string
}

// start starts a server in a folder, until the end of the test.
func (w *walk) start(t *testing.T, dir, program string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(filepath.Join(w.bin, program), args...)
	cmd.Dir, cmd.Env = dir, w.env
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{program, make(chan string, 1000)}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(reader); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", program, err)
		}
		writer.Close()
	})
	return p
}

// line waits for a line that matches the pattern, and returns the part in parentheses.
func (p *process) line(t *testing.T, pattern string) string {
	t.Helper()
	match, late := regexp.MustCompile(pattern), time.After(time.Minute)
	var seen bytes.Buffer
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("%s ended before the line %s:\n%s", p.name, pattern, seen.String())
			}
			if found := match.FindStringSubmatch(line); found != nil {
				return found[len(found)-1]
			}
			seen.WriteString(line + "\n")
		case <-late:
			t.Fatalf("%s has no line %s:\n%s", p.name, pattern, seen.String())
		}
	}
}
