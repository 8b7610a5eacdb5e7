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
	// ErrUncertain says that nobody knows whether a change was committed: the
	// connection was lost meanwhile, or the time was over, or no standby has confirmed
	// it. Such an error matches ErrUnavailable.
	ErrUncertain = fmt.Errorf("%w: outcome unknown", ErrUnavailable)
	// ErrSchema says that the database's schema is not the one this program
	// knows.
	ErrSchema = errors.New("unknown database schema")
	// ErrEngine says that this is not for this kind of database.
	ErrEngine = errors.New("wrong kind of database")
)

// Writer runs transactions that change something. A *Store is one that returns
// when the change is durable; the feed is one that returns when this server's
// own verifier knows of it too.
type Writer interface {
	Write(ctx context.Context, fn func(*Tx) error) error
}

// Store is an open database. It is safe for concurrent use.
type Store struct{ engine engine }

// engine is one kind of database. Both are in this package.
type engine interface {
	read(ctx context.Context, fn func(*Tx) error) error
	write(ctx context.Context, fn func(*Tx) error) error
	spend(ctx context.Context, s *Spend) (*Spent, error)
	hints(ctx context.Context, hint func())
	path() string
	close() error
}

// Path is the file of an embedded database; empty for any other.
func (s *Store) Path() string { return s.engine.path() }

// Open opens the database that a URI names, `sqlite:FILE` or `postgres://…`.
// An embedded database is made with mode 0600 where there is none, and its schema
// brought up to date. An error that matches ErrSchema says that the schema is not
// one that this program can work with, and what mends it.
func Open(ctx context.Context, uri string) (*Store, error) {
	scheme, rest, _ := strings.Cut(uri, ":")
	switch {
	case scheme == "sqlite" && rest != "":
		return openSQLite(ctx, rest)
	case isPostgres(scheme):
		return openPostgres(ctx, uri)
	}
	return nil, errURI
}

// errURI does not repeat the URI, which may hold a password.
var errURI = errors.New("datastore: URI must be sqlite:FILE or postgres://USER:PASSWORD@HOST:PORT/DATABASE")

// errPostgresURI tells nothing of the driver's error, which may repeat the URI.
var errPostgresURI = errors.New("datastore: a postgres:// URI that cannot be used: see to its form, its parameters, " +
	"and the files and variables (sslrootcert, service, PG…) that count besides")

func isPostgres(scheme string) bool { return scheme == "postgres" || scheme == "postgresql" }

// Close waits for the writes and reads under way and closes the database. A
// second Close does nothing.
func (s *Store) Close() error { return s.engine.close() }

// Read runs fn on one unchanging state of the database. It waits for a
// connection for as long as ctx allows; fn must not write, and must not keep
// the Tx.
func (s *Store) Read(ctx context.Context, fn func(*Tx) error) error { return s.engine.read(ctx, fn) }

// Write runs fn in a transaction that is durable when Write returns nil. An
// error of fn rolls back what fn did, and is returned as it is.
//
// fn may run more than once, always from the start and never twice at a time;
// what it hands out is good only if Write returns nil. When ctx ends while the
// write is queued, Write returns at once, nothing happens, and the error matches
// ErrUnavailable and ctx's; once fn has begun, Write waits for its end.
//
// What fn reads of a user or a session by its id stays as it was read until the
// transaction ends; a change that depends on other rows takes Exclusive first.
func (s *Store) Write(ctx context.Context, fn func(*Tx) error) error {
	return s.engine.write(ctx, fn)
}

// Hints calls hint, until ctx ends, when another process has said that it appended
// an event. Hints may be lost, and come without cause: whoever must know, polls.
func (s *Store) Hints(ctx context.Context, hint func()) { s.engine.hints(ctx, hint) }

// Tx is a transaction. It is good for the call of the function it is given to,
// and not safe for concurrent use.
type Tx struct {
	run runner
	// broken is the first error of the driver, after which nothing that this
	// transaction did can be relied on.
	broken error
	// taken says that a statement found its unique value taken. PostgreSQL runs
	// nothing more then, and SQLite shall not differ.
	taken     bool
	committed []func()
}

