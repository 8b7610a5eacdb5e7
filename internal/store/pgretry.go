package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// meaning tells what an error means, and what is done about the error. [meaningOf] is
// the table, and every other part of the PostgreSQL half goes by the table:
//
//	error                                    outcome           then
//	of fn itself, ErrExists; no error        as fn decided     return
//	ErrUncertain                             unknown           return
//	errDown, errNotSent                      nothing was done  return: trying is up to the breaker
//	errStandby                               nothing was done  once, on new connections
//	ERROR read_only_sql_transaction          refused           once, on new connections
//	ERROR serialization, deadlock, lock      refused           repeat
//	ERROR, any other                         refused           return
//	the deadline has passed                  as below          return
//	any other, FATAL: the connection is lost as below          repeat
//
// After the last two rows, nothing was done if the error came before COMMIT. If COMMIT
// may have been sent, the outcome is unknown: [afterSend] makes such an error
// ErrUncertain.
//
// "Refused" means that the server has answered and rolled back.
type meaning struct {
	undone   bool // nothing of the transaction remains, even if COMMIT was sent
	answered bool // the database works: the breaker is reset
	then     action
}

type action int

const (
	giveUp    action = iota // return the error
	repeat                  // repeat on a connection that was checked
	reconnect               // the pool's connections lead to a standby: repeat once on new connections
)

func meaningOf(err error) meaning {
	refused := refused(err)
	switch state := sqlState(err); {
	case !errors.Is(err, ErrUnavailable):
		return meaning{undone: true, answered: true, then: giveUp}
	case errors.Is(err, ErrUncertain):
		return meaning{then: giveUp}
	case errors.Is(err, errDown), errors.Is(err, errNotSent):
		return meaning{undone: true, then: giveUp}
	case errors.Is(err, errStandby):
		return meaning{undone: true, then: reconnect}
	case refused && state == readOnlyTransaction:
		return meaning{undone: true, answered: true, then: reconnect}
	case refused && (state == serializationFailure || state == deadlockDetected || state == lockNotAvailable):
		return meaning{undone: true, answered: true, then: repeat}
	case refused:
		return meaning{undone: true, answered: true, then: giveUp}
	case errors.Is(err, context.DeadlineExceeded):
		return meaning{then: giveUp}
	}
	return meaning{then: repeat}
}

var (
	// errNotSent means: there was no connection, and nothing was sent.
	errNotSent = errors.New("no connection")
	// errStandby means: the server follows a primary, and may be behind without bound.
	// A read from a standby might miss acknowledged changes.
	errStandby = errors.New("the server is a standby")
	// errNotReplicated means: the commit is on the primary, and no standby confirmed.
	errNotReplicated = fmt.Errorf("%w: no standby has confirmed it", ErrUncertain)
)

// Error codes (SQLSTATE).
const (
	uniqueViolation      = "23505" // [Tx.fail] turns this one into ErrExists
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	readOnlyTransaction  = "25006" // the server has become a standby
	lockNotAvailable     = "55P03" // after lockTime; a frozen holder loses the lock after idleTime
	undefinedTable       = "42P01"
)

func sqlState(err error) string {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// refused reports whether the server has refused a statement and rolled back. FATAL is
// no refusal, since FATAL may follow a commit that was done. The unlocalized severity is
// in English, whatever language the server speaks; PgBouncer does not send that field.
func refused(err error) bool {
	e := (*pgconn.PgError)(nil)
	return errors.As(err, &e) && cmp.Or(e.SeverityUnlocalized, e.Severity) == "ERROR"
}

// afterSend turns an error of the driver into ErrUnavailable or, if the transaction may
// have been committed, into ErrUncertain. commitSent reports whether COMMIT, or a
// statement that commits by itself, may have been sent. A nil error stays nil.
func afterSend(err error, commitSent bool) error {
	if err == nil || errors.Is(err, ErrUncertain) {
		return err
	}
	if failed := unavailable(err); !commitSent || meaningOf(failed).undone {
		return failed
	}
	return fmt.Errorf("%w: %w", ErrUncertain, err)
}

// attempts bounds how often a transaction runs.
const attempts = 8

// retry calls fn by [pgDB.withConn], and repeats as the table says, for statementTime at
// most. After a second answer by a standby the breaker trips, so that later callers wait.
func (p *pgDB) retry(ctx context.Context, fn func(context.Context, *pgxpool.Conn) error) error {
	for n, began := 1, time.Now(); ; n++ {
		err := p.withConn(ctx, fn)
		if err == nil {
			return nil
		}
		then := meaningOf(err).then
		if then == reconnect {
			p.pool.Reset()
			if n > 1 {
				p.breaker.trip()
				return err
			}
		}
		if then == giveUp || n == attempts || time.Since(began) > statementTime {
			return err
		}
		// On average n times 5 ms, at random, so that transactions that collided come apart.
		if !pause(ctx, rand.N(time.Duration(n)*10*time.Millisecond)) {
			return err
		}
		ctx = context.WithValue(ctx, checkedConn{}, true)
	}
}

// pause waits, and returns false if ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// A commit that waits for a synchronous standby may be interrupted, by a timeout or an
// operator. PostgreSQL then reports success, and adds a warning: the commit is on the
// primary, and is lost if the primary fails now. The code of that warning is shared by
// others, sent with a connection or an earlier statement. So [confirmed] forgets older
// warnings before the commit is sent.
const (
	plainWarning = "01000"
	warned       = "warned" // key in a connection's custom data
)

func noteWarning(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.Code == plainWarning {
		conn.CustomData()[warned] = true
	}
}

// confirmed calls send, which commits a transaction on conn. Errors: those of send;
// errNotReplicated.
func confirmed(conn *pgconn.PgConn, send func() error) error {
	delete(conn.CustomData(), warned)
	if err := send(); err != nil {
		return err
	}
	if conn.CustomData()[warned] != nil {
		return errNotReplicated
	}
	return nil
}
