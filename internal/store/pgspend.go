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
// queued up while it was away, and spends it by one statement; whoever is alone
// waits for nobody.
//
// Members are sorted by their session, and rows are looked up and locked in the
// order of members, so that two batches don't wait for each other crosswise. (Of a
// table of a few pages PostgreSQL may read all rows instead, in the order in which
// they lie; a deadlock of those would fail one of the batches.) Where a batch fails,
// all of it was rolled back or nobody knows, and its members run again, each for
// itself: to spend twice does no harm.
type spender struct {
	db    *pgDB
	queue chan *spending
	tasks sync.WaitGroup

	callers atomic.Int64 // who are in spend now

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
	// the rest would hold the rows, and has no timeout for that. A member takes 60
	// bytes and its audience.
	maxBatch = 80
	// patience is how long a batch waits for a row that somebody holds, in ms: its
	// other members are strangers to that, and so is whoever comes after it.
	patience = 250
)

// pgBatch sets what holds for a batch's transaction. A plan is good for batches of
// every size; PostgreSQL would make one for each that is small.
var pgBatch = fmt.Sprintf(`SELECT set_config('lock_timeout', '%d', true), set_config('plan_cache_mode', 'force_generic_plan', true)`, patience)

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
	defer p.spender.callers.Add(-1)
	if p.spender.callers.Add(1) == 1 && timeFor(ctx) > leastTime { // alone keeps to no shorter one
		return job.spent, p.spender.alone(job) // without waking a worker
	}
	waiting := ctx
	if deadline, ok := ctx.Deadline(); ok { // strangers before it, and in its batch, may have more time
		var cancel context.CancelFunc
		waiting, cancel = context.WithDeadline(ctx, deadline.Add(-min(answerTime, time.Until(deadline)/2)))
		defer cancel()
	}
	if err := p.spender.enqueue(waiting, job); err != nil {
		return nil, err
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

func (s *spender) enqueue(ctx context.Context, job *spending) error {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return errClosed
	}
	select {
	case s.queue <- job:
		return nil
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
}

func (s *spender) work() {
	for job := range s.queue {
		s.run(s.gather(job))
	}
}

// run never waits for long: the next batch is waiting for it.
func (s *spender) run(batch []*spending) {
	if len(batch) == 0 || s.together(batch) {
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

// spendPostgres is the statement by itself, and spendMany the one for the members
// of arrays, which returns their numbers too. For a batch of thirty the second takes
// PostgreSQL 40 us for each, thirty of the first in a pipeline 80 us.
//
// The first joins the user, since one look into users is cheaper than four. Were
// they joined with members, PostgreSQL might begin with all users where it has no
// statistics yet, and go through all of their sessions.
var (
	spendPostgres = spendBy("clock.now", "FROM users u, "+clock, joined, argument)
	spendMany     = spendBy("clock.now", "FROM unnest(CAST($1 AS TEXT[]), CAST($2 AS BIGINT[]), CAST($3 AS TEXT[]), CAST($4 AS BIGINT[]), "+
		"CAST($5 AS BIGINT[]), CAST($6 AS BIGINT[])) WITH ORDINALITY AS m (id, generation, audience, idle, most, grace, number), "+clock,
		looked, func(_ int, name string) string { return "m." + name }) + ", m.number"
)

const clock = "(SELECT " + pgNow + " AS now) AS clock"

// together spends a batch in one transaction, and answers its members. It reports
// false, and has answered nobody, where it failed. Of two who present the same
// token one finds it, as if the other had come first.
func (s *spender) together(batch []*spending) bool {
	found := make([]bool, len(batch))
	err := s.db.with(context.Background(), func(ctx context.Context, conn *pgxpool.Conn) error {
		var b pgx.Batch
		b.Queue(pgBatch)
		b.Queue(spendMany, members(batch)...).Query(func(rows pgx.Rows) error {
			return each(rows, func(r row) error {
				var spent Spent
				var number int
				if err := spent.scan(numbered{r, &number}); err != nil {
					return err
				}
				found[number-1], *batch[number-1].spent = true, spent
				return nil
			})
		})
		forgetWarnings(conn.Conn().PgConn())
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return unavailable(err)
		}
		return replicated(conn.Conn().PgConn())
	})
	if err != nil {
		return false
	}
	for i, job := range batch {
		job.done <- verdict(found[i])
	}
	return true
}

// members turns rows of arguments into columns.
func members(batch []*spending) []any {
	n := len(batch)
	ids, audiences := make([]string, n), make([]string, n)
	generations, idle, most, grace := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	for i, job := range batch {
		s := job.spend
		ids[i], generations[i], audiences[i] = s.SessionID, s.Generation, s.quoted()
		idle[i], most[i], grace[i] = s.Idle.Microseconds(), s.Max.Microseconds(), s.span()
	}
	return []any{ids, generations, audiences, idle, most, grace}
}

// numbered is a row with a member's number behind the rest.
type numbered struct {
	row
	number *int
}

func (r numbered) Scan(dest ...any) error { return r.row.Scan(append(dest, r.number)...) }

// each scans every row.
func each(rows pgx.Rows, scan func(row) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
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
			found, *job.spent = false, Spent{}
			forgetWarnings(conn.Conn().PgConn())
			rows, err := conn.Query(ctx, spendPostgres, job.spend.args()...)
			if err == nil {
				err = each(rows, func(r row) error {
					found = true
					return job.spent.scan(r)
				})
			}
			switch {
			case err == nil:
				return replicated(conn.Conn().PgConn())
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
