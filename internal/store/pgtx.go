package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pgTx runs the statements of one transaction in as few round trips as possible. BEGIN is sent
// with the first query, a queued statement with the next query, and a statement of
// [Tx.queryAtCommit] with COMMIT. Every transaction that appends an event locks the row of the
// table head. Since the lock is taken together with COMMIT, the row is locked for one pipelined
// send at most, even if this process dies.
type pgTx struct {
	ctx      context.Context
	conn     *pgxpool.Conn
	readOnly bool
	queued   *pgx.Batch
	atCommit []pgStatement
	at       time.Time // the transaction's time; zero until PostgreSQL has answered BEGIN
	notify   bool      // NOTIFY follows COMMIT, since [runner.hint] was called
}

type pgStatement struct {
	scan  func(row) error
	query string
	args  []any
}

// pgNow is SQL for PostgreSQL's clock, in microseconds since 1970, as the columns hold
// times.
const pgNow = `CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)`

// pgBegin is the first statement after BEGIN. The statement returns the transaction's
// time and whether the server is a standby, and sets the time bounds.
var pgBegin = `SELECT CAST(extract(epoch FROM transaction_timestamp()) * 1000000 AS BIGINT), pg_is_in_recovery(), ` + pgTxBounds

func beginPostgres(ctx context.Context, conn *pgxpool.Conn, readOnly bool) *pgTx {
	t := &pgTx{ctx: ctx, conn: conn, readOnly: readOnly, queued: &pgx.Batch{}}
	if readOnly {
		t.queued.Queue("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	} else {
		t.queued.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	}
	t.queued.Queue(pgBegin).QueryRow(func(r pgx.Row) error {
		var standby bool
		err := r.Scan((*timeColumn)(&t.at), &standby, nil, nil, nil)
		if err == nil && standby {
			return errStandby
		}
		return err
	})
	return t
}

// flush sends the queued statements and waits for the answers.
func (t *pgTx) flush() error {
	batch := t.queued
	t.queued = &pgx.Batch{}
	if batch.Len() == 0 {
		return nil
	}
	return t.conn.SendBatch(t.ctx, batch).Close()
}

func (t *pgTx) now() (at time.Time, err error) {
	if t.at.IsZero() {
		err = t.flush()
	}
	return t.at, err
}

// query locks the rows by the clause FOR with the text of lock, and waits if another
// transaction holds a lock. After the wait, query reads the clock again: the other transaction may have
// written a later time into the row than the time at which this transaction began, and
// the times in a row must only grow.
func (t *pgTx) query(scan func(row) error, lock, query string, args ...any) error {
	if lock == "" || t.readOnly {
		t.queue(pgStatement{scan, query, args})
		return t.flush()
	}
	t.queue(pgStatement{scan, query + " FOR " + lock, args})
	t.queueClock()
	return t.flush()
}

// queueClock sets the transaction's time to the time at which PostgreSQL has ended the
// statement queued before.
func (t *pgTx) queueClock() {
	t.queue(pgStatement{scan: into((*timeColumn)(&t.at)), query: "SELECT " + pgNow})
}

func (t *pgTx) queue(s pgStatement) {
	q := t.queued.Queue(s.query, s.args...)
	if s.scan != nil {
		q.Query(func(rows pgx.Rows) error { return scanRows(rows, s.scan) })
	}
}

// lockExclusive locks the only row of the table exclusive_lock, which exists for [Tx.Exclusive]
// alone. lockExclusive changes nothing: ON CONFLICT locks also a row that WHERE excludes from
// the update. A missing row is inserted.
//
// lockExclusive locks a row, since a lock on a row needs rights on the table. Any role that is
// allowed to connect to the database could hold an advisory lock. Such a role could also hold a
// lock on a whole table, by PREPARE in an open transaction: PostgreSQL checks the rights on a
// table later.
const lockExclusive = `INSERT INTO exclusive_lock (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 1 WHERE false`

func (t *pgTx) exclusive() error {
	t.queued.Queue(lockExclusive)
	t.queueClock()
	return t.flush()
}

func (t *pgTx) queueExec(query string, args ...any) error {
	t.queued.Queue(query, args...)
	return nil
}

func (t *pgTx) queryAtCommit(scan func(row) error, query string, args ...any) error {
	t.atCommit = append(t.atCommit, pgStatement{scan, query, args})
	return nil
}

func (t *pgTx) hint() { t.notify = true }

func (t *pgTx) excludesByItself() bool { return false } // the operator may want to go back to an earlier version of Watchword

// excludeEvents adds a constraint to the table events. PostgreSQL does not check the constraint
// for the events that are there.
func (t *pgTx) excludeEvents(before int64) error {
	t.queued.Queue(`ALTER TABLE events DROP CONSTRAINT IF EXISTS events_program`)
	t.queued.Queue(fmt.Sprintf(`ALTER TABLE events ADD CONSTRAINT events_program CHECK (program >= %d) NOT VALID`, before))
	return t.flush()
}

// commit sends the statements still queued, and COMMIT. NOTIFY follows COMMIT in the same round
// trip: a transaction that contains NOTIFY could not commit while PostgreSQL's queue of
// notifications is full, and any role can fill the queue. Errors: ErrUncertain if the
// connection failed after the send; those of [failure].
func (t *pgTx) commit() error {
	for _, s := range t.atCommit {
		t.queue(s)
	}
	committed := false
	t.queued.Queue("COMMIT").Exec(func(pgconn.CommandTag) error { committed = true; return nil })
	if t.notify {
		t.queued.Queue(`SELECT pg_notify($1, '')`, notifyChannel)
	}
	err := confirmed(t.conn.Conn().PgConn(), func() error {
		err := t.flush()
		if committed {
			return nil // only NOTIFY has failed, and NOTIFY is only a hint
		}
		return err
	})
	if t.readOnly && (len(t.atCommit) == 0 || errors.Is(err, errNotReplicated)) {
		return nil // the rows were read, whatever the outcome of a transaction that only reads
	}
	if err = afterSend(err, !t.readOnly); err != nil && meaningOf(err).undone {
		t.rollback()
	}
	return err
}

// rollback ends the transaction. If ROLLBACK fails, rollback closes the connection, so
// that the pool does not hand out a connection with an open transaction.
func (t *pgTx) rollback() {
	if t.conn.Conn().PgConn().TxStatus() == 'I' {
		return // BEGIN was never sent
	}
	if _, err := t.conn.Exec(t.ctx, "ROLLBACK"); err != nil {
		_ = t.conn.Conn().Close(t.ctx)
	}
}
