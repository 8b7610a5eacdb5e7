package store

import (
	"cmp"
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
	answerTime = 100 * time.Millisecond
	// connectTime bounds a connection's beginning: no less than who waits for it
	// may have, since a server that is busy is no server that is away.
	connectTime = statementTime
	// idlePing is how long an idle connection is trusted to be alive.
	idlePing = time.Second
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
// remains: see mayRepeat.
type pgDB struct {
	pool      *pgxpool.Pool
	spender   *spender
	down      breaker
	closeOnce func()
}

func openPostgres(ctx context.Context, uri string) (*Store, error) {
	p, err := connectPostgres(ctx, uri)
	if err != nil {
		return nil, err
	}
	s := &Store{p}
	if err := s.Read(ctx, (*Tx).Usable); err != nil {
		p.closeOnce()
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
	p.closeOnce = sync.OnceFunc(func() { p.spender.close(); pool.Close() })
	p.spender = newSpender(p)
	if err := checkPostgresSchema(ctx, p); err != nil {
		p.closeOnce()
		return nil, fmt.Errorf("opening database: %w", err)
	}
	return p, nil
}

// pgConfig reads a URI. Its error says nothing of it, since it may hold a password.
func pgConfig(uri string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(uri)
	if err != nil {
		return nil, errPostgresURI
	}
	if !strings.Contains(uri, "pool_max_conns=") {
		config.MaxConns = poolSize
	}
	config.ShouldPing = shouldPing
	c := config.ConnConfig
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTime
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "watchword"
	}
	c.OnNotice = noteWarning
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, pgBounds) // for statements that are no part of a transaction of ours
		return err
	}
	c.DialFunc = dial
	return config, nil
}

// dial makes connections that end some time after the machine at the other end has
// vanished, which says nothing any more, not even goodbye.
var dial = (&net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
}).DialContext

func (p *pgDB) path() string { return "" }

func (p *pgDB) close() error {
	p.closeOnce()
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
	var tx *Tx
	err := p.untilDone(ctx, func(ctx context.Context) (err error) {
		tx, err = p.once(ctx, readOnly, fn)
		return err
	})
	if err == nil {
		tx.wasCommitted()
	}
	return err
}

// untilDone repeats what may be repeated. What a standby has refused is tried once
// more, on a new connection: where that leads to one too, the next callers wait.
func (p *pgDB) untilDone(ctx context.Context, do func(context.Context) error) error {
	for n, began := 1, time.Now(); ; n++ {
		err := do(ctx)
		standby := sqlState(err) == readOnlyTransaction || errors.Is(err, errStandby)
		if standby {
			p.pool.Reset()
		}
		if standby && n > 1 {
			p.down.trip()
			return err
		}
		if n == attempts || time.Since(began) > statementTime || !mayRepeat(err) || !pause(ctx, n) {
			return err
		}
		ctx = context.WithValue(ctx, careful{}, true)
	}
}

// careful marks the context of a repetition. It gets a connection that is alive,
// or a new one: where one has died, all that are idle may have.
type careful struct{}

func shouldPing(ctx context.Context, c pgxpool.ShouldPingParams) bool {
	return ctx.Value(careful{}) != nil || c.IdleDuration > idlePing
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
	if err := p.down.pass(); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, timeFor(ctx))
	defer cancel()
	conn, err := p.pool.Acquire(waiting)
	if err != nil {
		if waiting.Err() == nil { // otherwise they may all have been in use
			p.down.trip()
		}
		return unavailable(errors.Join(errNotBegun, err))
	}
	defer conn.Release()
	budget := timeFor(ctx) // what is left of it
	working, cancel := context.WithTimeout(context.WithoutCancel(ctx), budget)
	defer cancel()
	err = fn(working, conn)
	switch answered := conn.Conn().PgConn().TxStatus() != 'I'; {
	case !errors.Is(err, ErrUnavailable) || refused(err):
		p.down.heal()
	case working.Err() != nil && budget == statementTime && !answered: // a hasty caller proves nothing
		p.down.trip()
	}
	return err
}

// timeFor is how long something may take that is done for a caller.
func timeFor(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return statementTime
	}
	return min(statementTime, max(leastTime, time.Until(deadline)-answerTime))
}

// errNotBegun says that nothing was sent to the database.
var errNotBegun = errors.New("no connection")

// breaker lets callers fail at once after a connection could not be had, or the
// database did not answer in time. Every now and then one of them tries, until one
// succeeds. So a database that is away costs nobody a timeout but those who try,
// and one that is back is not stormed.
type breaker struct{ until atomic.Int64 } // ns since 1970; zero: all may pass

// tripTime is the time between two who try, and half of that in addition by
// chance.
const tripTime = 100 * time.Millisecond

var errDown = unavailable(errors.New("the database did not answer a moment ago"))

func (b *breaker) pass() error {
	until := b.until.Load()
	if until == 0 || !b.tripped() && b.until.CompareAndSwap(until, nextTry()) {
		return nil
	}
	return errDown
}

// tripped reports whether nobody may try now.
func (b *breaker) tripped() bool { return time.Now().UnixNano() < b.until.Load() }

func nextTry() int64 { return time.Now().Add(tripTime + rand.N(tripTime/2)).UnixNano() }

func (b *breaker) trip() { b.until.Store(nextTry()) }

func (b *breaker) heal() {
	if b.until.Load() != 0 {
		b.until.Store(0)
	}
}

// States of errors, by SQLSTATE.
const (
	uniqueViolation      = "23505"
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	readOnlyTransaction  = "25006" // the server has become a standby
	lockNotAvailable     = "55P03" // after lockTime: who holds it may be frozen, and loses it after idleTime
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
	return errors.As(err, &e) && severity(e) == "ERROR"
}

// severity is in English, whatever language the server speaks.
func severity(e *pgconn.PgError) string {
	return cmp.Or(e.SeverityUnlocalized, e.Severity) // the first is not everywhere, such as in PgBouncer
}

// mayRepeat reports whether nothing remains of a transaction that failed and
// another attempt may succeed.
func mayRepeat(err error) bool {
	if err == nil || errors.Is(err, ErrUncertain) || !errors.Is(err, ErrUnavailable) || errors.Is(err, errNotBegun) || errors.Is(err, errDown) {
		return false
	}
	if !refused(err) {
		return !errors.Is(err, context.DeadlineExceeded) // the connection was lost before the commit
	}
	switch sqlState(err) {
	case serializationFailure, deadlockDetected, readOnlyTransaction, lockNotAvailable:
		return true
	}
	return false
}

// errStandby says that the server only follows another one, and so may know less
// than was acknowledged, without end: whoever reads there must not take it for news.
var errStandby = errors.New("the server is a standby")

// A commit that waits for a standby and is interrupted, by a timeout or an
// operator, is reported as done: it is, on the primary, and one that fails now
// takes it along. All that tells is a warning. There are others of that kind, which
// come with a connection or with a statement: so those of before the commit are
// forgotten when it is sent.
const (
	plainWarning = "01000"
	warned       = "warned" // in a connection's own data
)

func noteWarning(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.Code == plainWarning {
		conn.CustomData()[warned] = true
	}
}

var errNotReplicated = fmt.Errorf("%w: no standby has confirmed it", ErrUncertain)

func forgetWarnings(conn *pgconn.PgConn) { delete(conn.CustomData(), warned) }

// replicated judges a commit that the server has reported as done.
func replicated(conn *pgconn.PgConn) error {
	if conn.CustomData()[warned] == nil {
		return nil
	}
	return errNotReplicated
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
