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
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/durable"
	"github.com/watchword-auth/watchword/internal/spans"
)

// sqliteDB is an embedded database: one connection for writing, one for checkpoints,
// and a few for reading. In SQLite's WAL mode, reads and the one write run at the same
// time; synchronous=FULL makes a commit survive a power cut.
type sqliteDB struct {
	db        *sql.DB
	file      string
	readers   chan *sqliteConn
	writer    *writer
	closed    chan struct{}
	closeOnce func() error
}

// openSQLite opens the database in the file at path, and creates a missing file and a missing
// folder of the file. Errors: a *MovedError; ErrSchema.
func openSQLite(ctx context.Context, path string) (*sqliteDB, error) {
	// Another process could replace files in a folder that every user can write, such as some
	// volumes. So the database needs a folder of its own. If Mkdir fails, createPrivate returns
	// the reason.
	_ = os.Mkdir(filepath.Dir(path), 0o700)
	if err := checkFiles(path); err != nil {
		return nil, err
	}
	if err := createPrivate(path); err != nil {
		return nil, durable.Denied(path, err)
	}
	db, err := sql.Open("sqlite", fileURI(path, url.Values{
		"_pragma":       {busyPragma, pagePragma, "synchronous(FULL)", "wal_autocheckpoint(0)", "foreign_keys(ON)"},
		"_journal_mode": {"WAL"}, // comes last: the mode may have to wait for a lock, and fixes the size of a page in a new file
	}))
	if err != nil {
		return nil, err
	}
	s := &sqliteDB{db: db, file: path, readers: make(chan *sqliteConn, max(4, runtime.GOMAXPROCS(0))), closed: make(chan struct{})}
	s.closeOnce = sync.OnceValue(s.shutdown)
	if err := s.connect(ctx); err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

// connect brings the schema up to date and opens the connections.
func (s *sqliteDB) connect(ctx context.Context) error {
	if err := migrateSQLite(ctx, s.db); err != nil {
		return err
	}
	conns := make([]*sqliteConn, 2+cap(s.readers))
	for i := range conns {
		c, err := s.db.Conn(ctx)
		if err != nil {
			return err
		}
		conns[i] = &sqliteConn{c: c, stmts: map[string]*sql.Stmt{}}
	}
	conns[0].turn = openTurnstile(s.file)
	s.writer = newWriter(conns[0], newCheckpointer(conns[1]))
	for _, c := range conns[2:] {
		s.readers <- c
	}
	return nil
}

func (s *sqliteDB) path() string    { return s.file }
func (s *sqliteDB) address() string { return "sqlite:" + s.file }
func (s *sqliteDB) close() error    { return s.closeOnce() }

func (s *sqliteDB) shutdown() error {
	close(s.closed)
	s.writer.close()
	for range cap(s.readers) {
		c := <-s.readers
		c.close()
	}
	return s.db.Close()
}

func (s *sqliteDB) read(ctx context.Context, fn func(*Tx) error) error {
	return s.withReader(ctx, func(c *sqliteConn) error {
		c.ctx = ctx
		defer func() { c.ctx = nil }()
		_, err := c.transact(c.tracedBy(ctx, fn))
		return err
	})
}

// readOne needs no transaction: a statement alone sees one state of the database. The context of
// the caller does not reach the driver: a fourth of the time of a statement that reads few rows by
// their keys went to the two goroutines with which the driver and database/sql watch a context.
func (s *sqliteDB) readOne(ctx context.Context, fn func(*Tx) error) error {
	return s.withReader(ctx, func(c *sqliteConn) error {
		return c.orMoved(newSQLiteTx(c).attempt(c.tracedBy(ctx, fn)))
	})
}

// withReader lends fn a connection that reads, and waits for a free connection until ctx ends.
func (s *sqliteDB) withReader(ctx context.Context, fn func(*sqliteConn) error) error {
	_, waiting := spans.Start(ctx, "store.connection")
	defer waiting.End() // a second End does nothing
	select {
	case c := <-s.readers:
		waiting.End()
		defer func() { s.readers <- c }()
		return fn(c)
	case <-s.closed:
		return errClosed
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
}

func (s *sqliteDB) write(ctx context.Context, fn func(*Tx) error) error {
	return s.writer.do(ctx, write{fn: fn})
}

func (s *sqliteDB) writeLast(ctx context.Context, fn func(*Tx) error) error {
	return s.writer.do(ctx, write{fn: fn, writesLast: true})
}

func (s *sqliteDB) spend(ctx context.Context, spend *Spend, prepare func(*Spent)) (*Spent, error) {
	var spent *Spent
	rows := make(chan func(), 1)
	err := s.writer.do(ctx, write{writesLast: true, work: rows, fn: func(tx *Tx) error {
		row := &Spent{} // a new row for each run of fn: the caller may still read the row of an earlier run
		scan, args := into(row.columnsWithLines()...), append(spend.args(), micros(tx.Now()))
		err := tx.queryRow(scan, spendSQLite, append(args, SessionRow(spend.SessionID))...)
		if errors.Is(err, ErrNotFound) {
			err = tx.queryRow(scan, spendSQLiteByID, args...)
		}
		spent = row
		if err == nil {
			select {
			case rows <- func() { prepare(row) }:
			default: // rows still holds the row of an earlier run of fn; Store.Spend prepares again from the newest row
			}
		}
		return err
	}})
	return spent, err
}

// hints never calls hint: SQLite does not notify other processes that have the file
// open.
func (s *sqliteDB) hints(ctx context.Context, _ func()) { <-ctx.Done() }

// busyTimeout bounds how long a writer waits for another process, such as a command of
// the command line, to release SQLite's write lock.
const busyTimeout = 5 * time.Second

var busyPragma = fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())

// pagePragma sets the size of a page in a new database file, and changes nothing in a file with tables.
// A refresh changes one page, which SQLite reads and writes twice each. With 1 KiB in place of SQLite's
// default of 4 KiB, a refresh takes 6 to 11 % less of the store's processor time.
const pagePragma = "page_size(1024)"

func fileURI(path string, parameters url.Values) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + parameters.Encode()
}

