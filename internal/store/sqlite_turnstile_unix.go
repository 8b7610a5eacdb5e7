//go:build unix

package store

import (
	"errors"
	"syscall"
	"time"
)

// enter waits for the turnstile, for busyTimeout at most: a process holding the
// turnstile longer than SQLite waits for the lock has been stopped.
func (t *turnstile) enter() {
	for deadline := time.Now().Add(busyTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		err := syscall.Flock(int(t.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// leave lets the next process enter.
func (t *turnstile) leave() { _ = syscall.Flock(int(t.file.Fd()), syscall.LOCK_UN) }
