package store

import (
	"errors"
	"io/fs"
	"os"

	"github.com/watchword-auth/watchword/internal/durable"
)

// turnstile keeps one process from starving another at SQLite's write lock.
//
// SQLite tries for the write lock from time to time, and a busy server releases the
// lock for microseconds only. So a command beside the server would nearly always try
// too late. With the turnstile, a process waits for SQLite's write lock only while it holds
// the turnstile, and the next process waits for the turnstile. Within a process only
// one goroutine writes, so a lock between processes is enough.
//
// The turnstile is an advisory lock on a file beside the database. On a network file system
// without advisory locks, writers continue without the turnstile. Writers also continue without
// a turnstile if the file cannot be opened.
type turnstile struct{ file *os.File } // nil if the file cannot be opened

// openTurnstile opens the turnstile of the database at path. If root creates the turnstile's
// file, the file gets the owner of the database file.
func openTurnstile(path string) *turnstile {
	name := path + "-turn"
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case err == nil:
		_ = durable.Adopt(file, path) // the error is ignored: if the owner of the database cannot open the file, the owner continues without the turnstile
	case errors.Is(err, fs.ErrExist):
		file, err = os.OpenFile(name, os.O_RDWR, 0)
	}
	if err != nil {
		return &turnstile{}
	}
	return &turnstile{file}
}

func (t *turnstile) close() error {
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}
