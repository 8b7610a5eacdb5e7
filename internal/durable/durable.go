// Package durable writes files of mode 0600 that survive a crash: a reader gets the
// whole file or no file, and the file is on disk when the call returns.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// suffix ends the names of drafts. A draft is a file under construction, in the folder
// of the final file.
const suffix = ".tmp"

// Replace writes a new file at path, and replaces an old file. fill writes the content
// into a draft in the same folder; the draft is then renamed to path. If fill or a
// later step fails, the old file stays and the draft is removed.
func Replace(path string, fill func(*os.File) error) error {
	return write(path, fill, os.Rename)
}

// Create is like [Replace], and fails if a file exists at path.
//
// Errors: fs.ErrExist.
func Create(path string, fill func(*os.File) error) error {
	if _, err := os.Lstat(path); err == nil { // fails before fill does its work
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	return write(path, fill, func(draft, path string) error {
		// A rename would replace a file made since the check above; a link fails.
		err := os.Link(draft, path)
		if err == nil || errors.Is(err, fs.ErrExist) {
			return err
		}
		return os.Rename(draft, path) // a file system without links
	})
}

func write(path string, fill func(*os.File) error, publish func(draft, path string) error) error {
	folder := filepath.Dir(path)
	// Each draft has a new name, since two processes may write at once. CreateTemp makes
	// files with mode 0600, but the umask may remove bits.
	draft, err := os.CreateTemp(folder, prefix(path)+"*"+suffix)
	if err != nil {
		return err
	}
	defer os.Remove(draft.Name()) // does nothing after a rename
	defer draft.Close()
	if err := draft.Chmod(0o600); err != nil {
		return err
	}
	if err := fill(draft); err != nil {
		return fmt.Errorf("writing %s: %w", draft.Name(), err)
	}
	if err := errors.Join(draft.Sync(), draft.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", draft.Name(), err)
	}
	if err := publish(draft.Name(), path); err != nil {
		return err
	}
	return syncFolder(folder)
}

// prefix returns the beginning of the names of a path's drafts.
func prefix(path string) string { return "." + filepath.Base(path) + "." }

// RemoveDrafts removes the drafts of path older than age: a process that is killed
// during a write leaves its draft behind. RemoveDrafts ignores errors.
func RemoveDrafts(path string, age time.Duration) {
	folder := filepath.Dir(path)
	entries, _ := os.ReadDir(folder) // after an error, the entries read so far
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix(path)) || !strings.HasSuffix(e.Name(), suffix) || !e.Type().IsRegular() {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > age {
			os.Remove(filepath.Join(folder, e.Name()))
		}
	}
}

// Rename renames a file within a folder, and replaces a file at the new name. When
// Rename returns, the new name survives a crash.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(to))
}

// syncFolder writes the names in a folder to disk, on every system except Windows,
// which cannot do so.
func syncFolder(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}
