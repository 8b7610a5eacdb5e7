// Package store owns the database: schema, connections, transactions and rows. All SQL
// is in this package.
//
// A caller may rely on the following:
//
//   - [Store.Write] returns nil only after the change is durable.
//   - A transaction has one time, [Tx.Now].
//   - Callers that write at the same time share a commit, and so an fsync; an error of
//     one caller leaves the write of another as it is.
//   - An error matches ErrUnavailable if the database was at fault, ErrAway if the
//     database does not answer, and ErrUncertain if the outcome is unknown. The store
//     runs a transaction again only if nothing of the first run remained. An error that
//     matches none of ErrUnavailable, ErrAway and ErrUncertain, and does not come from the
//     caller's function, is a fault of this program: PostgreSQL cannot process the values
//     of a statement.
//
// A caller must not hash a password or sign a token inside a transaction: other callers can be
// waiting for the end of the transaction.
//
// The packages that use store, such as session and user, decide what a row means, with one
// exception. [Store.Spend], the ordinary refresh, applies rules of package session in SQL,
// since one statement saves round trips: how a session's generations advance, and whether
// session and user are alive. TestSpendIsAdvance in internal/session compares the statements
// with the Go code. The cases "spend refuses" and "spend advances" of the suite in storetest
// cover the conditions, and TestABatchSpendsAsASingleRefresh runs both cases in a batch.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/watchword-auth/watchword/internal/count"
	"github.com/watchword-auth/watchword/internal/spans"
)

var (
	// ErrNotFound means that the row is missing.
	ErrNotFound = errors.New("not found")
	// ErrExists means that a row with the same unique value exists.
	ErrExists = errors.New("exists already")
	// ErrUnavailable means that the database failed during the call. The change is not
	// acknowledged, and may or may not have happened. A later call may succeed.
	ErrUnavailable = errors.New("store unavailable")
	// ErrUncertain means that the change may have been committed: the connection was
	// lost during the commit, or the time ran out, or no synchronous standby has
	// confirmed the commit. ErrUncertain matches ErrUnavailable.
	ErrUncertain = fmt.Errorf("%w: outcome unknown", ErrUnavailable)
	// ErrSchema means that this program cannot work with the database's schema. A newer version
	// of this program may be able to work with the schema.
	ErrSchema = errors.New("unknown database schema")
	// ErrOldSchema means that the schema is missing, or older than this program needs.
	// [Migrate] brings the schema up to date. ErrOldSchema matches ErrSchema.
	ErrOldSchema = fmt.Errorf("%w", ErrSchema)
	// ErrRights means that the role in the URI lacks a right on the database.
	ErrRights = errors.New("the role of the database lacks a right")
	// ErrIncomplete means that a copy into this database was interrupted. [Copy],
	// called again with the same arguments, finishes the copy or starts over.
	ErrIncomplete = errors.New("a copy into this database was interrupted; until the copy is finished, use the database that was copied from")
	// ErrNoDatabase means that the file of an embedded database is missing.
	ErrNoDatabase = errors.New("there is no database")
	// ErrEngine means that the URI names the wrong kind of database for the call.
	ErrEngine = errors.New("wrong kind of database")
)

// MovedError is the error for an embedded database that [Copy] has moved to PostgreSQL.
type MovedError struct{ To string } // To is the new database's URI without a password

func (e *MovedError) Error() string {
	return fmt.Sprintf("this database was moved to %s, and must not be used any more", e.To)
}

// Store is an open database. A Store is safe for concurrent use.
type Store struct {
	engine engine
	outage *outage
	schema int64 // the version of the newest migration in this program

	reads, writes, spends count.Durations
}

// Option changes how [Open] opens a database, or how [Migrate] waits.
type Option func(*options)

type options struct {
	logger  *slog.Logger
	waiting func()
}

