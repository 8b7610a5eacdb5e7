package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// spender lets refreshes that arrive together share a transaction, and so a round trip and a
// flush of PostgreSQL's log. A worker takes all refreshes that were queued before the worker's
// batch could begin (see [batchLead]), and spends their refresh tokens by one statement. A refresh
// that arrives alone is sent at once.
//
// The members of a batch are sorted by session, and the statement locks the rows in
// this order, so that no two batches wait for each other in a circle. PostgreSQL may
// read a table of a few pages in another order; then a deadlock is possible, and
// PostgreSQL fails one of the two batches.
//
// After a failure the members of the batch run again one by one: the batch was rolled
// back or has an unknown outcome, and spending a token twice is harmless.
type spender struct {
	db        *pgDB
	queue     *queue[refresh]
	tasks     sync.WaitGroup
	lead      time.Duration // batchLead; a test sets another time
	gathering sync.Mutex    // held by the worker that waits for refreshes, or runs a batch younger than lead
	callers   atomic.Int64  // the number of running calls of spend
}

const (
	// spendWorkers is the number of batches running at once: one batch waits for the
	// disk, or for the lock of a row, while the next batch runs.
	spendWorkers = 2
	// batchLead is the time for which a batch runs alone. Refreshes that arrive within the time
	// gather for the next batch, since a batch of twice the members costs both processes less
	// than two batches do. Most batches end within batchLead. A batch that waits longer, for a
	// slow disk or for a lock, lets the other worker begin.
	batchLead = 5 * time.Millisecond
	// maxBatch bounds the members of a batch, and so how long the first member waits for the
	// last. A batch also fits into one write and one TLS record of 16 KiB, so that a replica
	// that freezes while sending has sent the whole batch or nothing. PostgreSQL has no timeout
	// for the rest of a half-sent batch, and would hold the row locks until the rest arrives. A
	// member takes 60 bytes, plus the length of its audience.
	maxBatch = 80
)

// refresh is a member of a batch: a caller's request, and the place for the answer.
type refresh struct {
	ctx   context.Context
	spend *Spend
	spent Spent
}

func newSpender(db *pgDB) *spender {
	s := &spender{db: db, queue: newQueue[refresh](maxBatch), lead: batchLead}
	for range spendWorkers {
		s.tasks.Go(s.work)
	}
	return s
}

// work takes batches from the queue and runs the batches, until the queue is closed and empty.
func (s *spender) work() {
	s.gathering.Lock()
	for batch := range s.queue.batches {
		lead := time.AfterFunc(s.lead, s.gathering.Unlock)
		s.run(batch)
		if lead.Stop() {
			s.gathering.Unlock()
		}
		s.gathering.Lock()
	}
	s.gathering.Unlock()
}

func (s *spender) close() {
	s.queue.close()
	s.tasks.Wait()
}

// spend does what [Store.Spend] promises. A refresh that arrives alone skips the queue, since
// waking a worker takes longer than the statement. A caller with a short budget always queues:
// the caller can stop waiting for a batch, and cannot stop waiting for a statement of its own.
func (p *pgDB) spend(ctx context.Context, spend *Spend, _ func(*Spent)) (*Spent, error) {
	s, budget := p.spender, budgetOf(ctx)
	defer s.callers.Add(-1)
	// While the breaker is tripped, the workers may be waiting for the database. spendOne fails
	// at once then.
	if s.callers.Add(1) == 1 && !budget.short() || p.breaker.tripped() {
		r := refresh{ctx: ctx, spend: spend}
		return &r.spent, s.spendOne(&r)
	}
	waiting, cancel := budget.forBatch(ctx)
	defer cancel()
	j, err := s.queue.enqueue(waiting, refresh{ctx: ctx, spend: spend})
	if err != nil {
		return nil, err
	}
	answered, err := j.wait(waiting, nil)
	if !answered {
		return nil, fmt.Errorf("%w: %w", ErrUncertain, waiting.Err())
	}
	return &j.value.spent, err
}

// run spends a batch and answers its members. After a failure the members run one by
// one in goroutines of their own, since the next batch is waiting for this worker.
func (s *spender) run(batch []*job[refresh]) {
	slices.SortFunc(batch, func(a, b *job[refresh]) int { return cmp.Compare(a.value.spend.SessionID, b.value.spend.SessionID) })
	found, err := s.spendBatch(batch)
	for i, j := range batch {
		switch {
		case err != nil:
			s.tasks.Go(func() { j.result <- s.spendOne(&j.value) })
		case found[i]:
			j.result <- nil
		default:
			j.result <- ErrNotFound
		}
	}
}

// spendBatch spends a batch in one transaction, and returns for each member whether its refresh
// token was spent. If two members have the same refresh token, found is true for one of the
// two.
func (s *spender) spendBatch(batch []*job[refresh]) (found []bool, err error) {
	ctx, sharing := startShared(batch)
	defer sharing.End()
	found = make([]bool, len(batch))
	var b pgx.Batch
	b.Queue(pgBatchBounds)
	b.Queue(spendPostgresBatch, columnsOf(batch)...).Query(func(rows pgx.Rows) error {
		return scanRows(rows, func(r row) error {
			var spent Spent
			var position int
			if err := r.Scan(append(spent.columnsWithLines(), &position)...); err != nil {
				return err
			}
			found[position-1], batch[position-1].value.spent = true, spent
			return nil
		})
	})
	return found, s.db.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		send := func() error { return conn.SendBatch(ctx, &b).Close() }
		return afterSend(confirmed(conn.Conn().PgConn(), send), true)
	})
}

// columnsOf returns the arguments of the statement for a batch: an array for each
// argument of [Spend.args].
func columnsOf(batch []*job[refresh]) []any {
	n := len(batch)
	ids, audiences := make([]string, n), make([]string, n)
	generations, idle, most, grace := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	for i, j := range batch {
		s := j.value.spend
		ids[i], generations[i], audiences[i] = s.SessionID, s.Generation, s.quotedAudience()
		idle[i], most[i], grace[i] = s.Idle.Microseconds(), s.Max.Microseconds(), s.grace()
	}
	return []any{ids, generations, audiences, idle, most, grace}
}

// spendOne spends one refresh token by one statement without BEGIN and COMMIT, so that one
// round trip is enough.
func (s *spender) spendOne(r *refresh) error {
	missing := false
	err := s.db.retry(r.ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		err := confirmed(conn.Conn().PgConn(), func() error {
			err := conn.QueryRow(ctx, spendPostgres, r.spend.args()...).Scan(r.spent.columns()...)
			missing = errors.Is(err, pgx.ErrNoRows)
			if missing {
				return nil
			}
			return err
		})
		return afterSend(err, !pgconn.SafeToRetry(err))
	})
	if err == nil && missing {
		return ErrNotFound
	}
	return err
}
