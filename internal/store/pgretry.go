package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// meaning tells what an error of PostgreSQL says about the transaction, and what the
// store does next. [meaningOf] is the table below in Go, and all code of this package for
// PostgreSQL uses it:
//
//	error                                    outcome           then
//	of fn itself, ErrExists; no error        as fn decided     return
//	ERROR of a bad value (see [isBadValue])  refused           return; not ErrUnavailable
//	ErrUncertain                             unknown           return
//	errDown, errNotSent                      nothing was done  return: the breaker decides about later tries
//	errStandby                               nothing was done  once, on new connections
//	ERROR read_only_sql_transaction          refused           once, on new connections
//	ERROR serialization, deadlock, lock      refused           repeat
//	ERROR, any other                         refused           return
//	the deadline has passed                  as below          return
//	any other, FATAL: the connection is lost as below          repeat
//
// In the last two rows, nothing was done if the error came before COMMIT. If COMMIT may
// have been sent, the outcome is unknown: [afterSend] turns such an error into
// ErrUncertain.
//
// "Refused" means that the server has answered and rolled back.
type meaning struct {
	undone   bool // nothing of the transaction remains, even if COMMIT was sent
	answered bool // the database has answered, so [pgDB.withConn] resets the breaker
	then     action
}

type action int

const (
	giveUp    action = iota // return the error
	repeat                  // repeat the transaction on a connection that was checked
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
	// errNotSent means that no connection could be had, so that nothing was sent.
	errNotSent = errors.New("no connection")
	// errStandby means that the server is a standby, which may be behind its primary by
	// any amount. A read from a standby might miss acknowledged changes.
	errStandby = errors.New("the server is a standby")
	// errNotReplicated means that the commit is on the primary, and that no synchronous
	// standby has confirmed the commit.
	errNotReplicated = fmt.Errorf("%w: no standby has confirmed it", ErrUncertain)
)

// PostgreSQL's error codes (SQLSTATE) that the store treats specially.
const (
	dataException        = "22"    // the first two characters of every code in this class
	uniqueViolation      = "23505" // [Tx.fail] returns ErrExists for this code
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	readOnlyTransaction  = "25006" // the server has become a standby
	lockNotAvailable     = "55P03" // the lock was not free within lockTime; PostgreSQL ends the transaction of a frozen process after idleTime
	undefinedTable       = "42P01"
	tooManyConnections   = "53300" // the server, the database or the role has no connection left
	startingUp           = "57P03"

	insufficientPrivilege = "42501"
)

func sqlState(err error) string {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// refused reports whether the server has refused a statement and rolled back, that is, sent an
// ERROR. refused returns false for FATAL, since FATAL may follow a commit that was done.
// SeverityUnlocalized is in English, whatever language the server uses; PgBouncer sends only
// Severity.
func refused(err error) bool {
	e := (*pgconn.PgError)(nil)
	return errors.As(err, &e) && cmp.Or(e.SeverityUnlocalized, e.Severity) == "ERROR"
}

// isBadValue reports whether PostgreSQL refused a statement because of its values (class 22,
// data exception), such as a text with a zero byte. A bad value is a fault of this program,
// which has to check values before it sends them: the database works, a second try would fail
// too, and a client must not be told to try again.
func isBadValue(err error) bool {
	return refused(err) && strings.HasPrefix(sqlState(err), dataException)
}

// afterSend turns an error of the driver into ErrUncertain if the transaction may have
// been committed, and into the error of [failure] otherwise. commitSent tells that COMMIT, or a
// statement that commits by itself, may have been sent. For a nil error afterSend
// returns nil.
func afterSend(err error, commitSent bool) error {
	if err == nil || errors.Is(err, ErrUncertain) {
		return err
	}
	if failed := failure(err); !commitSent || meaningOf(failed).undone {
		return failed
	}
	return fmt.Errorf("%w: %w", ErrUncertain, err)
}

// attempts bounds how often the store runs one transaction, the first run included.
const attempts = 8

// retry calls fn by [pgDB.withConn], and repeats the call as the table of [meaning] says. retry
// begins no new try after statementTime. If new connections lead to a standby again, retry
// trips the breaker, so that the next callers fail at once.
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
				p.breaker.trip(err)
				return err
			}
		}
		if then == giveUp || n == attempts || time.Since(began) > statementTime {
			return err
		}
		// The wait is random and 5 ms times n on average, so that transactions that
		// collided run again at different times.
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

// A commit that waits for a synchronous standby may be interrupted by a timeout or an operator.
// PostgreSQL then reports success, and adds a warning: the commit is on the primary, and is
// lost if the primary fails now. Other warnings have the same code, 01000, and may arrive with
// a connection or an earlier statement. So [confirmed] deletes older warnings before the commit
// is sent.
const (
	plainWarning = "01000"
	warned       = "warned" // key in a connection's custom data
)

func noteWarning(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.Code == plainWarning {
		conn.CustomData()[warned] = true
	}
}

// confirmed calls send, which commits a transaction on conn, and looks for the warning
// of a commit without a standby. Errors: those of send; errNotReplicated.
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
