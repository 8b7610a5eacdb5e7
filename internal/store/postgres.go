package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// poolSize is the number of connections of one replica, unless the URI says
	// pool_max_conns. Refreshes share transactions on two of them and logins wait
	// for their hashes, so that more gain little: docs/benchmarks.md has the
	// figures. Ten replicas stay below PostgreSQL's own bound of 100.
	poolSize = 8
	// statementTime bounds a statement, lockTime the wait for a row that another
	// holds, and idleTime how long one who has begun a transaction may be silent
	// in it: a replica that freezes stops nobody for longer.
	statementTime = 5 * time.Second
	lockTime      = 2 * time.Second
	idleTime      = 3 * time.Second
	// leastTime is what a transaction has in any case: a caller with less of it
	// left does not cost us a connection, which is closed when its time is over.
	leastTime = 250 * time.Millisecond
	// answerTime is left of a caller's deadline for telling it what happened.
	answerTime = 50 * time.Millisecond
	// connectTime bounds a connection's beginning.
	connectTime = 2 * time.Second
	// attempts bounds how often a transaction begins again.
	attempts = 8
)

// pgDB is a PostgreSQL database, which replicas share.
//
// Transactions run at READ COMMITTED and lock the rows that they read for a change
// (users and sessions by id), so that what was read holds until the commit. Where
// a change depends on more than rows, it is exclusive. SERIALIZABLE would do the
// same with less thought, and refuse all but one of those who queue for the head
// row.
//
// A transaction that failed begins again only where it is sure that nothing of it
// remains: see outcome.
type pgDB struct {
	pool    *pgxpool.Pool
	spender *spender
	down    breaker
	close1  func()
}

func openPostgres(ctx context.Context, uri string) (*Store, error) {
	p, err := connectPostgres(ctx, uri)
	if err != nil {
		return nil, err
	}
	s := &Store{p}
	if err := s.Read(ctx, (*Tx).Usable); err != nil {
		p.close1()
		return nil, fmt.Errorf("opening database: %w", err)
	}
	return s, nil
}

// connectPostgres opens a database whose schema is one that we know.
func connectPostgres(ctx context.Context, uri string) (*pgDB, error) {
	config, err := pgConfig(uri)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("opening database: %w", err)
	}
	p := &pgDB{pool: pool}
	p.close1 = sync.OnceFunc(func() { p.spender.close(); pool.Close() })
	p.spender = newSpender(p)
	if err := checkPostgresSchema(ctx, p); err != nil {
		p.close1()
		return nil, fmt.Errorf("opening database: %w", err)
	}
	return p, nil
}

// pgConfig reads a URI. Its error says nothing of it, since it may hold a password.
func pgConfig(uri string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(uri)
	if err != nil {
		return nil, errURI
	}
	if !strings.Contains(uri, "pool_max_conns=") {
		config.MaxConns = poolSize
	}
	c := config.ConnConfig
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTime
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "watchword"
	}
	// Whose machine has vanished says nothing any more, not even goodbye.
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	c.DialFunc = dialer.DialContext
	return config, nil
}

func (p *pgDB) path() string { return "" }

func (p *pgDB) close() error {
	p.close1()
	return nil
}

func (p *pgDB) read(ctx context.Context, fn func(*Tx) error) error {
	return p.transact(ctx, true, fn)
}

func (p *pgDB) write(ctx context.Context, fn func(*Tx) error) error {
	return p.transact(ctx, false, fn)
}

// transact runs fn in a transaction, and again where that is safe and promising.
func (p *pgDB) transact(ctx context.Context, readOnly bool, fn func(*Tx) error) error {
	for n := 1; ; n++ {
		tx, err := p.once(ctx, readOnly, fn)
		if err == nil {
			tx.wasCommitted()
			return nil
		}
		if n == attempts || !mayRepeat(err) || !pause(ctx, n) {
			return err
		}
	}
}

