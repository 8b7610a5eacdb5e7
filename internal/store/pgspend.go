package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// spender lets refreshes that arrive together share a transaction, and so a round
// trip and a flush of the write-ahead log. Each of its workers takes what has
// queued up while it was away, and sends it as one pipeline; whoever is alone
// waits for nobody.
//
// Members are sorted by their session, so that two batches never wait for each
// other. Where a batch fails, all of it was rolled back or nobody knows, and its
// members run again, each for itself: to spend twice does no harm.
type spender struct {
	db    *pgDB
	queue chan *spending
	tasks sync.WaitGroup

	closing sync.RWMutex // held for reading while a spending is being queued
	closed  bool
}

const (
	// spendWorkers is how many batches are under way at once: while one waits for
	// the disk, the next is being made.
	spendWorkers = 2
	// maxBatch bounds how long the first of a batch waits for the last. A batch also
	// fits into one write and one TLS record, 16 KiB, so that whoever freezes while
	// sending it leaves all of it to the server or nothing: a server that waits for
	// the rest would hold the rows, and has no timeout for that.
	maxBatch = 48
	// patience is how long a batch waits for a row that somebody holds, in ms: its
	// other members are strangers to that.
	patience = 250
)

// pgPatience holds for one transaction, as all settings do.
var pgPatience = fmt.Sprintf(`SELECT set_config('lock_timeout', '%d', true)`, patience)

// spending is a member of a batch.
type spending struct {
	ctx   context.Context
	spend *Spend
	taken atomic.Bool // by a worker, or by the caller who gives it up
	spent *Spent
	done  chan error
}

func newSpender(db *pgDB) *spender {
	s := &spender{db: db, queue: make(chan *spending, maxBatch)}
	for range spendWorkers {
		s.tasks.Go(s.work)
	}
	return s
}

func (s *spender) close() {
	s.closing.Lock()
	if !s.closed {
		s.closed = true
		close(s.queue)
	}
	s.closing.Unlock()
	s.tasks.Wait()
}

func (p *pgDB) spend(ctx context.Context, spend *Spend) (*Spent, error) {
	if p.down.tripped() {
		return nil, errDown
	}
	job := &spending{ctx: ctx, spend: spend, spent: &Spent{}, done: make(chan error, 1)}
	if err := p.spender.enqueue(job); err != nil {
		return nil, err
	}
	waiting := ctx
	if deadline, ok := ctx.Deadline(); ok { // strangers in the batch may have more time
		var cancel context.CancelFunc
		waiting, cancel = context.WithDeadline(ctx, deadline.Add(-min(answerTime, time.Until(deadline)/2)))
		defer cancel()
	}
	select {
	case err := <-job.done:
		return job.spent, err
	case <-waiting.Done():
		if job.taken.CompareAndSwap(false, true) {
			return nil, unavailable(waiting.Err())
		}
		return nil, fmt.Errorf("%w: %w", ErrUncertain, waiting.Err())
	}
}

func (s *spender) enqueue(job *spending) error {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return errClosed
	}
	select {
	case s.queue <- job:
		return nil
	case <-job.ctx.Done():
		return unavailable(job.ctx.Err())
	}
}

func (s *spender) work() {
	for job := range s.queue {
		s.run(s.gather(job))
	}
}

func (s *spender) run(batch []*spending) {
	if len(batch) == 1 {
		batch[0].done <- s.alone(batch[0])
		return
	}
	if s.together(batch) {
		return
	}
	for _, job := range batch {
		s.tasks.Go(func() { job.done <- s.alone(job) })
	}
}

// gather takes what is queued now, less what was given up meanwhile.
func (s *spender) gather(first *spending) []*spending {
	var batch []*spending
	for job := first; job != nil; {
		if job.taken.CompareAndSwap(false, true) {
			batch = append(batch, job)
		}
		job = nil
		if len(batch) < maxBatch {
			select {
			case job = <-s.queue: // nil when closed
			default:
			}
		}
	}
	slices.SortFunc(batch, func(a, b *spending) int { return cmp.Compare(a.spend.SessionID, b.spend.SessionID) })
	return batch
}

// together sends a batch as one pipeline, which is one transaction, and answers
// its members. It reports false, and has answered nobody, where it failed.
func (s *spender) together(batch []*spending) bool {
	found := make([]bool, len(batch))
	err := s.db.with(context.Background(), func(ctx context.Context, conn *pgxpool.Conn) error {
		var b pgx.Batch
		b.Queue(pgPatience)
		for i, job := range batch {
			*job.spent = Spent{}
			queueSpend(&b, job, &found[i])
		}
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		return replicated(conn)
	})
	if err != nil {
		return false
	}
	for i, job := range batch {
		job.done <- verdict(found[i])
	}
	return true
}

func queueSpend(b *pgx.Batch, job *spending, found *bool) {
	b.Queue(spendPostgres, job.spend.args()...).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			*found = true
			if err := job.spent.scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

func verdict(found bool) error {
	if !found {
		return ErrNotFound
	}
	return nil
}

// alone is a transaction of one statement, and so of one round trip.
func (s *spender) alone(job *spending) error {
	found := false
	err := s.db.untilDone(job.ctx, func(ctx context.Context) error {
		return s.db.with(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
			var b pgx.Batch
			*job.spent = Spent{}
			queueSpend(&b, job, &found)
			err := conn.SendBatch(ctx, &b).Close()
			switch {
			case err == nil:
				return replicated(conn)
			case refused(err), pgconn.SafeToRetry(err):
				return unavailable(err)
			}
			return fmt.Errorf("%w: %w", ErrUncertain, err)
		})
	})
	if err != nil {
		return err
	}
	return verdict(found)
}
