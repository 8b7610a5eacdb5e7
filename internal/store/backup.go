package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"

	"github.com/watchword-auth/watchword/internal/durable"
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
	err = durable.Create(file, func(draft *os.File) error { return vacuumInto(ctx, path, draft.Name()) })
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already", file)
	}
	if err != nil {
		return fmt.Errorf("backing up %s: %w", path, err)
	}
	return nil
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
