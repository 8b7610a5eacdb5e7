package e2e

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/terminaltest"
)

// TestAPromptEnds types Ctrl-C and Ctrl-D at the prompt for a password. The command ends with
// status 130, and the terminal shows again what is typed.
func TestAPromptEnds(t *testing.T) {
	for _, args := range [][]string{{"login", "admin"}, {"user", "set-password", "admin"}} {
		for key, typed := range map[string]string{"Ctrl-C": "\x03", "Ctrl-D": "\x04"} {
			keyboard, tty := terminaltest.Open(t)
			cmd := exec.Command(watchword(t), args...)
			cmd.Dir, cmd.Env = t.TempDir(), environment()
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true} // with a controlling terminal, Ctrl-C is a signal
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = cmd.Wait(); close(ended) }()
			for deadline := time.Now().Add(runTimeout); terminaltest.Echoes(t, tty); time.Sleep(time.Millisecond) {
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
			if !terminaltest.Echoes(t, tty) {
				t.Errorf("watchword %v left the terminal without echo after %s", args, key)
			}
		}
	}
}
