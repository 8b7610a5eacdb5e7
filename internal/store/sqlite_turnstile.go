package store

import "os"

// A turnstile keeps processes that write to one file from starving each other.
// SQLite lets whoever waits for its lock ask again every so often, and a busy
// server gives it back for microseconds only: a command beside it would ask in
// vain. So whoever waits for the lock holds the turnstile, and the next one waits
// there. Within this process one goroutine writes, and has no need of it.
//
// It is an advisory lock on a file beside the database. Where there is none, as
// on some network file systems, writers go on without.
type turnstile struct{ file *os.File }

func openTurnstile(path string) (*turnstile, error) {
	file, err := os.OpenFile(path+"-turn", os.O_RDWR|os.O_CREATE, 0o600)
	return &turnstile{file}, err
}

func (t *turnstile) close() error { return t.file.Close() }
