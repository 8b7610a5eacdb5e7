package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteConn is a connection with its prepared statements. At most one goroutine
// may use a connection at a time.
//
// No caller's context reaches the driver: an interrupt rolls back the whole
// transaction, and so the writes of every caller in the same group.
type sqliteConn struct {
	c     *sql.Conn
	turn  *turnstile           // nil: the connection only reads
	stmts map[string]*sql.Stmt // by SQL; bounded, since every text is a constant of this package
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

// control runs a statement such as COMMIT. Errors: ErrUnavailable.
func (c *sqliteConn) control(statement string) error {
	if err := c.queueExec(statement); err != nil {
		return unavailable(err)
	}
	return nil
}

// begin begins a transaction. A connection that writes waits for the turnstile first.
func (c *sqliteConn) begin() error {
	if c.turn == nil {
		return c.control("BEGIN")
	}
	c.turn.enter()
	defer c.turn.leave()
	return c.control("BEGIN IMMEDIATE")
}

// rollback fails if the driver has rolled back before, or outside of a transaction.
func (c *sqliteConn) rollback() { _ = c.control("ROLLBACK") }

// transact runs fn in a transaction, and returns the committed transaction.
func (c *sqliteConn) transact(fn func(*Tx) error) (*Tx, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	committed := false
	defer func() { // after runtime.Goexit in fn, too
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

// sqliteTx runs the statements of a transaction, or of a member of a group.
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
	stmt, err := c.prepare(query)
	if err != nil {
		return err
	}
	rows, err := stmt.Query(args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	return scanRows(rows, scan)
}

// queueExec runs the statement at once: SQLite runs in this process.
func (c *sqliteConn) queueExec(query string, args ...any) error {
	stmt, err := c.prepare(query)
	if err != nil {
		return err
	}
	_, err = stmt.Exec(args...)
	return err
}

// queryAtCommit runs the statement at once: SQLite has one writer at a time.
func (c *sqliteConn) queryAtCommit(scan func(row) error, query string, args ...any) error {
	return c.query(scan, "", query, args...)
}

// hint does nothing: processes that share a file poll.
func (sqliteTx) hint() {}

// isUniqueViolation reports whether an error of either driver says so.
func isUniqueViolation(err error) bool {
	if e := (*sqlite.Error)(nil); errors.As(err, &e) {
		return e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return sqlState(err) == uniqueViolation
}
