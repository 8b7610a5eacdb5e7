package cli

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// quiet is the time after which a command shows on standard error that the command is still at
// work.
const quiet = 2 * time.Second

// workLine is the line on a terminal that shows that a command is at work. The zero value and
// nil show no line. A workLine is safe for concurrent use.
type workLine struct {
	mu    sync.Mutex
	shown *os.File // nil: no line is shown
}

func (l *workLine) show(f *os.File, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprint(f, "\r\x1b[K"+text)
	l.shown = f
}

// remove removes the line from the terminal, if the line is shown, so that other text can be
// written.
func (l *workLine) remove() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shown != nil {
		fmt.Fprint(l.shown, "\r\x1b[K")
		l.shown = nil
	}
}

// progress shows on standard error that a command is at work, each second after the time
// quiet, if standard error is a terminal. Call the returned function at the end of the work.
func (t Terminal) progress() (stop func()) {
	e, ok := t.Err.(escaping)
	if !ok {
		return func() {}
	}
	f, ok := e.to.(*os.File) // an escaping would escape the return to the begin of the line
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func() {}
	}
	began, ended := time.Now(), make(chan struct{})
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for next := quiet; ; next = time.Second {
			select {
			case <-ended:
				e.line.remove()
				return
			case <-time.After(next):
				e.line.show(f, fmt.Sprintf("still at work, for %s; Ctrl-C stops", time.Since(began).Round(time.Second)))
			}
		}
	})
	return sync.OnceFunc(func() {
		close(ended)
		tasks.Wait()
	})
}
