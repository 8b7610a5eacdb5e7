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
)

// sqliteDB is an embedded database: one connection for writing, one for checkpoints,
// and a few for reading. In WAL mode readers and the writer run side by side;
// synchronous=FULL makes a commit survive a power cut.
type sqliteDB struct {
	db        *sql.DB
	file      string
	readers   chan *sqliteConn
	writer    *writer
	closed    chan struct{}
	closeOnce func() error
}

// openSQLite opens the database in the file at path, and makes a missing file. Errors:
// a *MovedError; ErrSchema.
func openSQLite(ctx context.Context, path string) (*sqliteDB, error) {
	if err := createPrivate(path); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", fileURI(path, url.Values{"_pragma": {
		busyPragma, "journal_mode(WAL)", "synchronous(FULL)", "wal_autocheckpoint(0)", "foreign_keys(ON)", // in this order
	}}))
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

// connect brings the schema up to date and makes the connections.
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
	turn, err := openTurnstile(s.file)
	if err != nil {
		return err
	}
	conns[0].turn = turn
	s.writer = newWriter(conns[0], newCheckpointer(conns[1]))
	for _, c := range conns[2:] {
		s.readers <- c
	}
	return nil
}

func (s *sqliteDB) path() string { return s.file }
func (s *sqliteDB) close() error { return s.closeOnce() }

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

func (s *sqliteDB) spend(ctx context.Context, spend *Spend) (*Spent, error) {
	spent := &Spent{}
	return spent, s.write(ctx, func(tx *Tx) error {
		return tx.queryRow(into(spent.columns()...), spendSQLite, append(spend.args(), micros(tx.Now()))...)
	})
}

// hints never calls hint: SQLite tells nothing to processes that share a file.
func (s *sqliteDB) hints(ctx context.Context, _ func()) { <-ctx.Done() }

// busyTimeout is how long a writer waits for another process, such as the command
// line, to release the file's lock.
const busyTimeout = 5 * time.Second

var busyPragma = fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())

func fileURI(path string, parameters url.Values) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + parameters.Encode()
}

// createPrivate makes sure that the file exists. A new file has mode 0600, and SQLite
// gives the files beside it the same mode.
func createPrivate(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

// sqlitePath returns the file named by a URI. Errors: ErrEngine.
func sqlitePath(uri string) (string, error) {
	file, ok := strings.CutPrefix(uri, "sqlite:")
	if !ok || file == "" {
		return "", fmt.Errorf("%w: it must be sqlite:FILE", ErrEngine)
	}
	return filepath.Abs(file)
}

// openExisting opens a database of any schema, and changes nothing. Errors: ErrEngine;
// an error for a missing file, and for the database of some other program.
func openExisting(ctx context.Context, uri string) (db *sql.DB, path string, err error) {
	if path, err = sqlitePath(uri); err != nil {
		return nil, "", err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("there is no database %s", path)
	}
	if db, err = sql.Open("sqlite", fileURI(path, url.Values{"mode": {"rw"}, "_pragma": {busyPragma}})); err != nil {
		return nil, "", err
	}
	var version int64
	if err := db.QueryRowContext(ctx, `SELECT max(version_id) FROM goose_db_version`).Scan(&version); err != nil {
		db.Close()
		return nil, "", fmt.Errorf("%s is not a database of watchword's: %w", path, err)
	}
	return db, path, nil
}

// movedAway returns where an embedded database was moved to, and by which copy. Both
// are empty for a database still in place.
func movedAway(ctx context.Context, db *sql.DB) (to, id string) {
	return earlySetting(ctx, db, movedTo), earlySetting(ctx, db, copyID)
}

// earlySetting reads a setting of a database, perhaps before the first migration. An
// error counts as an empty setting.
func earlySetting(ctx context.Context, db *sql.DB, name string) (value string) {
	_ = db.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = $1`, name).Scan(&value)
	return value
}
