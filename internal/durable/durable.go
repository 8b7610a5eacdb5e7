// Package durable writes files of mode 0600 that survive a crash: a reader of such a file gets
// the whole file or no file, and the file is on disk when the function that writes the file
// returns. Package durable also reads small files, and checks which other users are allowed to
// read or write a file.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// suffix ends the names of drafts. A draft is a file that is still being written, in the folder
// of the final file.
const suffix = ".tmp"

// Read returns the content of a regular file of up to most bytes. Read refuses a pipe without
// opening the pipe, because the opening would wait for a writer.
//
// Errors: errors of [os.Open]; an error that names the file if the file is larger or no regular
// file. No error repeats a part of the content.
func Read(path string, most int) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, int64(most)+1))
	switch {
	case err != nil:
		return nil, err
	case len(content) > most:
		return nil, fmt.Errorf("%s: larger than %d bytes", path, most)
	}
	return content, nil
}

// Replace writes a new file at path, and replaces an old file. fill writes the content
// into a draft in the same folder; Replace renames the filled draft to path. If fill or a later
// step fails, the old file stays and the draft is removed.
func Replace(path string, fill func(*os.File) error) error {
	return write(path, fill, os.Rename)
}

// Rewrite replaces a file that exists, as [Replace] does, and gives the new file the owner and
// the mode of the old file.
func Rewrite(path string, fill func(*os.File) error) error {
	return Replace(path, func(draft *os.File) error {
		if err := adoptLike(draft, path, 0o777); err != nil { // the draft gets its owner and mode before fill writes the content, which may be secret
			return err
		}
		return fill(draft)
	})
}

// Adopt gives a new file the owner and the mode of the file at path, and no rights to users
// outside of the group: the new file may hold secrets that the other file lacks. Only root can
// give a file to another user.
func Adopt(file *os.File, path string) error { return adoptLike(file, path, 0o770) }

func adoptLike(file *os.File, path string, kept fs.FileMode) error {
	like, err := os.Stat(path)
	if err != nil {
		return err
	}
	return adopt(file, like, like.Mode().Perm()&kept)
}

// Create writes a new file at path in the way of [Replace], and fails if a file exists at path.
//
// Errors: fs.ErrExist.
func Create(path string, fill func(*os.File) error) error {
	if _, err := os.Lstat(path); err == nil { // returns the error before fill writes the content
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	published := false
	err := write(path, fill, func(draft, path string) error {
		err := publishNew(draft, path)
		published = err == nil
		return err
	})
	if err != nil && published {
		os.Remove(path) // Create has failed to sync the folder: after a crash the name could be lost
	}
	return err
}

// publishNew gives a draft the name path, and fails if a file has been made at path since the
// check of Create. publishNew makes a hard link, which fails if path exists; a rename would
// replace the file.
func publishNew(draft, path string) error {
	err := os.Link(draft, path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	return renameNew(draft, path)
}

// renameNew does the work of publishNew on a file system without hard links. Of several
// processes, only one can make an empty file at path. The process that has made the file
// renames the draft to path.
func renameNew(draft, path string) error {
	claim, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(claim.Close(), os.Rename(draft, path)); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func write(path string, fill func(*os.File) error, publish func(draft, path string) error) error {
	folder := filepath.Dir(path)
	// Each draft (the unfinished new file) has a random name, since two processes can write the
	// same file at once. CreateTemp makes files with mode 0600, from which the umask can remove
	// bits.
	draft, err := os.CreateTemp(folder, prefix(path)+"*"+suffix)
	if failed := (*fs.PathError)(nil); errors.As(err, &failed) {
		return &fs.PathError{Op: "create", Path: path, Err: failed.Err} // the operator knows this path, and not the name of the draft
	} else if err != nil {
		return err
	}
	defer os.Remove(draft.Name()) // removes the draft after an error; after a rename there is no draft
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

// prefix returns the beginning of the names of the drafts for the file at path.
func prefix(path string) string { return "." + filepath.Base(path) + "." }

// RemoveDrafts removes the drafts (unfinished files) of the file at path that are older than
// age: a process that is killed during a write leaves a draft behind. RemoveDrafts ignores
// errors.
func RemoveDrafts(path string, age time.Duration) {
	folder := filepath.Dir(path)
	entries, _ := os.ReadDir(folder) // after an error, ReadDir returns the entries read so far
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix(path)) || !strings.HasSuffix(e.Name(), suffix) || !e.Type().IsRegular() {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > age {
			os.Remove(filepath.Join(folder, e.Name()))
		}
	}
}

// syncFolder writes the names of the files in a folder to disk. On Windows, where a folder
// cannot be synced, syncFolder does nothing.
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
