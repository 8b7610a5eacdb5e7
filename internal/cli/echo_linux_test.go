package cli_test

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/cli"
	"github.com/watchword-auth/watchword/internal/terminaltest"
)

// A password that is typed at a terminal is not shown, and afterwards the terminal shows what
// is typed again.
func TestPasswordWithoutEcho(t *testing.T) {
	flags, password, _ := serve(t)
	for name, command := range map[string][]string{
		"login":  append([]string{"login", "admin"}, flags...),
		"create": {"user", "create", "alice", database(t)},
	} {
		keyboard, tty := terminaltest.Open(t)
		if !terminaltest.Echoes(t, tty) {
			t.Fatal("a new terminal has no echo")
		}
		var out output
		status := make(chan int, 1)
		go func() { status <- cli.Main(command, cli.Terminal{In: tty, Out: &out, Err: tty}) }()
		shown := ""
		for prompt := range map[string]int{"login": 1, "create": 2}[name] {
			for deadline := time.Now().Add(time.Minute); terminaltest.Echoes(t, tty); runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatalf("%s: prompt %d is with echo", name, prompt)
				}
			}
			if _, err := io.WriteString(keyboard, password+"\n"); err != nil {
				t.Fatal(err)
			}
			text := make([]byte, 4096)
			for strings.Count(shown, "\n") <= prompt { // the line end after the prompt
				n, err := keyboard.Read(text)
				if err != nil {
					t.Fatal(err)
				}
				shown += string(text[:n])
			}
		}
		if got := <-status; got != 0 {
			t.Errorf("%s: status %d, %s", name, got, shown)
		}
		if strings.Contains(shown, password) || !strings.Contains(shown, "Password: ") {
			t.Errorf("%s: the terminal shows %q", name, strings.ReplaceAll(shown, password, "THE PASSWORD"))
		}
		if !terminaltest.Echoes(t, tty) {
			t.Errorf("%s: the terminal has no echo afterwards", name)
		}
	}
}

// At a terminal, user create says what was made. TestUsers has the id alone, for a script.
func TestUserCreateAtATerminal(t *testing.T) {
	keyboard, tty := terminaltest.Open(t)
	in, err := os.CreateTemp(t.TempDir(), "password")
	if err == nil {
		_, err = in.WriteString("a password of alice\n")
	}
	if err == nil {
		_, err = in.Seek(0, io.SeekStart)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if status := cli.Main([]string{"user", "create", "Alice", "--role=b", "--role=a", database(t)}, cli.Terminal{In: in, Out: tty, Err: tty}); status != 0 {
		t.Errorf("status %d", status)
	}
	text := make([]byte, 4096)
	n, err := keyboard.Read(text)
	if shown := string(text[:n]); err != nil || !strings.HasPrefix(shown, "made the user alice with the roles a, b and the id ") {
		t.Errorf("the terminal shows %q, %v", shown, err)
	}
}

// A pipe as the file of --config is refused: a server would wait for a writer at its start, and
// again at each SIGHUP.
func TestConfigFileIsAPipe(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, 2, "not a regular file", "", "config", "check", "--config", path)
}
