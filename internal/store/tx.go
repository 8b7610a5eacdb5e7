package store

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Tx is a transaction of [Store.Read] or [Store.Write]. A Tx is valid until the
// function that received the Tx returns, and is not safe for concurrent use.
type Tx struct {
	run runner
	// broken is the first error of the driver. After an error of the driver the transaction
	// cannot commit, and the caller must use none of its results.
	broken error
	// duplicate is true after a statement broke a unique constraint. After a broken constraint
	// PostgreSQL runs no further statement of the transaction, so this package refuses further
	// statements on SQLite, too.
	duplicate bool
	wrote     bool // true after a statement that may have changed a row
	committed []func()
}

// runner runs the statements of one transaction: sqliteTx or pgTx. Each method does
// what the [Tx] method of the same name promises.
type runner interface {
	now() (time.Time, error)
	// query calls scan for every row, and locks the rows as the SQL clause FOR with the
	// text of lock says, such as "NO KEY UPDATE OF users". An empty lock locks no row.
	// scan is nil for a statement without rows.
	query(scan func(row) error, lock, query string, args ...any) error
	exclusive() error
	queueExec(query string, args ...any) error
	queryAtCommit(scan func(row) error, query string, args ...any) error
	audit() *auditStatements
	// insertSession takes the values in the order of sessionColumns.
	insertSession(columns ...any) error
	// hint makes the commit notify the other server processes, which then read the new events.
	hint()
	// excludesByItself reports whether [Tx.AllowServices] is allowed to exclude earlier
	// programs without a command of the operator.
	excludesByItself() bool
	// excludeEvents makes the database refuse an event of a program that does not know the
	// migration with the number before.
	excludeEvents(before int64) error
}

// OnCommit calls fn after the transaction has become durable, in the goroutine of the
// caller of [Store.Write] and before Write returns. After a rollback fn is not called.
func (tx *Tx) OnCommit(fn func()) { tx.committed = append(tx.committed, fn) }

func (tx *Tx) wasCommitted() {
	for _, fn := range tx.committed {
		fn()
	}
}

// Now returns the transaction's time in whole microseconds. SQLite uses the clock of
// this process; PostgreSQL uses the clock of its server, so that replicas share a
// clock.
func (tx *Tx) Now() time.Time {
	now, err := tx.run.now()
	if tx.fail(err) != nil {
		return time.Now() // the transaction cannot commit, so the caller discards the time
	}
	return now
}

// Exclusive waits until no other transaction is exclusive, and makes later calls of Exclusive
// wait until this transaction ends. A transaction that depends on other rows than the users and
// sessions that it reads by id calls Exclusive first.
func (tx *Tx) Exclusive() error { return tx.fail(tx.run.exclusive()) }

// exec runs a statement and discards the result. Errors: ErrExists if the statement
// breaks a unique constraint.
func (tx *Tx) exec(query string, args ...any) error {
	return tx.queryRows(nil, query, args...)
}

// queueExec is like [Tx.exec] for a statement that cannot break a constraint. The
// statement is queued, and runs before the transaction's next query or before the
// commit, so that the statement needs no round trip of its own to PostgreSQL.
func (tx *Tx) queueExec(query string, args ...any) error {
	tx.wrote = true
	return tx.fail(tx.run.queueExec(query, args...))
}

// queryAtCommit runs a statement together with the commit, after all other statements,
// in the order of the calls. scan receives every row; scan is nil for a statement
// without rows.
func (tx *Tx) queryAtCommit(scan func(row) error, query string, args ...any) error {
	tx.wrote = true
	return tx.fail(tx.run.queryAtCommit(scan, query, args...))
}

// deleteFound deletes the rows that a query finds, one by one by their keys, and returns the
// number of keys. With a single DELETE for query and rows, PostgreSQL's planner might read the
// whole table.
func (tx *Tx) deleteFound(statement, query string, args ...any) (int64, error) {
	keys, err := queryColumn[any](tx, query, args...)
	for _, key := range keys {
		if err == nil {
			err = tx.queueExec(statement, key)
		}
	}
	return int64(len(keys)), err
}

// queryRows runs a query, and calls scan for every row.
func (tx *Tx) queryRows(scan func(row) error, query string, args ...any) error {
	tx.wrote = tx.wrote || writes(query)
	return tx.fail(tx.run.query(scan, "", query, args...))
}

// queryAll returns every row of a query. columns returns pointers to the fields of a
// row, in the order of the query's columns.
func queryAll[T any](tx *Tx, columns func(*T) []any, query string, args ...any) (list []*T, err error) {
	err = tx.queryRows(func(r row) error {
		item := new(T)
		list = append(list, item)
		return r.Scan(columns(item)...)
	}, query, args...)
	return list, err
}