// runner is how an engine runs the statements of one transaction.
type runner interface {
	// now is the transaction's instant.
	now() (time.Time, error)
	exec(query string, args ...any) (int64, error)
	// query scans every row. Those of the table `hold`, if it is not empty, nobody
	// else changes before this transaction ends.
	query(scan func(row) error, hold, query string, args ...any) error
	// exclusive keeps other transactions out that are exclusive too.
	exclusive() error
	// later runs a statement at the latest with the commit.
	queueExec(query string, args ...any) error
	// last runs a statement as one of the last before the commit, in the order in
	// which they came. scan may be nil.
	queryAtCommit(scan func(row) error, query string, args ...any) error
	// hint says with the commit, to whoever listens, that there is an event.
	hint()
}

// OnCommit calls fn when what this transaction did is durable, in the goroutine
// that called Write and before Write returns, and never if it was rolled back.
func (tx *Tx) OnCommit(fn func()) { tx.committed = append(tx.committed, fn) }

func (tx *Tx) wasCommitted() {
	for _, fn := range tx.committed {
		fn()
	}
}

// Now is the transaction's instant, in whole microseconds: the process's time for
// an embedded database, and the server's for PostgreSQL, so that the clocks of
// replicas do not matter.
func (tx *Tx) Now() time.Time {
	now, err := tx.run.now()
	if tx.fail(err) != nil {
		return time.Now() // the transaction fails in any case
	}
	return now
}

// Exclusive waits until no other transaction is exclusive, and is so until this
// one ends.
func (tx *Tx) Exclusive() error { return tx.fail(tx.run.exclusive()) }

func (tx *Tx) exec(query string, args ...any) (int64, error) {
	n, err := tx.run.exec(query, args...)
	return n, tx.fail(err)
}

// later is exec for a statement whose outcome nobody waits for.
func (tx *Tx) queueExec(query string, args ...any) error { return tx.fail(tx.run.queueExec(query, args...)) }

func (tx *Tx) queryAtCommit(scan func(row) error, query string, args ...any) error {
	return tx.fail(tx.run.queryAtCommit(scan, query, args...))
}

// deleteFound deletes, one by one, the rows whose keys a query finds, and returns
// how many it found. In one statement it would be for a planner to say whether
// all of the table is read for it.
func (tx *Tx) deleteFound(statement, query string, args ...any) (int64, error) {
	var keys []any
	err := tx.queryRows(func(r row) error {
		var key any
		err := r.Scan(&key)
		keys = append(keys, key)
		return err
	}, query, args...)
	for _, key := range keys {
		if err == nil {
			err = tx.queueExec(statement, key)
		}
	}
	return int64(len(keys)), err
}

// each scans every row of a query.
func (tx *Tx) queryRows(scan func(row) error, query string, args ...any) error {
	return tx.fail(tx.run.query(scan, "", query, args...))
}

// one scans the only row of a query; no row is ErrNotFound.
func (tx *Tx) queryRow(scan func(row) error, query string, args ...any) error {
	return tx.queryLocked("", scan, query, args...)
}

// hold is one for a row of a table that shall stay as it is until the end of this
// transaction, if that writes.
func (tx *Tx) queryLocked(table string, scan func(row) error, query string, args ...any) error {
	found := false
	err := tx.run.query(func(r row) error {
		found = true
		return scan(r)
	}, table, query, args...)
	if err == nil && !found {
		return ErrNotFound
	}
	return tx.fail(err)
}

// fail turns an error of the driver into one of ours, and remembers it: the
// transaction cannot succeed any more.
func (tx *Tx) fail(err error) error {
	if err == nil {
		return nil
	}
	tx.taken = tx.taken || isUniqueViolation(err)
	if tx.taken {
		return ErrExists
	}
	if tx.broken == nil {
		tx.broken = unavailable(err)
	}
	return tx.broken
}

// attempt calls fn. A panic becomes an error, since it must not take strangers'
// writes along; a driver's error is returned even if fn did not.
func (tx *Tx) attempt(fn func(*Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a transaction: %v", p)
		}
		if tx.taken && err == nil {
			err = ErrExists
		}
		if tx.broken != nil {
			err = tx.broken
		}
	}()
	return fn(tx)
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
