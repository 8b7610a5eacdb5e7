package store

import (
	"context"
	"fmt"
	"time"
)

// The time bounds. PostgreSQL enforces the first three, even against a replica that has
// frozen in the middle of a transaction; the store enforces the others.
//
//	statementTime  bounds a statement, and all that the store does for one caller
//	lockTime       bounds the wait for a row lock held by another transaction
//	idleTime       bounds a replica's silence inside a transaction: PostgreSQL then
//	               ends the transaction and releases the locks
//	batchLockTime  replaces lockTime in a batch of refreshes, since the members of
//	               the batch, and the next batch, want other rows
//	leastTime      is granted to every caller: a connection is closed when its time
//	               runs out, and an impatient caller must not cost a connection
//	answerTime     is left of the caller's deadline to bring the answer to the client
//	connectTime    bounds the making of a connection. A shorter bound would take a
//	               busy server for one that is away
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

// budget computes the time that the store has for a caller with a deadline.
type budget struct{ deadline time.Time } // zero: the caller has none

func budgetOf(ctx context.Context) budget {
	deadline, _ := ctx.Deadline()
	return budget{deadline}
}

// left returns the time for work that begins now.
func (b budget) left() time.Duration {
	if b.deadline.IsZero() {
		return statementTime
	}
	return min(statementTime, max(leastTime, time.Until(b.deadline)-answerTime))
}

// short reports whether the caller has only leastTime.
func (b budget) short() bool { return b.left() == leastTime }

// forBatch returns the context in which a caller waits for a batch. The batch has a
// budget of its own, which may be longer, so the caller stops waiting before the
// deadline: by answerTime, or half of the time left if that is less.
func (b budget) forBatch(ctx context.Context) (context.Context, context.CancelFunc) {
	if b.deadline.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, b.deadline.Add(-min(answerTime, time.Until(b.deadline)/2)))
}

// pgBounds sets the bounds enforced by PostgreSQL for a connection. pgTxBounds is a
// SELECT list that sets the bounds for a transaction: behind a pooler the next
// transaction may run on another connection, so every transaction sets them.
var (
	pgBounds   = "SELECT " + setBounds(false)
	pgTxBounds = setBounds(true)
	// pgBatchBounds sets a batch's lockTime. A generic plan fits batches of every size;
	// PostgreSQL would plan each small batch anew.
	pgBatchBounds = fmt.Sprintf(`SELECT set_config('lock_timeout', '%d', true), set_config('plan_cache_mode', 'force_generic_plan', true)`,
		batchLockTime.Milliseconds())
)

func setBounds(local bool) string {
	return fmt.Sprintf(`set_config('statement_timeout', '%d', %t), set_config('lock_timeout', '%d', %[2]t),
		set_config('idle_in_transaction_session_timeout', '%[4]d', %[2]t)`,
		statementTime.Milliseconds(), local, lockTime.Milliseconds(), idleTime.Milliseconds())
}
