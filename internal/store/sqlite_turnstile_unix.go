//go:build unix

package store

import (
	"errors"
	"syscall"
	"time"
)

// enter waits for the turnstile, and continues without the turnstile after busyTimeout. A
// process that holds the turnstile longer was stopped or has frozen, since SQLite itself waits
// no longer than busyTimeout for the write lock.
func (t *turnstile) enter() {
	if t.file == nil {
		return
	}
	for deadline := time.Now().Add(busyTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		err := syscall.Flock(int(t.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// leave releases the turnstile for the next process.
func (t *turnstile) leave() {
	if t.file != nil {
		_ = syscall.Flock(int(t.file.Fd()), syscall.LOCK_UN)
	}
}
