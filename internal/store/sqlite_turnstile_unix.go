//go:build unix

package store

import (
	"errors"
	"syscall"
	"time"
)

// enter waits for the turn. Who holds it for longer than SQLite itself would wait
// has been stopped, and is not waited for.
func (t *turnstile) enter() {
	for deadline := time.Now().Add(busyTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		err := syscall.Flock(int(t.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// leave passes it on.
func (t *turnstile) leave() { _ = syscall.Flock(int(t.file.Fd()), syscall.LOCK_UN) }
