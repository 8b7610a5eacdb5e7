package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
)

// Copied is the result of [Copy]: the URI of the new database, and the number of copied rows of
// each table.
type Copied struct {
	To     string // URI of the new database, without a password
	Tables []CopiedTable
	// Earlier is true if an earlier call of Copy had brought all rows into the target
	// and was interrupted afterwards. If Earlier is true, this call of Copy only finished
	// the earlier copy, and Tables is empty.
	Earlier bool
}

// CopiedTable is a table's name, and how many rows were copied.
type CopiedTable struct {
	Name string
	Rows int64
}

// Copy moves an embedded database to a PostgreSQL database with a schema and empty
// tables, while servers have the embedded database open. Every acknowledged change is
// copied: from step 2 on, writes to the embedded database (the source) fail with
// ErrUnavailable, and after step 4 its reads fail, too.
//
// Copy does these steps in order:
//
//  1. Lock the PostgreSQL database (the target), and refuse a target that has rows.
//  2. Lock the source against writes.
//  3. Write every row into the target, with the setting copy_incomplete. Commit the
//     target. No server or command works on a database with this setting.
//  4. Fence the source: rename its tables, so that no program of any version can read
//     or write them. Commit the source.
//  5. Delete the setting copy_incomplete in the target.
//
// A copy interrupted before the commit of step 4 leaves the source usable, and the next
// call of Copy starts over. A copy interrupted after the commit of step 4 leaves a whole
// target, and the next call of Copy deletes the setting copy_incomplete. So at most one of
// source and target is usable at any time.
//
// Errors: ErrEngine if a URI names the wrong kind of database; a *MovedError if the
// source was moved to another target before; ErrOldSchema or ErrSchema if the target's
// schema does not fit.
func Copy(ctx context.Context, from, to string) (*Copied, error) {
	c, err := openCopying(ctx, from, to)
	if err != nil {
		return nil, err
	}
	defer c.close()
	for _, step := range c.steps() {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return &c.copied, nil
}

// copying holds the state of a running [Copy].
type copying struct {
	id      string    // a random text, the value of the setting copy in source and target
	source  *sqliteDB // nil if an earlier copy has fenced the source
	tables  []string
	movedTo string // the target's URI without a password, as a fenced source has it in the setting moved_to
	target  *copyTarget
	copied  Copied
}

func openCopying(ctx context.Context, from, to string) (*copying, error) {
	if !isPostgres(to) {
		return nil, fmt.Errorf("the database to copy to: %w: it must be postgres://…", ErrEngine)
	}
	db, path, err := openExisting(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("the database to copy: %w", err)
	}
	defer db.Close()
	c := &copying{}
	if c.movedTo, c.id = movedAway(ctx, db); c.movedTo != "" {
		c.copied.Earlier = true
	} else if err := c.openSource(ctx, path); err != nil {
		return nil, fmt.Errorf("opening database %s: %w", path, err)
	}
	if c.target, err = openCopyTarget(ctx, to); err != nil {
		c.close()
		return nil, fmt.Errorf("opening database: %w", err)
	}
	c.copied.To = c.target.name()
	c.movedTo = cmp.Or(c.movedTo, c.copied.To)
	return c, nil
}

func (c *copying) openSource(ctx context.Context, path string) (err error) {
	c.id = rand.Text()
	if c.source, err = openSQLite(ctx, path); err != nil {
		return err
	}
	c.tables, err = c.source.tables()
	return err
}

// close rolls back the open transactions of source and target, and closes both
// databases.
func (c *copying) close() {
	if c.target != nil {
		c.target.close()
	}
	if c.source != nil {
		c.source.copyClose()
	}
}

func (c *copying) steps() []func(context.Context) error {
	if c.copied.Earlier {
		return []func(context.Context) error{c.finish}
	}
	return []func(context.Context) error{
		func(ctx context.Context) error { return c.target.lock(ctx, c.tables) },
		c.source.copyLock,
		c.transfer,
		c.target.commit,
		func(context.Context) error { return c.source.fence(c.tables, c.copied.To, c.id) },
		c.source.copyCommit,
		c.finish,
	}
}

func (c *copying) transfer(ctx context.Context) error {
	if err := c.checkFloor(ctx); err != nil {
		return err
	}
	for _, table := range c.tables {
		rows, err := c.source.rows(table)
		var n int64
		if err == nil {
			n, err = c.target.receive(ctx, table, rows)
			rows.Close()
		}
		if err != nil {
			return fmt.Errorf("copying %s: %w", table, err)
		}
		c.copied.Tables = append(c.copied.Tables, CopiedTable{table, n})
	}
	if err := c.target.raiseNumbers(ctx); err != nil {
		return err
	}
	return c.target.mark(ctx, c.id)
}

// checkFloor compares the setting schema_floor (the oldest program that is allowed to use the
// database) of source and target. Errors: ErrUnfinished if the target admits older programs
// than the source does.
func (c *copying) checkFloor(ctx context.Context) error {
	needed, err := newSQLiteTx(c.source.writer.conn).floor()
	if err != nil {
		return err
	}
	text, err := pgSetting(ctx, c.target.conn, schemaFloor)
	if err != nil {
		return err
	}
	if floor, err := strconv.ParseInt(text, 10, 64); err != nil || floor < needed {
		return fmt.Errorf("the database to copy to: %w", ErrUnfinished)
	}
	return nil
}

// fromTable returns the FROM clause for the rows of a table that a copy moves. The settings
// schema_floor and schema_floor_release are left out, since the migrations of each engine have
// set them in the target. Every row of the table replicas is left out, since no server process
// serves both databases.
func fromTable(table string) string {
	switch table {
	case "settings":
		return `FROM settings WHERE name NOT IN ('` + schemaFloor + `', '` + schemaRelease + `')`
	case "replicas":
		return `FROM replicas WHERE 1 = 0`
	}
	return `FROM ` + table
}

// finish deletes the setting copy_incomplete, if the target holds this source's copy.
// Errors: a *MovedError if the target holds another copy or none.
func (c *copying) finish(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // the source is fenced, so neither database is usable until the target is finished
	id, err := pgSetting(ctx, c.target.conn, copyID)
	if err != nil {
		return err
	}
	if id != c.id {
		return &MovedError{To: c.movedTo}
	}
	return c.target.finish(ctx)
}
