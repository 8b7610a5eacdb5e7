package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Settings that say what a copy has made of a database.
const (
	// movedTo is in a database that was moved away: where to, without a password.
	movedTo = "moved_to"
	// copyID is in both, and says that they are the two ends of one copy.
	copyID = "copy"
	// copyIncomplete is in a database that a copy has filled, for as long as the
	// source may still acknowledge what the copy does not have.
	copyIncomplete = "copy_incomplete"
)

func errMoved(to string) error {
	return fmt.Errorf("this database was moved to %s, and nothing here is true any more: use that as --datastore-uri, with the same --master-key-file", to)
}

var errIncomplete = errors.New("a copy into this database did not come to its end: run the same `watchword datastore copy` again, " +
	"which finishes it or starts over; until then the database that was to be copied is the one that holds")

// Usable says why nobody may work on the database, if that is so: it was moved
// away, or is a copy that was not finished. Open asks it, and so does who opened
// before the copy began, in the transaction that depends on it.
func (tx *Tx) Usable() error {
	to, err := tx.Setting(movedTo)
	if err != nil {
		return err
	}
	if to != "" {
		return errMoved(to)
	}
	id, err := tx.Setting(copyIncomplete)
	if err == nil && id != "" {
		err = errIncomplete
	}
	return err
}

// movedAway is where an embedded database was moved to, and by which copy.
func movedAway(ctx context.Context, db *sql.DB) (to, id string) {
	return earlySetting(ctx, db, movedTo), earlySetting(ctx, db, copyID)
}

// earlySetting reads a setting of a database that may have no schema yet.
func earlySetting(ctx context.Context, db *sql.DB, name string) (value string) {
	_ = db.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = $1`, name).Scan(&value) // none: none that is known
	return value
}

// existing is the file of an embedded database that is there. Where it is
// misspelled, a new and empty one would be no help.
func existing(uri string) (string, error) {
	scheme, file, _ := strings.Cut(uri, ":")
	if scheme != "sqlite" || file == "" {
		return "", fmt.Errorf("%w: it must be sqlite:FILE", ErrEngine)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no database %s", path)
	}
	return path, nil
}

// ours refuses a file that is some other program's database.
func ours(ctx context.Context, db *sql.DB) error {
	var version int64
	if err := db.QueryRowContext(ctx, `SELECT max(version_id) FROM goose_db_version`).Scan(&version); err != nil {
		return fmt.Errorf("not a database of watchword's: %w", err)
	}
	return nil
}
