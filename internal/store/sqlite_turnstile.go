package store

import "os"

// turnstile keeps one process from starving another at SQLite's write lock.
//
// SQLite tries for the write lock from time to time, and a busy server releases the
// lock for microseconds only. So a command beside the server would nearly always try
// too late. With the turnstile, a process waits for SQLite's lock only while it holds
// the turnstile, and the next process waits for the turnstile. Within a process only
// one goroutine writes.
//
// The turnstile is an advisory lock on a file beside the database. Some network file
// systems have no such locks; there, writers continue without the turnstile.
type turnstile struct{ file *os.File }

func openTurnstile(path string) (*turnstile, error) {
	file, err := os.OpenFile(path+"-turn", os.O_RDWR|os.O_CREATE, 0o600)
	return &turnstile{file}, err
}

func (t *turnstile) close() error { return t.file.Close() }
