package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteConn is a connection to the embedded database, with its prepared statements. At
// most one goroutine may use a connection at a time.
//
// When the context of a caller that reads ends, the running query stops, and the connection
// serves the next caller. No context of a caller that writes reaches the driver: SQLite's
// interrupt rolls back the whole transaction, and so the writes of every caller in the
// same group.
type sqliteConn struct {
	c     *sql.Conn
	ctx   context.Context      // the context of the caller that reads; nil for a connection that writes
	spans context.Context      // has the tracing span under which the next statement's span begins; nil: the statement has no span
	turn  *turnstile           // the turnstile of the database; nil for a connection that only reads
	stmts map[string]*sql.Stmt // the prepared statements, by SQL text; few, since every text is a constant of this package
}

func (c *sqliteConn) close() {
	for _, stmt := range c.stmts {
		stmt.Close()
	}
	c.c.Close()
	if c.turn != nil {
		c.turn.close()
	}
}

func (c *sqliteConn) prepare(query string) (*sql.Stmt, error) {
	if stmt, ok := c.stmts[query]; ok {
		return stmt, nil
	}
	stmt, err := c.c.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	c.stmts[query] = stmt
	return stmt, nil
}

// control runs a statement that controls a transaction, such as COMMIT. Errors:
// ErrUnavailable.
func (c *sqliteConn) control(statement string) error {
	if err := c.queueExec(statement); err != nil {
		return unavailable(err)
	}
	return nil
}

// begin begins a transaction. A connection that writes waits for the turnstile before
// it waits for SQLite's write lock: see [turnstile].
func (c *sqliteConn) begin() error {
	if c.turn == nil {
		return c.control("BEGIN")
	}
	c.turn.enter()
	defer c.turn.leave()
	return c.control("BEGIN IMMEDIATE")
}

// rollback ends the transaction. The error is ignored: the driver may have rolled back
// before.
func (c *sqliteConn) rollback() { _ = c.control("ROLLBACK") }

// transact runs fn in a transaction, and returns the transaction after the commit. Errors:
// those of fn; ErrUnavailable, with a *MovedError if [Copy] has moved the database.
func (c *sqliteConn) transact(fn func(*Tx) error) (*Tx, error) {
	tx, err := c.tryTransact(fn)
	return tx, c.orMoved(err)
}

// orMoved returns ErrUnavailable with a *MovedError in place of another ErrUnavailable, if [Copy]
// has moved the database: a *MovedError is more useful than the driver's error, which names a
// missing table.
func (c *sqliteConn) orMoved(err error) error {
	to := ""
	if errors.Is(err, ErrUnavailable) && c.query(into(&to), "", `SELECT value FROM settings WHERE name = $1`, movedTo) == nil && to != "" {
		return unavailable(&MovedError{To: to})
	}
	return err
}

func (c *sqliteConn) tryTransact(fn func(*Tx) error) (*Tx, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	committed := false
	defer func() { // the rollback is deferred, since a test can end fn by runtime.Goexit
		if !committed {
			c.rollback()
		}
	}()
	tx := newSQLiteTx(c)
	if err := tx.attempt(fn); err != nil {
		return nil, err
	}
	if err := c.control("COMMIT"); err != nil {
		return nil, err
	}
	committed = true
	return tx, nil
}

// tracedBy returns a function that calls fn with the spans of fn's statements below the span of
// ctx, the context of the caller. BEGIN and COMMIT of a write stay below the span that the
// callers of a group share.
func (c *sqliteConn) tracedBy(ctx context.Context, fn func(*Tx) error) func(*Tx) error {
	return func(tx *Tx) error {
		shared := c.spans
		c.spans = ctx
		defer func() { c.spans = shared }()
		return fn(tx)
	}
}

// sqliteTx runs the statements of a transaction, or of one member of the writer's
// group.
type sqliteTx struct {
	*sqliteConn
	at time.Time
}

func newSQLiteTx(c *sqliteConn) *Tx {
	return &Tx{run: sqliteTx{c, time.Now().UTC().Truncate(time.Microsecond)}}
}

func (t sqliteTx) now() (time.Time, error) { return t.at, nil }

// exclusive does nothing: SQLite has one writer at a time.
func (sqliteTx) exclusive() error { return nil }

// query ignores lock: SQLite has one writer at a time.
func (c *sqliteConn) query(scan func(row) error, _, query string, args ...any) error {
	defer startStatement(c.spans, query).End()
	stmt, err := c.prepare(query)
	if err != nil {
		return err
	}
	ctx := c.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	return scanRows(rows, scan)
}

// queueExec runs the statement at once. A queue would save no round trip: SQLite runs in this
// process.
func (c *sqliteConn) queueExec(query string, args ...any) error {
	defer startStatement(c.spans, query).End()
	stmt, err := c.prepare(query)
	if err != nil {
		return err
	}
	_, err = stmt.Exec(args...)
	return err
}

// queryAtCommit runs the statement at once: SQLite has one writer at a time, so no
// other writer waits for a row that this transaction locks early.
func (c *sqliteConn) queryAtCommit(scan func(row) error, query string, args ...any) error {
	return c.query(scan, "", query, args...)
}

// hint does nothing: processes that share a file find new events by polling.
func (sqliteTx) hint() {}

func (sqliteTx) excludesByItself() bool { return true }

// excludeEvents makes a trigger on the table events, since SQLite cannot add a constraint to an
// existing table.
func (t sqliteTx) excludeEvents(before int64) error {
	return errors.Join(t.query(nil, "", `DROP TRIGGER IF EXISTS events_program`), t.query(nil, "",
		fmt.Sprintf(`CREATE TRIGGER events_program BEFORE INSERT ON events WHEN NEW.program < %d
			BEGIN SELECT RAISE(ABORT, 'an earlier version of Watchword cannot use this database'); END`, before)))
}

// isUniqueViolation reports whether a statement broke a unique constraint, on either
// engine.
func isUniqueViolation(err error) bool {
	if e := (*sqlite.Error)(nil); errors.As(err, &e) {
		return e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return sqlState(err) == uniqueViolation
}
