// Package store is the only package that knows SQL. It owns the database: its
// schema, its connections, its transactions and its rows.
//
// One transaction is one instant: a Tx carries its own time. No transaction
// stays open while a password is hashed or a token signed. Concurrent writers
// share a commit, and so an fsync; nobody is answered before it.
//
// The store judges nothing: what a row means is for the packages above.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	// ErrNotFound says that there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrExists says that a row with this unique value is there already.
	ErrExists = errors.New("exists already")
	// ErrUnavailable says that the database could not do it now. Nothing that
	// was asked for is acknowledged; it may or may not have happened.
	ErrUnavailable = errors.New("store unavailable")
	// ErrSchema says that the database's schema is not the one this program
	// knows.
	ErrSchema = errors.New("unknown database schema")
)

// Writer runs transactions that change something. A *Store is one that returns
// when the change is durable; the feed is one that returns when this server's
// own verifier knows of it too.
type Writer interface {
	Write(ctx context.Context, fn func(*Tx) error) error
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	db      *sql.DB
	path    string
	readers chan *conn
	writer  *writer
	closed  chan struct{}
	close   func() error // once
}

// Path is the file of an embedded database.
func (s *Store) Path() string { return s.path }

// Open opens the database that a URI names, `sqlite:FILE`, and brings the
// schema of an embedded database up to date. A missing file is made with mode
// 0600. An error that matches ErrSchema means that a newer program has been
// here.
func Open(ctx context.Context, uri string) (*Store, error) {
	scheme, rest, _ := strings.Cut(uri, ":")
	switch {
	case scheme == "sqlite" && rest != "":
		return openSQLite(ctx, rest)
	case scheme == "postgres" || scheme == "postgresql":
		return nil, errors.New("datastore: PostgreSQL is not supported yet; use sqlite:FILE")
	}
	// The URI may hold a password, so it is not repeated.
	return nil, errors.New("datastore: URI must be sqlite:FILE")
}

// Close waits for the writes and reads under way and closes the database. A
// second Close does nothing.
func (s *Store) Close() error { return s.close() }

func (s *Store) shut() error {
	close(s.closed)
	s.writer.close()
	for range cap(s.readers) {
		c := <-s.readers
		c.close()
	}
	return s.db.Close()
}

// Read runs fn on one unchanging state of the database. It waits for a
// connection for as long as ctx allows; fn must not write, and must not keep
// the Tx.
func (s *Store) Read(ctx context.Context, fn func(*Tx) error) error {
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

// Write runs fn in a transaction that is durable when Write returns nil. An
// error of fn rolls back what fn did, and is returned as it is.
//
// fn may run more than once, always from the start and never twice at a time;
// what it hands out is good only if Write returns nil. When ctx ends while the
// write is queued, Write returns at once, nothing happens, and the error matches
// ErrUnavailable and ctx's; once fn has begun, Write waits for its end.
func (s *Store) Write(ctx context.Context, fn func(*Tx) error) error {
	return s.writer.do(ctx, fn)
}

// Tx is a transaction. It is good for the call of the function it is given to,
// and not safe for concurrent use.
type Tx struct {
	conn *conn
	now  time.Time
	// broken is the first error of the driver, after which nothing that this
	// transaction did can be relied on.
	broken    error
	committed []func()
}

// OnCommit calls fn when what this transaction did is durable, in the goroutine
// that called Write and before Write returns, and never if it was rolled back.
func (tx *Tx) OnCommit(fn func()) { tx.committed = append(tx.committed, fn) }

func (tx *Tx) wasCommitted() {
	for _, fn := range tx.committed {
		fn()
	}
}

// Now is the transaction's instant, in whole microseconds.
func (tx *Tx) Now() time.Time { return tx.now }

func newTx(c *conn) *Tx {
	return &Tx{conn: c, now: time.Now().UTC().Truncate(time.Microsecond)}
}

func (tx *Tx) exec(query string, args ...any) (int64, error) {
	stmt, err := tx.conn.prepare(query)
	if err != nil {
		return 0, tx.fail(err)
	}
	result, err := stmt.Exec(args...)
	if err != nil {
		return 0, tx.fail(err)
	}
	return result.RowsAffected()
}

// one scans the only row of a query; no row is ErrNotFound.
func (tx *Tx) one(scan func(row) error, query string, args ...any) error {
	stmt, err := tx.conn.prepare(query)
	if err != nil {
		return tx.fail(err)
	}
	err = scan(stmt.QueryRow(args...))
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return tx.fail(err)
}

// each scans every row of a query.
func (tx *Tx) each(scan func(row) error, query string, args ...any) error {
	stmt, err := tx.conn.prepare(query)
	if err != nil {
		return tx.fail(err)
	}
	rows, err := stmt.Query(args...)
	if err != nil {
		return tx.fail(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return tx.fail(err)
		}
	}
	return tx.fail(rows.Err())
}

// fail turns an error of the driver into one of ours, and remembers it unless
// the statement alone failed.
func (tx *Tx) fail(err error) error {
	if err == nil {
		return nil
	}
	if isUniqueViolation(err) {
		return ErrExists
	}
	tx.broken = unavailable(err)
	return tx.broken
}

type row interface{ Scan(dest ...any) error }

func unavailable(err error) error {
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// micros is a time as a column holds it.
func micros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }

// nullMicros is a time that may be missing: the zero time is NULL.
func nullMicros(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}

func fromNullMicros(us sql.NullInt64) time.Time {
	if !us.Valid {
		return time.Time{}
	}
	return fromMicros(us.Int64)
}
