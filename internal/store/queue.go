package store

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// queue hands values from callers to workers, and lets a worker take several at
// once: the members of a batch share a commit. SQLite's [writer] and PostgreSQL's
// [spender] each have one.
//
// A job is in one of three states. While queued, the caller may withdraw the job.
// A worker then takes the job, and from there on must answer. Either the caller or a
// worker sets job.taken, never both. A value found alone in the queue forms a batch of
// one at once.
//
// A queue is safe for concurrent use.
type queue[T any] struct {
	jobs chan *job[T] // the capacity bounds a batch, too

	closing sync.RWMutex // held for reading while a job is being queued
	closed  bool
}

// job is a value in a queue, and the place for the worker's answer.
type job[T any] struct {
	value  T // belongs to the worker between taken and result
	taken  atomic.Bool
	result chan error // has room for the one answer, so that a worker goes on at once
}

// errClosed refuses calls of a closed database.
var errClosed = unavailable(errors.New("closed"))

// newQueue returns a queue of at most size jobs, in batches of at most size members.
func newQueue[T any](size int) *queue[T] {
	return &queue[T]{jobs: make(chan *job[T], size)}
}

func newJob[T any](value T) *job[T] {
	return &job[T]{value: value, result: make(chan error, 1)}
}

// enqueue adds a job, and waits for room in the queue. Errors: errClosed;
// ErrUnavailable and ctx's if ctx ends before.
func (q *queue[T]) enqueue(ctx context.Context, value T) (*job[T], error) {
	q.closing.RLock()
	defer q.closing.RUnlock()
	if q.closed {
		return nil, errClosed
	}
	j := newJob(value)
	select {
	case q.jobs <- j:
		return j, nil
	case <-ctx.Done():
		return nil, unavailable(ctx.Err())
	}
}

// wait returns the worker's answer. When ctx ends first, a queued job is withdrawn:
// no worker runs the job, and the error matches ErrUnavailable and ctx's. For a job
// taken before, wait returns answered == false; the answer arrives in j.result later.
func (j *job[T]) wait(ctx context.Context) (answered bool, err error) {
	select {
	case err := <-j.result:
		return true, err
	case <-ctx.Done():
		if j.take() {
			return true, unavailable(ctx.Err())
		}
		return false, nil
	}
}

// take reports whether the caller of take now decides about the job.
func (j *job[T]) take() bool { return j.taken.CompareAndSwap(false, true) }

// batches yields batches of taken jobs until the queue is closed and empty.
func (q *queue[T]) batches(yield func([]*job[T]) bool) {
	for first := range q.jobs {
		if batch := q.gather(first); len(batch) > 0 && !yield(batch) {
			return
		}
	}
}

// gather takes all jobs queued now, and skips those withdrawn.
func (q *queue[T]) gather(first *job[T]) (batch []*job[T]) {
	for j := first; j != nil; {
		if j.take() {
			batch = append(batch, j)
		}
		j = nil
		if len(batch) < cap(q.jobs) {
			select {
			case j = <-q.jobs: // nil when closed
			default:
			}
		}
	}
	return batch
}

// close refuses later jobs and lets workers finish those queued. A second close does
// nothing.
func (q *queue[T]) close() {
	q.closing.Lock()
	defer q.closing.Unlock()
	if !q.closed {
		q.closed = true
		close(q.jobs)
	}
}
