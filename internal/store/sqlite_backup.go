package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
)

// Backup writes what an embedded database holds at one moment into a new file,
// while servers have it open: everything that they have acknowledged before. The
// file must not exist; it is there whole or not at all, with mode 0600. An error
// that matches ErrEngine says that the URI is not of that kind.
func Backup(ctx context.Context, uri, file string) error {
	path, err := existing(uri)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%s is there already", file)
	}
	// Mode 0600, beside its last place and never seen there before it is whole.
	part, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*.partial")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name()) // fails where it has got its name
	defer part.Close()
	if err := vacuumInto(ctx, path, part.Name()); err != nil {
		return fmt.Errorf("backing up %s: %w", path, err)
	}
	if err := part.Sync(); err != nil {
		return err
	}
	return publish(part.Name(), file)
}

// vacuumInto reads the database as it is, whatever its schema: a backup comes
// before an upgrade, and is none itself.
func vacuumInto(ctx context.Context, path, part string) error {
	pragmas := url.Values{"mode": {"rw"}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+pragmas.Encode())
	if err != nil {
		return err
	}
	defer db.Close()
	if err := ours(ctx, db); err != nil {
		return err
	}
	if to, _ := movedAway(ctx, db); to != "" {
		return errMoved(to)
	}
	_, err = db.ExecContext(ctx, `VACUUM INTO $1`, part)
	return err
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
