package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Backup writes an embedded database into a new file, as of one moment, while servers
// have the database open. The backup holds everything acknowledged before Backup was
// called. The new file is there whole or not at all, with mode 0600; the master key
// file is never part of a backup. Errors: ErrEngine if the URI names another kind of
// database; a *MovedError; an error if the file exists.
func Backup(ctx context.Context, uri, file string) error {
	db, path, err := openExisting(ctx, uri)
	if err != nil {
		return err
	}
	defer db.Close()
	if to, _ := movedAway(ctx, db); to != "" {
		return &MovedError{To: to}
	}
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%s is there already", file)
	}
	// CreateTemp gives mode 0600. In the same folder, so that publish can link.
	part, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*.partial")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name()) // fails after publish renamed the file
	defer part.Close()
	// Of any schema: a backup comes before an upgrade, and must not be one.
	if _, err := db.ExecContext(ctx, `VACUUM INTO $1`, part.Name()); err != nil {
		return fmt.Errorf("backing up %s: %w", path, err)
	}
	if err := part.Sync(); err != nil {
		return err
	}
	return publish(part.Name(), file)
}

// publish gives a file its name if no other has it, for good.
func publish(part, file string) error {
	err := os.Link(part, file) // which, unlike a renaming, spares what is there
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = os.Rename(part, file) // a file system without links
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
