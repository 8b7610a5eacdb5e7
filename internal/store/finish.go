package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// After a migration, programs from before the migration can still work with the database, so
// that an operator can replace the replicas one by one and go back (docs/migrations.md). The
// upgrade is finished when the database excludes these programs. Some features wait for the end
// of the upgrade: a program that does not know service accounts would take a service account
// with the role admin for the last admin.
//
// Three things exclude the programs from before a migration. The setting schema_floor lets no
// program from before the migration start. The table replicas names every server that runs, and
// the upgrade is finished only after the servers from before the migration have ended. The
// database refuses an event of any other earlier program that still runs: a program writes its
// number into the column program of an event, and an earlier program leaves the column at 0. A
// transaction that takes rights from a user always appends an event, so an earlier program
// cannot commit such a transaction.

// program is the number of the newest migration in this program, of either engine.
var program = newestMigration(true)

// servicesSince is the migration that brings service accounts.
const servicesSince = 16

// ErrUnfinished means that programs that do not know service accounts can still work with the
// database.
var ErrUnfinished = errors.New("earlier versions of Watchword can still use this database, and do not know service accounts")

// EarlierError means that servers of an earlier version of Watchword run on the database.
type EarlierError struct{ Replicas []string } // the addresses of these servers, as in [Replica]

func (e *EarlierError) Error() string {
	return "servers of an earlier version run on this database, or have ended within the last " +
		aliveFor.String() + " without stopping in order: " + strings.Join(e.Replicas, ", ")
}

// Is makes an EarlierError match ErrUnfinished.
func (e *EarlierError) Is(target error) bool { return target == ErrUnfinished }

// aliveFor is the time for which a row of the table replicas shows that a server runs: a
// server writes its row once a minute, and deletes the row when it stops.
const aliveFor = 2*time.Minute + 5*time.Second

// Finish ends the upgrade of a database to this program's schema: no earlier program works with
// the database any more. release is the version of this program, for error messages. Errors:
// those of [Open]; a *EarlierError; an error without a sentinel if the role of PostgreSQL does
// not own the tables.
func Finish(ctx context.Context, uri, release string) error {
	s, err := OpenExisting(ctx, uri)
	if err != nil {
		return err
	}
	err = s.Write(ctx, func(tx *Tx) error { return tx.excludeBefore(s.schema, release) })
	if sqlState(err) == insufficientPrivilege {
		err = fmt.Errorf("the role must own the tables of the database, as the role of a migration does: %w", err)
	}
	return errors.Join(err, s.Close())
}

// AllowServices returns nil if every program that can work with the database knows service
// accounts. On SQLite, where one server has the database, AllowServices itself excludes the
// programs that do not know service accounts. Errors: ErrUnfinished; on SQLite a *EarlierError.
func (tx *Tx) AllowServices() error {
	switch floor, err := tx.floor(); {
	case err != nil || floor >= servicesSince:
		return err
	case !tx.run.excludesByItself():
		return ErrUnfinished
	}
	return tx.excludeBefore(servicesSince, "")
}

// floor returns the setting schema_floor, and 0 if the setting is missing.
func (tx *Tx) floor() (int64, error) {
	value, err := tx.Setting(schemaFloor)
	if err != nil || value == "" {
		return 0, err
	}
	return strconv.ParseInt(value, 10, 64)
}

// excludeBefore makes every Watchword program with a newest migration before floor refuse to open
// the database. release is the version of the oldest program that may still open the
// database; empty if this version is unknown. Errors: a *EarlierError if a replica with such an
// older program runs.
func (tx *Tx) excludeBefore(floor int64, release string) error {
	if err := tx.Exclusive(); err != nil {
		return err
	}
	before, err := tx.floor()
	if err != nil || before >= floor {
		return err
	}
	earlier, err := queryColumn[string](tx, `SELECT address FROM replicas WHERE program < $1 AND written_at > $2 ORDER BY address`,
		floor, micros(tx.Now().Add(-aliveFor)))
	if err != nil {
		return err
	}
	if len(earlier) > 0 {
		return &EarlierError{earlier}
	}
	err = errors.Join(tx.SetSetting(schemaFloor, strconv.FormatInt(floor, 10)), tx.SetSetting(schemaRelease, release))
	if err != nil {
		return err
	}
	return tx.fail(tx.run.excludeEvents(floor))
}
