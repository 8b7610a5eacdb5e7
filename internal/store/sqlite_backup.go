package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/watchword-auth/watchword/internal/durable"
)

// Backup writes an embedded database into a new file, as of one moment, while servers
// have the database open. The backup holds everything acknowledged before the call of
// Backup. The new file is complete or does not exist, and has mode 0600; the master key
// file is not part of a backup.
//
// Errors: ErrEngine for another kind of database; *MovedError; an error if the file
// exists.
func Backup(ctx context.Context, uri, file string) error {
	db, path, err := openExisting(ctx, uri)
	if err != nil {
		return err
	}
	defer db.Close()
	if to, _ := movedAway(ctx, db); to != "" {
		return &MovedError{To: to}
	}
	err = durable.Create(file, func(draft *os.File) error {
		// Backup accepts every schema: a backup comes before an upgrade.
		_, err := db.ExecContext(ctx, `VACUUM INTO $1`, draft.Name())
		return err
	})
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s is there already", file)
	case err != nil:
		return fmt.Errorf("backing up %s: %w", path, err)
	}
	return nil
}
