package store

import (
	"context"
	"fmt"
	"time"
)

// The time bounds of the store on PostgreSQL. PostgreSQL itself enforces the first
// three, even against a replica that has frozen in the middle of a transaction; this
// package enforces the others.
//
//	statementTime  bounds a statement, and all that the store does for one caller
//	lockTime       bounds the wait for a row lock held by another transaction
//	idleTime       bounds a replica's silence inside a transaction: PostgreSQL then
//	               ends the transaction and releases the locks
//	batchLockTime  replaces lockTime in a batch of refreshes: the other refreshes of
//	               the batch, and the next batch, need other rows and would wait too
//	leastTime      is granted to every caller, even past its deadline: a connection is
//	               closed when the time runs out during a statement, and an impatient
//	               caller must not cost a connection
//	answerTime     is the part of the caller's deadline that is left for sending the
//	               answer to the client
//	connectTime    bounds the making of a connection. A shorter bound would take a
//	               busy server for one that is down
//	schemaTime     bounds the check of the schema when the database is opened
const (
	statementTime = 5 * time.Second
	lockTime      = 2 * time.Second
	idleTime      = 3 * time.Second
	batchLockTime = 250 * time.Millisecond
	leastTime     = 250 * time.Millisecond
	answerTime    = 100 * time.Millisecond
	connectTime   = statementTime
	schemaTime    = 10 * time.Second
)

// budget computes how long the store may work for a caller, from the caller's deadline.
type budget struct{ deadline time.Time } // zero: the caller has no deadline

func budgetOf(ctx context.Context) budget {
	deadline, _ := ctx.Deadline()
	return budget{deadline}
}

// left returns how long work that begins now may take.
func (b budget) left() time.Duration {
	if b.deadline.IsZero() {
		return statementTime
	}
	return min(statementTime, max(leastTime, time.Until(b.deadline)-answerTime))
}

// short reports whether only leastTime remains for the caller.
func (b budget) short() bool { return b.left() == leastTime }

// forBatch returns the context in which a caller waits for a batch of refreshes. The batch has
// a budget of its own, which may end later than the caller's budget. So the caller stops
// waiting before its deadline: answerTime before, or half of the time left if that half is
// shorter.
func (b budget) forBatch(ctx context.Context) (context.Context, context.CancelFunc) {
	if b.deadline.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, b.deadline.Add(-min(answerTime, time.Until(b.deadline)/2)))
}

// pgBounds is a statement that sets PostgreSQL's time bounds for a connection. pgTxBounds is a
// SELECT list that sets the time bounds for a transaction: behind a pooler such as PgBouncer,
// the next transaction may run on another connection, so every transaction sets its bounds.
var (
	pgBounds   = "SELECT " + setBounds(false)
	pgTxBounds = setBounds(true)
	// pgBatchBounds is a statement that sets batchLockTime and a generic plan for a
	// batch of refreshes. A generic plan fits batches of every size; without the
	// setting, PostgreSQL would plan each small batch again.
	pgBatchBounds = fmt.Sprintf(`SELECT set_config('lock_timeout', '%d', true), set_config('plan_cache_mode', 'force_generic_plan', true)`,
		batchLockTime.Milliseconds())
)

func setBounds(local bool) string {
	return fmt.Sprintf(`set_config('statement_timeout', '%d', %t), set_config('lock_timeout', '%d', %[2]t),
		set_config('idle_in_transaction_session_timeout', '%[4]d', %[2]t)`,
		statementTime.Milliseconds(), local, lockTime.Milliseconds(), idleTime.Milliseconds())
}