// pause waits before the n-th repetition: about n times 5 ms, by chance, so that
// those who collided don't meet again.
func pause(ctx context.Context, n int) bool {
	select {
	case <-time.After(rand.N(time.Duration(n) * 10 * time.Millisecond)):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// once runs fn in one transaction.
func (p *pgDB) once(ctx context.Context, readOnly bool, fn func(*Tx) error) (*Tx, error) {
	var tx *Tx
	err := p.with(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		run := beginPostgres(ctx, conn, readOnly)
		tx = &Tx{run: run}
		err := tx.attempt(fn)
		if err != nil {
			run.rollback()
			return err
		}
		return run.commit()
	})
	return tx, err
}

// with lends fn a connection, and bounds what it does. The caller's context
// decides only how long that may be: one who has gone does not interrupt what was
// begun.
func (p *pgDB) with(ctx context.Context, fn func(context.Context, *pgxpool.Conn) error) error {
	if ctx.Err() != nil {
		return unavailable(ctx.Err())
	}
	if err := p.down.closed(); err != nil {
		return err
	}
	budget := statementTime
	if deadline, ok := ctx.Deadline(); ok {
		budget = min(budget, max(leastTime, time.Until(deadline)-answerTime))
	}
	waiting, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	conn, err := p.pool.Acquire(waiting)
	if err != nil {
		if waiting.Err() == nil { // otherwise they may all have been in use
			p.down.open()
		}
		return unavailable(errors.Join(errNotBegun, err))
	}
	defer conn.Release()
	working, cancel := context.WithTimeout(context.WithoutCancel(ctx), budget)
	defer cancel()
	err = fn(working, conn)
	if working.Err() != nil && budget == statementTime { // a hasty caller proves nothing
		p.down.open()
	}
	return err
}

// errNotBegun says that nothing was sent to the database.
var errNotBegun = errors.New("no connection")

// breaker lets callers fail at once for a moment after a connection could not be
// had, or the database did not answer in time. So a database that is away costs
// nobody a timeout but those who try, and one that is back is not stormed.
type breaker struct{ until atomic.Int64 } // ns since 1970

// openTime is how long the breaker stays open, and half of that in addition by
// chance.
const openTime = 100 * time.Millisecond

var errDown = unavailable(errors.New("the database did not answer a moment ago"))

func (b *breaker) closed() error {
	if time.Now().UnixNano() < b.until.Load() {
		return errDown
	}
	return nil
}

func (b *breaker) open() {
	b.until.Store(time.Now().Add(openTime + rand.N(openTime/2)).UnixNano())
}

// States of errors, by SQLSTATE.
const (
	uniqueViolation      = "23505"
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	readOnlyTransaction  = "25006" // the server has become a standby
	undefinedTable       = "42P01"
)

func sqlState(err error) string {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// refused reports whether the server has refused a statement and rolled back. A
// FATAL error is no such answer: it may come behind a commit that was done.
func refused(err error) bool {
	e := (*pgconn.PgError)(nil)
	return errors.As(err, &e) && e.Severity == "ERROR"
}

// mayRepeat reports whether nothing remains of a transaction that failed and
// another attempt may succeed.
func mayRepeat(err error) bool {
	if errors.Is(err, ErrUncertain) || !errors.Is(err, ErrUnavailable) || errors.Is(err, errNotBegun) || errors.Is(err, errDown) {
		return false
	}
	if !refused(err) {
		return !errors.Is(err, context.DeadlineExceeded) // the connection was lost before the commit
	}
	switch sqlState(err) {
	case serializationFailure, deadlockDetected, readOnlyTransaction:
		return true
	}
	return false
}

// hints listens, and connects again when that ends. Behind a pooler that gives
// each transaction another connection nothing is ever heard.
func (p *pgDB) hints(ctx context.Context, hint func()) {
	for ctx.Err() == nil {
		_ = p.listen(ctx, hint) // polling goes on without it
		select {
		case <-time.After(time.Second/2 + rand.N(time.Second)):
		case <-ctx.Done():
		}
	}
}

func (p *pgDB) listen(ctx context.Context, hint func()) error {
	conn, err := pgx.ConnectConfig(ctx, p.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "LISTEN "+notify); err != nil {
		return err
	}
	hint() // for what came before
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		hint()
	}
}