// WithLogger makes the Store log when the database goes away and comes back. Without
// WithLogger, a Store logs nothing.
func WithLogger(logger *slog.Logger) Option { return func(o *options) { o.logger = logger } }

// WhileWaiting makes [Migrate] call fn once, if another process migrates the database and
// Migrate has to wait for some seconds.
func WhileWaiting(fn func()) Option { return func(o *options) { o.waiting = fn } }

func optionsOf(opts []Option) options {
	o := options{logger: slog.New(slog.DiscardHandler), waiting: func() {}}
	for _, option := range opts {
		option(&o)
	}
	return o
}

func newStore(e engine, schema int64, o options) *Store {
	return &Store{engine: e, outage: newOutage(o.logger), schema: schema}
}

// engine is one kind of database: sqliteDB or pgDB. Each method does what the [Store]
// method of the same name promises.
type engine interface {
	read(ctx context.Context, fn func(*Tx) error) error
	readOne(ctx context.Context, fn func(*Tx) error) error
	write(ctx context.Context, fn func(*Tx) error) error
	writeLast(ctx context.Context, fn func(*Tx) error) error
	// spend returns the row of the refresh, and may call prepare with the row before the commit, in
	// the goroutine of the caller. If spend has not called prepare with the row that it returns,
	// [Store.Spend] calls prepare.
	spend(ctx context.Context, s *Spend, prepare func(*Spent)) (*Spent, error)
	hints(ctx context.Context, hint func())
	path() string
	stats() Connections
	address() string
	close() error
}

// Path returns the file of an embedded database, and "" for PostgreSQL.
func (s *Store) Path() string { return s.engine.path() }

// Address returns the URI of the database without a password, for logs.
func (s *Store) Address() string { return s.engine.address() }

// Open opens the database named by a URI, `sqlite:FILE` or `postgres://…`. For SQLite, Open
// migrates the schema, and creates a missing file with mode 0600, in a folder of mode 0700 if
// the last folder of the path is missing too. Errors: ErrOldSchema or ErrSchema if the schema
// does not fit; a *MovedError; ErrIncomplete; ErrUnavailable. No error repeats the URI, since a
// URI may hold a password.
func Open(ctx context.Context, uri string, opts ...Option) (*Store, error) {
	o := optionsOf(opts)
	if isPostgres(uri) {
		p, err := openPostgres(ctx, uri, o.logger)
		if err == nil {
			if err = p.read(ctx, (*Tx).Usable); err == nil {
				return newStore(p, newestMigration(true), o), nil
			}
			p.closeOnce()
		}
		return nil, fmt.Errorf("opening database: %w", err)
	}
	path, err := sqlitePath(uri)
	if err != nil {
		return nil, fmt.Errorf("datastore: %w", errURI)
	}
	s, err := openSQLite(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("opening database %s: %w", path, err)
	}
	return newStore(s, newestMigration(false), o), nil
}

var errURI = errors.New("URI must be sqlite:FILE or postgres://USER:PASSWORD@HOST:PORT/DATABASE")

// CheckURI checks the URI of a database, and the files that a postgres:// URI names, without
// opening the database. CheckURI returns the URI without a password.
//
// Errors: an error with a text that contains no part of the URI.
func CheckURI(uri string) (public string, err error) {
	if isPostgres(uri) {
		config, err := parseURI(uri)
		if err != nil {
			return "", err
		}
		return publicURI(uri, config.ConnConfig), nil
	}
	if _, err := sqlitePath(uri); err != nil {
		return "", errURI
	}
	return uri, nil
}

// OpenExisting is like [Open], and never creates a database: a command with a mistyped URI must
// not leave an empty database behind. Errors: those of Open; ErrNoDatabase with the name of the
// file; an error without a sentinel if the file is the database of another program.
func OpenExisting(ctx context.Context, uri string) (*Store, error) {
	if _, err := sqlitePath(uri); err == nil {
		db, _, err := openExisting(ctx, uri)
		if err != nil {
			return nil, err
		}
		if err := db.Close(); err != nil {
			return nil, err
		}
	}
	return Open(ctx, uri)
}

