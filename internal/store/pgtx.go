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

// pgTx runs the statements of one transaction, in as few round trips as it can:
// BEGIN goes with the first statement whose outcome somebody needs, what nobody
// waits for goes with the next one, and what comes last goes with COMMIT. So the
// head row, for which all appenders queue, is locked for no longer than one
// pipelined send, whatever becomes of us.
type pgTx struct {
	ctx      context.Context
	conn     *pgxpool.Conn
	readOnly bool
	queued   *pgx.Batch
	atEnd    []pgStatement
	at       time.Time // zero before BEGIN was answered
	event    bool      // one was appended
}

type pgStatement struct {
	scan  func(row) error
	query string
	args  []any
}

// pgNow is PostgreSQL's clock as a column holds it.
const pgNow = `CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)`

// pgBegin sets what holds for this transaction, and asks for the time. A pooler
// may give the next one to another connection, so nothing is set for longer.
var (
	pgBegin = `SELECT CAST(extract(epoch FROM transaction_timestamp()) * 1000000 AS BIGINT), pg_is_in_recovery(), ` + bounds(true)
	// pgBounds sets the same for a connection: where a pooler is between, for one
	// that is ours now and then.
	pgBounds = `SELECT ` + bounds(false)
)

func bounds(local bool) string {
	return fmt.Sprintf(`set_config('statement_timeout', '%d', %t), set_config('lock_timeout', '%d', %[2]t),
		set_config('idle_in_transaction_session_timeout', '%[4]d', %[2]t)`,
		statementTime.Milliseconds(), local, lockTime.Milliseconds(), idleTime.Milliseconds())
}

func beginPostgres(ctx context.Context, conn *pgxpool.Conn, readOnly bool) *pgTx {
	t := &pgTx{ctx: ctx, conn: conn, readOnly: readOnly, queued: &pgx.Batch{}}
	if readOnly {
		t.queued.Queue("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	} else {
		t.queued.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	}
	t.queued.Queue(pgBegin).QueryRow(func(r pgx.Row) error {
		var us int64
		var standby bool
		err := r.Scan(&us, &standby, nil, nil, nil)
		if err == nil && standby {
			return errStandby
		}
		t.at = fromMicros(us)
		return err
	})
	return t
}

// flush sends what is queued and waits for the answers.
func (t *pgTx) flush() error {
	batch := t.queued
	t.queued = &pgx.Batch{}
	if batch.Len() == 0 {
		return nil
	}
	return t.conn.SendBatch(t.ctx, batch).Close()
}

func (t *pgTx) now() (time.Time, error) {
	if t.at.IsZero() {
		if err := t.flush(); err != nil {
			return time.Time{}, err
		}
	}
	return t.at, nil
}

func (t *pgTx) exec(query string, args ...any) (int64, error) {
	var n int64
	t.queued.Queue(query, args...).Exec(func(tag pgconn.CommandTag) error {
		n = tag.RowsAffected()
		return nil
	})
	err := t.flush()
	return n, err
}

// query waits for a row that another holds. Who held it may have written a later
// time there than this transaction began at, and time must not run backwards.
func (t *pgTx) query(scan func(row) error, hold, query string, args ...any) error {
	if hold == "" || t.readOnly {
		t.queue(pgStatement{scan, query, args})
		return t.flush()
	}
	t.queue(pgStatement{scan, query + " FOR NO KEY UPDATE OF " + hold, args})
	t.waited()
	return t.flush()
}

// waited moves the transaction's instant behind a statement that waits.
func (t *pgTx) waited() {
	t.queued.Queue("SELECT " + pgNow).QueryRow(func(r pgx.Row) error {
		var us int64
		err := r.Scan(&us)
		t.at = fromMicros(us)
		return err
	})
}

func (t *pgTx) queue(s pgStatement) {
	q := t.queued.Queue(s.query, s.args...)
	if s.scan == nil {
		return
	}
	q.Query(func(rows pgx.Rows) error { return each(rows, s.scan) })
}

// exclusiveLock is an advisory lock of the database, "watchwor" in ASCII.
const exclusiveLock = 0x7761746368776f72

func (t *pgTx) exclusive() error {
	t.queued.Queue(`SELECT pg_advisory_xact_lock($1)`, int64(exclusiveLock))
	t.waited()
	return t.flush()
}

func (t *pgTx) queueExec(query string, args ...any) error {
	t.queued.Queue(query, args...)
	return nil
}

func (t *pgTx) queryAtCommit(scan func(row) error, query string, args ...any) error {
	t.atEnd = append(t.atEnd, pgStatement{scan, query, args})
	return nil
}

func (t *pgTx) hint() { t.event = true }

// commit sends all that is left. When the connection fails after that, nobody
// knows what became of the transaction.
func (t *pgTx) commit() error {
	for _, s := range t.atEnd {
		t.queue(s)
	}
	if t.event {
		t.queued.Queue(`SELECT pg_notify($1, '')`, notify)
	}
	t.queued.Queue("COMMIT")
	conn := t.conn.Conn().PgConn()
	forgetWarnings(conn)
	err := t.flush()
	switch {
	case err == nil && t.readOnly:
		return nil
	case err == nil:
		return replicated(conn)
	case t.readOnly && len(t.atEnd) == 0: // what was read holds whatever became of it
		return nil
	case refused(err) || errors.Is(err, errStandby): // which changes nothing, whatever it was sent
		t.rollback()
		return unavailable(err)
	}
	return fmt.Errorf("%w: %w", ErrUncertain, err)
}

// rollback ends the transaction. A connection on which that fails is not used
// again.
func (t *pgTx) rollback() {
	if t.conn.Conn().PgConn().TxStatus() == 'I' {
		return // BEGIN was not sent
	}
	if _, err := t.conn.Exec(t.ctx, "ROLLBACK"); err != nil {
		_ = t.conn.Conn().Close(t.ctx)
	}
}
