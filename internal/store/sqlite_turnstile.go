package store

import "os"

// turnstile keeps processes from starving each other at SQLite's write lock.
//
// SQLite polls for the lock, and a busy server releases the lock for microseconds
// only: the poll of a command beside the server would nearly always come too late. So
// a process waits for the lock while holding the turnstile, and the next process
// waits for the turnstile. Within a process only one goroutine writes.
//
// The turnstile is an advisory lock on a file beside the database. On a file system
// without such locks, as some network file systems are, writers go on without.
type turnstile struct{ file *os.File }

func openTurnstile(path string) (*turnstile, error) {
	file, err := os.OpenFile(path+"-turn", os.O_RDWR|os.O_CREATE, 0o600)
	return &turnstile{file}, err
}

func (t *turnstile) close() error { return t.file.Close() }