func isPostgres(uri string) bool {
	return strings.HasPrefix(uri, "postgres:") || strings.HasPrefix(uri, "postgresql:")
}

// Close waits for running reads and writes and closes the database. A second Close
// does nothing.
func (s *Store) Close() error { return s.engine.close() }

// Read runs fn on one unchanging state of the database. Read waits for a free connection until
// ctx ends. If ctx ends during fn, SQLite stops the running query, and fn's later queries fail.
// On PostgreSQL the query continues after the end of ctx, for some seconds at most. fn must not
// write, and must not keep the Tx.
func (s *Store) Read(ctx context.Context, fn func(*Tx) error) error {
	return s.reading(ctx, s.engine.read, fn)
}

// ReadOne is like [Store.Read] for a function that runs one statement, which reads few rows by
// their keys. On SQLite the statement needs no transaction, and runs to its end although ctx ends.
func (s *Store) ReadOne(ctx context.Context, fn func(*Tx) error) error {
	return s.reading(ctx, s.engine.readOne, fn)
}

func (s *Store) reading(ctx context.Context, in func(context.Context, func(*Tx) error) error, fn func(*Tx) error) error {
	ctx, reading := s.startSpan(ctx, "store.read")
	began := time.Now()
	err := in(ctx, fn)
	s.reads.Add(time.Since(began))
	spans.End(reading, errors.Is(err, ErrUnavailable))
	return s.outage.note(ctx, began, err)
}

// Write runs fn in a transaction, and returns nil after the transaction is durable. If
// fn returns an error, Write rolls the transaction back and returns the error
// unchanged.
//
// fn may run more than once, one run after the other, each from the start. Results set by fn
// are valid only if Write returns nil. If ctx ends while the write is queued, fn does not run.
// After fn has begun, Write ignores ctx and waits until the transaction has ended.
//
// A user or session that fn reads by id stays unchanged until the transaction ends. A
// change that depends on other rows must call [Tx.Exclusive] first.
//
// Errors: those of fn; ErrExists; ErrUnavailable, with the error of ctx if ctx ended
// while the write was queued; ErrUncertain.
func (s *Store) Write(ctx context.Context, fn func(*Tx) error) error {
	return s.writing(ctx, s.engine.write, fn)
}

// WriteLast is like [Store.Write] for a function that changes the database by its last statement
// alone, and that returns an error only if nothing has changed. So on SQLite fn needs no savepoint
// of its own beside the writes with which fn shares a commit.
func (s *Store) WriteLast(ctx context.Context, fn func(*Tx) error) error {
	return s.writing(ctx, s.engine.writeLast, fn)
}

func (s *Store) writing(ctx context.Context, in func(context.Context, func(*Tx) error) error, fn func(*Tx) error) error {
	ctx, writing := s.startSpan(ctx, "store.write")
	began := time.Now()
	err := in(ctx, fn)
	s.writes.Add(time.Since(began))
	spans.End(writing, errors.Is(err, ErrUnavailable))
	return s.outage.note(ctx, began, err)
}

// Hints calls hint after another process has appended an event or has called [Tx.AskReplicas],
// until ctx ends. A hint may be lost, or come without an event. So a caller that needs every
// event must also poll. Hints calls hint once in 5 ms at most, since any user of the same
// PostgreSQL database can send notifications.
func (s *Store) Hints(ctx context.Context, hint func()) { s.engine.hints(ctx, hint) }

// IsText reports whether text can be stored as text: PostgreSQL refuses a zero byte and
// everything that is not UTF-8. The packages that take a text from a client call IsText and
// refuse such a text, so that SQLite and PostgreSQL give the same answer.
func IsText(text string) bool { return utf8.ValidString(text) && strings.IndexByte(text, 0) < 0 }
