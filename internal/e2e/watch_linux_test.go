package e2e

import (
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/authn"
	"github.com/watchword-auth/watchword/internal/terminaltest"
)

// TestWatchersRedraw shows the watchers at a terminal: the list is drawn again in place, what a
// watcher says of itself moves no cursor, and Ctrl-C ends the command.
func TestWatchersRedraw(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	v, err := authn.NewVerifier(callCtx(t), c.conn, authn.WithAudience("internal"), authn.WithName("evil\x1b[2J"))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	keyboard, tty := terminaltest.Open(t)
	token := c.login(t, "admin", s.admin, "watchword").GetAccessToken()
	cmd := cliCommand(t, t.TempDir(), token, "watchers", "--watch", "--plaintext", "--token-stdin", "--addr", s.grpcAddr)
	cmd.Stdout, cmd.Stderr = tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	var mu sync.Mutex
	var shown strings.Builder
	go func() { // copies the output until the terminal is closed
		buffer := make([]byte, 4096)
		for {
			n, err := keyboard.Read(buffer)
			mu.Lock()
			shown.Write(buffer[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	text := func() string {
		mu.Lock()
		defer mu.Unlock()
		return shown.String()
	}
	for began := time.Now(); strings.Count(text(), "\x1b[H") < 3 || !strings.Contains(text(), `evil\u001b[2J`); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > runTimeout {
			_ = cmd.Process.Kill()
			t.Fatalf("the terminal shows %q", text())
		}
	}
	if _, err := keyboard.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(runTimeout):
		_ = cmd.Process.Kill()
		t.Fatal("the command continues after Ctrl-C")
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the command ended with status %d after Ctrl-C", code)
	}
	if strings.Contains(text(), "\x1b[2J") || strings.Contains(text(), "still at work") {
		t.Errorf("the terminal shows %q", text())
	}
}
