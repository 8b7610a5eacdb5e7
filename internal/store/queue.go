package store

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/trace"

	"github.com/watchword-auth/watchword/internal/spans"
)

// queue hands values from callers to workers, and lets a worker take several values at once as
// a batch: the members of a batch share a commit. SQLite's [writer] and PostgreSQL's [spender]
// each have a queue.
//
// A job is a value in the queue. A job is in one of three states: queued, taken by a worker, or
// withdrawn by its caller. A caller can withdraw a queued job. A worker that has taken a job
// must answer the job. The flag job.taken is set once, either by the caller or by a worker. A
// job that is alone in the queue forms a batch of one at once.
//
// A queue is safe for concurrent use.
type queue[T any] struct {
	jobs chan *job[T] // the capacity is also the largest size of a batch

	closing sync.RWMutex // held for reading while a caller adds a job
	closed  bool
}

// job is a value in a queue, and the place for the worker's answer.
type job[T any] struct {
	value   T // only the worker uses value after it has taken the job, until it sends result
	taken   atomic.Bool
	result  chan error      // has room for the worker's one answer, so that the worker continues at once
	ctx     context.Context // the context of the caller, used for tracing spans alone
	waiting trace.Span      // the tracing span of the wait, which ends when the job is taken
}

// errClosed is the error of every call on a closed database.
var errClosed = unavailable(errors.New("closed"))

// newQueue returns a queue of at most size jobs, in batches of at most size members.
func newQueue[T any](size int) *queue[T] {
	return &queue[T]{jobs: make(chan *job[T], size)}
}

func newJob[T any](ctx context.Context, value T) *job[T] {
	_, waiting := spans.Start(ctx, "store.queue")
	return &job[T]{value: value, result: make(chan error, 1), ctx: ctx, waiting: waiting}
}

// enqueue adds a job, and waits for room in the queue. Errors: errClosed;
// ErrUnavailable, with the error of ctx, if ctx ends before there is room.
func (q *queue[T]) enqueue(ctx context.Context, value T) (*job[T], error) {
	q.closing.RLock()
	defer q.closing.RUnlock()
	if q.closed {
		return nil, errClosed
	}
	j := newJob(ctx, value)
	select {
	case q.jobs <- j:
		return j, nil
	case <-ctx.Done():
		j.waiting.End()
		return nil, unavailable(ctx.Err())
	}
}

// wait returns the worker's answer, and until the answer comes, runs the functions that arrive in
// work. If ctx ends first, wait withdraws a job that is still queued: no worker runs the job, and
// the error matches ErrUnavailable and the error of ctx. If a worker has taken the job before ctx
// ends, wait returns answered == false, and the answer arrives in j.result later.
func (j *job[T]) wait(ctx context.Context, work <-chan func()) (answered bool, err error) {
	for {
		select {
		case do := <-work:
			do()
		case err := <-j.result:
			return true, err
		case <-ctx.Done():
			if j.take() {
				return true, unavailable(ctx.Err())
			}
			return false, nil
		}
	}
}

// take sets the flag j.taken, and returns true if this call has set it. If take returns
// true to a worker, the worker must run and answer the job. If take returns true to the
// caller of the job, the caller has withdrawn the job.
func (j *job[T]) take() bool {
	taken := j.taken.CompareAndSwap(false, true)
	if taken {
		j.waiting.End()
	}
	return taken
}

// batches yields batches of jobs, each taken by this worker, until the queue is closed
// and empty. Several workers may call batches at once.
func (q *queue[T]) batches(yield func([]*job[T]) bool) {
	for first := range q.jobs {
		if batch := q.gather(first); len(batch) > 0 && !yield(batch) {
			return
		}
	}
}

// gather takes first and all jobs queued now, up to the capacity of the queue, and
// leaves out jobs that their callers have withdrawn.
func (q *queue[T]) gather(first *job[T]) (batch []*job[T]) {
	for j := first; j != nil; {
		if j.take() {
			batch = append(batch, j)
		}
		j = nil
		if len(batch) < cap(q.jobs) {
			select {
			case j = <-q.jobs: // nil if the queue is closed and empty
			default:
			}
		}
	}
	return batch
}

// close makes every later enqueue fail with errClosed. Workers still finish the queued
// jobs. A second close does nothing.
func (q *queue[T]) close() {
	q.closing.Lock()
	defer q.closing.Unlock()
	if !q.closed {
		q.closed = true
		close(q.jobs)
	}
}
