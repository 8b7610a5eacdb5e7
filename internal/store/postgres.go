package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/watchword-auth/watchword/internal/spans"
)

// pgDB is a PostgreSQL database that replicas share.
//
// Transactions run at READ COMMITTED, and lock the rows of users and sessions that they
// read by id, so that such a row stays as read until the commit. A transaction that
// depends on any other row calls [Tx.Exclusive]. The isolation level SERIALIZABLE would make
// the locks needless, and would refuse all but one of the transactions that append events at
// the same time, since every transaction with an event updates the one row of the table head.
//
// Each policy has a file of its own: pgpool.go (configuration and dialing), pgfiles.go (new
// credentials), pgslots.go (too few connections), pgbudget.go (time bounds), pgbreaker.go (a
// database that does not answer), pgretry.go (what an error means), pglisten.go (hints).
// pgtx.go runs transactions, and pgspend.go runs batches of refreshes.
type pgDB struct {
	pool      *pgxpool.Pool
	public    string // the URI without a password
	slots     *slots
	spender   *spender
	breaker   breaker
	listener  listener
	closeOnce func()
}

// openPostgres opens a PostgreSQL database and checks the schema. Errors: ErrOldSchema;
// ErrSchema; ErrUnavailable.
func openPostgres(ctx context.Context, uri string, logger *slog.Logger) (*pgDB, error) {
	config, err := pgConfig(uri, logger)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	p := &pgDB{pool: pool, public: publicURI(uri, config.ConnConfig)}
	p.slots = newSlots(int(config.MaxConns), p.connections, logger)
	p.spender = newSpender(p)
	p.closeOnce = sync.OnceFunc(func() { p.spender.close(); pool.Close() })
	if err := checkPostgresSchema(ctx, p); err != nil {
		p.closeOnce()
		return nil, err
	}
	return p, nil
}

// connections returns how many connections of the pool are idle, and how many connections the
// pool has.
func (p *pgDB) connections() (idle, all int) {
	stat := p.pool.Stat()
	return int(stat.IdleConns()), int(stat.IdleConns() + stat.AcquiredConns())
}

func (p *pgDB) path() string { return "" }

func (p *pgDB) address() string { return p.public }

func (p *pgDB) close() error { p.closeOnce(); return nil }

func (p *pgDB) read(ctx context.Context, fn func(*Tx) error) error {
	return p.transact(ctx, true, fn)
}

func (p *pgDB) readOne(ctx context.Context, fn func(*Tx) error) error {
	return p.transact(ctx, true, fn)
}

func (p *pgDB) write(ctx context.Context, fn func(*Tx) error) error {
	return p.transact(ctx, false, fn)
}

func (p *pgDB) writeLast(ctx context.Context, fn func(*Tx) error) error {
	return p.transact(ctx, false, fn)
}

// transact runs fn in a transaction, and repeats the transaction as [pgDB.retry] decides.
func (p *pgDB) transact(ctx context.Context, readOnly bool, fn func(*Tx) error) error {
	var tx *Tx
	err := p.retry(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		run := beginPostgres(ctx, conn, readOnly)
		tx = &Tx{run: run}
		if err := tx.attempt(fn); err != nil {
			run.rollback()
			return err
		}
		return run.commit()
	})
	if err == nil {
		tx.wasCommitted()
	}
	return err
}

// withConn lends fn a connection, and a context that ends when the caller's time budget (see
// [budget]) is used up. The caller's cancellation does not reach the driver: a COMMIT that is
// interrupted has an unknown outcome. Errors: those of fn; ErrUnavailable.
func (p *pgDB) withConn(ctx context.Context, fn func(context.Context, *pgxpool.Conn) error) error {
	if ctx.Err() != nil {
		return unavailable(ctx.Err())
	}
	if p.breaker.refuses() {
		return p.breaker.err()
	}
	budget := budgetOf(ctx)
	waiting, cancel := context.WithTimeout(ctx, budget.left())
	defer cancel()
	_, connecting := spans.Start(ctx, "store.connection")
	conn, err := p.acquire(waiting)
	spans.End(connecting, err != nil)
	if err != nil {
		return err
	}
	defer p.release(conn)
	began := time.Now()
	working, cancel := context.WithTimeout(context.WithoutCancel(ctx), budget.left())
	defer cancel()
	err = fn(working, conn)
	begun := conn.Conn().PgConn().TxStatus() != 'I' // PostgreSQL has answered BEGIN, so PostgreSQL is up
	switch {
	case meaningOf(err).answered:
		if p.breaker.answered() {
			p.slots.restoreAll()
		}
	case working.Err() != nil && !begun:
		p.breaker.unanswered(began, err)
	}
	return err
}
