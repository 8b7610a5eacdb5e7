package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// openSQLite opens one connection that writes, one for checkpoints, and a few that read. In WAL mode
// readers and the writer don't wait for each other; synchronous=FULL makes a
// commit survive power loss.
func openSQLite(ctx context.Context, path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening database: %w", err)
	}
	if err := createPrivate(path); err != nil {
		return nil, fmt.Errorf("opening database: %w", err)
	}
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return nil, fmt.Errorf("opening database: %w", err)
	}
	engine, err := connectSQLite(ctx, db, path)
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("opening database %s: %w", path, err)
	}
	return &Store{engine}, nil
}

// sqliteDB is an embedded database.
type sqliteDB struct {
	db        *sql.DB
	file      string
	readers   chan *conn
	writer    *writer
	closed    chan struct{}
	closeOnce func() error
}

func connectSQLite(ctx context.Context, db *sql.DB, path string) (*sqliteDB, error) {
	if err := migrateSQLite(ctx, db); err != nil {
		return nil, err
	}
	s := &sqliteDB{db: db, file: path, readers: make(chan *conn, max(4, runtime.GOMAXPROCS(0))), closed: make(chan struct{})}
	s.closeOnce = sync.OnceValue(s.shut)
	for range cap(s.readers) {
		c, err := connect(ctx, db)
		if err != nil {
			return nil, err
		}
		s.readers <- c
	}
	c, err := connect(ctx, db)
	if err != nil {
		return nil, err
	}
	if c.turn, err = openTurnstile(path); err != nil {
		return nil, err
	}
	side, err := connect(ctx, db)
	if err != nil {
		return nil, err
	}
	s.writer = newWriter(c, newCheckpointer(side))
	return s, nil
}

func (s *sqliteDB) path() string { return s.file }
func (s *sqliteDB) close() error { return s.closeOnce() }

func (s *sqliteDB) shut() error {
	close(s.closed)
	s.writer.close()
	for range cap(s.readers) {
		c := <-s.readers
		c.close()
	}
	return s.db.Close()
}

func (s *sqliteDB) read(ctx context.Context, fn func(*Tx) error) error {
	select {
	case c := <-s.readers:
		defer func() { s.readers <- c }()
		_, err := c.transact(fn)
		return err
	case <-s.closed:
		return errClosed
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
}

func (s *sqliteDB) write(ctx context.Context, fn func(*Tx) error) error { return s.writer.do(ctx, fn) }

// hints has nothing to tell: other processes are polled for.
func (s *sqliteDB) hints(ctx context.Context, _ func()) { <-ctx.Done() }

// busyTimeout is how long a writer waits for another process, such as the command
// line, that holds the file's lock.
const busyTimeout = 5 * time.Second

// dsn names the file, and what every connection is set to.
func dsn(path string) string {
	pragmas := url.Values{"_pragma": {
		fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()), "journal_mode(WAL)", "synchronous(FULL)", "wal_autocheckpoint(0)", "foreign_keys(ON)",
	}}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + pragmas.Encode()
}

// createPrivate makes sure that the file exists and that nobody else can read
// a new one. SQLite gives the files beside it the same mode.
func createPrivate(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

// conn is a connection with its prepared statements. One goroutine uses it at a time.
type conn struct {
	c     *sql.Conn
	turn  *turnstile           // of the one that writes; nil: it reads
	stmts map[string]*sql.Stmt // by their SQL; bounded, since every text is a constant of this package
}

func connect(ctx context.Context, db *sql.DB) (*conn, error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{c: c, stmts: map[string]*sql.Stmt{}}, nil
}

func (c *conn) close() {
	for _, stmt := range c.stmts {
		stmt.Close()
	}
	c.c.Close()
	if c.turn != nil {
		c.turn.close()
	}
}

// No context of a caller reaches the driver: an interrupt would roll back the
// whole transaction, and with it the writes of strangers that share it.

func (c *conn) prepare(query string) (*sql.Stmt, error) {
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

func (c *conn) control(statement string) error {
	stmt, err := c.prepare(statement)
	if err != nil {
		return unavailable(err)
	}
	if _, err := stmt.Exec(); err != nil {
		return unavailable(err)
	}
	return nil
}

// begin begins a transaction: of the writer, when it is its turn.
func (c *conn) begin() error {
	if c.turn == nil {
		return c.control("BEGIN")
	}
	c.turn.enter()
	defer c.turn.leave()
	return c.control("BEGIN IMMEDIATE")
}

// transact runs fn in a transaction of its own. It returns the one that was
// committed.
func (c *conn) transact(fn func(*Tx) error) (*Tx, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	committed := false
	defer func() {
		if !committed {
			// Fails where the driver has rolled back by itself.
			_ = c.control("ROLLBACK")
		}
	}()
	tx := newTx(c)
	if err := tx.attempt(fn); err != nil {
		return nil, err
	}
	if err := c.control("COMMIT"); err != nil {
		return nil, err
	}
	committed = true
	return tx, nil
}

// sqliteTx is a transaction on a connection, or a part of one.
type sqliteTx struct {
	*conn
	at time.Time
}

func newTx(c *conn) *Tx {
	return &Tx{run: sqliteTx{c, time.Now().UTC().Truncate(time.Microsecond)}}
}

func (t sqliteTx) now() (time.Time, error) { return t.at, nil }

// exclusive does nothing: there is one writer.
func (sqliteTx) exclusive() error { return nil }

func (t sqliteTx) exec(query string, args ...any) (int64, error) {
	stmt, err := t.prepare(query)
	if err != nil {
		return 0, err
	}
	result, err := stmt.Exec(args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (t sqliteTx) query(scan func(row) error, _, query string, args ...any) error {
	stmt, err := t.prepare(query)
	if err != nil {
		return err
	}
	rows, err := stmt.Query(args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (t sqliteTx) queueExec(query string, args ...any) error {
	_, err := t.exec(query, args...)
	return err
}

func (t sqliteTx) queryAtCommit(scan func(row) error, query string, args ...any) error {
	if scan == nil {
		return t.queueExec(query, args...)
	}
	return t.query(scan, "", query, args...)
}

// hint does nothing: other processes poll.
func (sqliteTx) hint() {}

func isUniqueViolation(err error) bool {
	if e := (*sqlite.Error)(nil); errors.As(err, &e) {
		return e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return sqlState(err) == uniqueViolation
}
