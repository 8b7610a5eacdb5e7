package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal opens a new terminal: keyboard types there and reads what the terminal shows.
func terminal(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	open := func(path string) *os.File {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		f := os.NewFile(uintptr(fd), path)
		t.Cleanup(func() { f.Close() })
		return f
	}
	keyboard = open("/dev/ptmx")
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return keyboard, open(fmt.Sprintf("/dev/pts/%d", number))
}

// echoes reports whether a terminal shows what is typed.
func echoes(t *testing.T, tty *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

// TestAPromptEnds types Ctrl-C and Ctrl-D at the prompt for a password. The command ends with
// status 130, and the terminal shows again what is typed.
func TestAPromptEnds(t *testing.T) {
	for _, args := range [][]string{{"login", "admin"}, {"user", "set-password", "admin"}} {
		for key, typed := range map[string]string{"Ctrl-C": "\x03", "Ctrl-D": "\x04"} {
			keyboard, tty := terminal(t)
			cmd := exec.Command(watchword(t), args...)
			cmd.Dir, cmd.Env = t.TempDir(), environment()
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true} // so that Ctrl-C is a signal
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = cmd.Wait(); close(ended) }()
			for deadline := time.Now().Add(runTimeout); echoes(t, tty); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("watchword %v asks for no password", args)
				}
			}
			if _, err := keyboard.WriteString(typed); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(runTimeout):
				_ = cmd.Process.Kill()
				t.Fatalf("watchword %v continues after %s", args, key)
			}
			if code := cmd.ProcessState.ExitCode(); code != 130 {
				t.Errorf("watchword %v ended with status %d after %s, want 130", args, code, key)
			}
			if !echoes(t, tty) {
				t.Errorf("watchword %v left the terminal without echo after %s", args, key)
			}
		}
	}
}
