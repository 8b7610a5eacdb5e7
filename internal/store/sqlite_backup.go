package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/watchword-auth/watchword/internal/durable"
)

// Backup writes an embedded database into a new file, while servers have the database
// open. The new file is a snapshot of one moment, and holds everything acknowledged
// before the call of Backup. The new file is complete or does not exist, and has mode
// 0600. The master key file is not part of a backup.
//
// Errors: ErrEngine for another kind of database; a *MovedError; an error without a
// sentinel if the file exists.
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
		// VACUUM INTO works with every schema version, as it must: operators make a backup
		// before they upgrade.
		_, err := db.ExecContext(ctx, `VACUUM INTO $1`, draft.Name())
		return err
	})
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s exists already", file)
	case err != nil:
		return fmt.Errorf("backing up %s: %w", path, err)
	}
	return nil
}