// queryColumn returns the values of a query with a single column.
func queryColumn[T any](tx *Tx, query string, args ...any) (values []T, err error) {
	err = tx.queryRows(func(r row) error {
		var value T
		err := r.Scan(&value)
		values = append(values, value)
		return err
	}, query, args...)
	return values, err
}

// queryRow calls scan for the single row of a query. Errors: ErrNotFound if there is no
// row.
func (tx *Tx) queryRow(scan func(row) error, query string, args ...any) error {
	return tx.queryLocked("", scan, query, args...)
}

// queryLocked is like [Tx.queryRow]. In a transaction that writes, queryLocked also
// locks the row of the named table until the transaction ends.
func (tx *Tx) queryLocked(table string, scan func(row) error, query string, args ...any) error {
	found := false
	err := tx.run.query(func(r row) error {
		found = true
		tx.wrote = tx.wrote || writes(query) // a statement that returns no row has changed none
		return scan(r)
	}, lockOf(table), query, args...)
	if err == nil && !found {
		return ErrNotFound
	}
	return tx.fail(err)
}

// writes reports whether a statement can change a row.
func writes(query string) bool { return !strings.HasPrefix(query, "SELECT") }

// lockOf returns the text of a FOR clause that locks the rows of a table that the transaction
// may change. For the empty table name, lockOf returns "", which locks no row.
func lockOf(table string) string {
	if table == "" {
		return ""
	}
	return "NO KEY UPDATE OF " + table
}

// fail turns an error of the driver into ErrExists or into the error of [failure], and
// keeps the error: the transaction cannot commit any more.
func (tx *Tx) fail(err error) error {
	if err == nil {
		return nil
	}
	tx.duplicate = tx.duplicate || isUniqueViolation(err)
	if tx.duplicate {
		return ErrExists
	}
	if tx.broken == nil {
		tx.broken = failure(err)
	}
	return tx.broken
}

// errPanic is in the error for a panic in the function of a transaction.
var errPanic = errors.New("panic in a transaction")

// attempt calls fn and returns fn's error. attempt turns a panic into an error: on SQLite, fn
// runs in the writer's goroutine, and a panic in that goroutine would also end the writes of
// other callers. If the driver has failed, attempt returns the driver's error even if fn
// returned nil.
func (tx *Tx) attempt(fn func(*Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errPanic, p)
		}
		if tx.duplicate && err == nil {
			err = ErrExists
		}
		if tx.broken != nil {
			err = tx.broken
		}
	}()
	return fn(tx)
}

// row is a row of a result, from the driver of SQLite or of PostgreSQL.
type row interface{ Scan(dest ...any) error }

// scanRows calls scan for every row. The caller must close rows.
func scanRows(rows interface {
	row
	Next() bool
	Err() error
}, scan func(row) error) error {
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// into returns a scan function that stores the columns of a row in dest.
func into(dest ...any) func(row) error {
	return func(r row) error { return r.Scan(dest...) }
}

// failure returns the error of a call for an error of the driver: ErrUnavailable, or an
// error without a sentinel if the fault is in the values of a statement.
func failure(err error) error {
	if isBadValue(err) {
		return fmt.Errorf("the database cannot process a value: %w", err)
	}
	return unavailable(err)
}

func unavailable(err error) error { return fmt.Errorf("%w: %w", ErrUnavailable, err) }

// A column with a time holds the time in microseconds since 1970; NULL is the zero time.

func micros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }

func nullMicros(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}

// timeColumn scans a column that holds a time in microseconds. NULL becomes the zero
// time.
type timeColumn time.Time

// Scan implements sql.Scanner, for both drivers.
func (c *timeColumn) Scan(value any) error {
	switch us := value.(type) {
	case nil:
		*c = timeColumn{}
	case int64:
		*c = timeColumn(fromMicros(us))
	default:
		return fmt.Errorf("a column should hold a time in microseconds, and holds a %T", value)
	}
	return nil
}

// wordsColumn scans a column that holds words, separated by spaces. An empty column becomes
// nil.
type wordsColumn []string

// Scan implements sql.Scanner, for both drivers.
func (c *wordsColumn) Scan(value any) error {
	words, ok := value.(string)
	if !ok {
		return fmt.Errorf("a column should hold words, and holds a %T", value)
	}
	if *c = nil; words != "" {
		*c = strings.Fields(words)
	}
	return nil
}

// stringsColumn scans a column that holds a JSON array of strings.
type stringsColumn []string

// Scan implements sql.Scanner, for both drivers.
func (c *stringsColumn) Scan(value any) error {
	array, ok := value.(string)
	if !ok {
		return fmt.Errorf("a column should hold a JSON array, and holds a %T", value)
	}
	list, err := parseStrings(array)
	*c = list
	return err
}