// createPrivate creates the database file if it is missing. A new file has mode 0600, and SQLite
// gives the files that it creates beside the database file the same mode.
func createPrivate(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

// checkFiles returns an error if every user has the right to write a file of the database, or
// if this process lacks the right: SQLite's error would tell neither the file nor the reason.
func checkFiles(path string) error {
	for _, file := range []string{path, path + "-wal", path + "-shm"} {
		if err := durable.CheckWriters(file); err != nil {
			return err
		}
		if err := durable.CheckUsable(file); err != nil {
			return err
		}
	}
	return nil
}

// sqlitePath returns the absolute path of the file that a URI names. Errors: ErrEngine
// for any other kind of URI.
func sqlitePath(uri string) (string, error) {
	file, ok := strings.CutPrefix(uri, "sqlite:")
	if !ok || file == "" {
		return "", fmt.Errorf("%w: it must be sqlite:FILE", ErrEngine)
	}
	return filepath.Abs(file)
}

// openExisting opens an embedded database of any schema version, and changes nothing.
// Errors: ErrEngine; ErrNoDatabase; an error without a sentinel if the file cannot be read
// or is the database of another program.
func openExisting(ctx context.Context, uri string) (db *sql.DB, path string, err error) {
	if path, err = sqlitePath(uri); err != nil {
		return nil, "", err
	}
	switch _, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", fmt.Errorf("%w %s", ErrNoDatabase, path)
	case err != nil:
		return nil, "", durable.Denied(path, err)
	}
	if err := checkFiles(path); err != nil {
		return nil, "", err
	}
	if db, err = sql.Open("sqlite", fileURI(path, url.Values{"mode": {"rw"}, "_pragma": {busyPragma}})); err != nil {
		return nil, "", err
	}
	var version int64
	if err := db.QueryRowContext(ctx, `SELECT max(version_id) FROM goose_db_version`).Scan(&version); err != nil {
		db.Close()
		return nil, "", fmt.Errorf("%s is not a watchword database: %w", path, err)
	}
	return db, path, nil
}

// movedAway returns the URI to which [Copy] has moved an embedded database, and the id
// of that copy. URI and id are empty for a database that was not moved.
func movedAway(ctx context.Context, db *sql.DB) (to, id string) {
	return earlySetting(ctx, db, movedTo), earlySetting(ctx, db, copyID)
}

// earlySetting reads a setting outside of a [Tx], perhaps before the first migration.
// If the read fails, earlySetting returns "".
func earlySetting(ctx context.Context, db *sql.DB, name string) (value string) {
	_ = db.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = $1`, name).Scan(&value)
	return value
}
