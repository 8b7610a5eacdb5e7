package cli

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/terminaltest"
)

// A command shows that it is at work after two seconds, at a terminal alone, and removes the
// line before other text.
func TestProgress(t *testing.T) {
	keyboard, tty := terminaltest.Open(t)
	shown := func() string { // what the terminal shows until now
		fmt.Fprintln(tty, "END")
		text := make([]byte, 4096)
		all := ""
		for !strings.HasSuffix(all, "END\r\n") {
			n, err := keyboard.Read(text)
			if err != nil {
				t.Fatal(err)
			}
			all += string(text[:n])
		}
		return strings.TrimSuffix(all, "END\r\n")
	}
	at := func(takes time.Duration, prints string) {
		synctest.Test(t, func(*testing.T) {
			terminal := Terminal{Err: escaping{tty, new(workLine)}}
			stop := terminal.progress()
			time.Sleep(takes)
			fmt.Fprint(terminal.Err, prints)
			stop()
		})
	}
	const work, clear = "\r\x1b[Kstill at work, for %s; Ctrl-C stops", "\r\x1b[K"
	at(1900*time.Millisecond, "")
	if text := shown(); text != "" {
		t.Errorf("a short command shows %q", text)
	}
	at(3500*time.Millisecond, "done\n")
	if text, want := shown(), fmt.Sprintf(work+work, "2s", "3s")+clear+"done\r\n"; text != want {
		t.Errorf("a long command shows %q, want %q", text, want)
	}
	var log strings.Builder
	synctest.Test(t, func(*testing.T) {
		stop := Terminal{Err: escaping{&log, new(workLine)}}.progress()
		time.Sleep(time.Minute)
		stop()
	})
	if log.Len() > 0 {
		t.Errorf("a log has %q", log.String())
	}
}
