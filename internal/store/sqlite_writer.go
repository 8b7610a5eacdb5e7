package store

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// writer lets concurrent writers share a commit, and so an fsync.
//
// One goroutine owns the only connection that writes. It takes whatever is
// queued, runs each member under a savepoint of its own inside one BEGIN
// IMMEDIATE, and commits them together: a member that refuses is rolled back
// alone. An error of the driver, at whatever point, says nothing about who
// caused it and may have rolled back everything; so the group is rolled back,
// and its members run again one by one, each in a transaction of its own. Only
// where it could not begin they are refused together: each would wait for the lock
// as long as the one before.
// Nobody is answered before the commit. Who is alone never waits for company.
type writer struct {
	conn  *conn
	side  *checkpointer
	queue chan *write

	closing sync.RWMutex // held for reading while a write is being queued
	closed  bool
	done    chan struct{}
}

// maxGroup bounds how many writes share a commit, and so how long the first
// waits for the last: about 20 ms at 20 µs each, besides the fsync.
const maxGroup = 1024

type write struct {
	fn     func(*Tx) error
	taken  atomic.Bool // by the writer, to run it, or by its caller, to give it up
	result chan result
}

// result is how a write ended: the transaction that was committed, or why not.
type result struct {
	tx  *Tx
	err error
}

// settled is the end of a write, in its caller's goroutine.
func (r result) settled() error {
	if r.err == nil {
		r.tx.wasCommitted()
	}
	return r.err
}

var errClosed = unavailable(errors.New("closed"))

func newWriter(c *conn, side *checkpointer) *writer {
	w := &writer{conn: c, side: side, queue: make(chan *write, maxGroup), done: make(chan struct{})}
	go w.loop()
	return w
}

// close lets queued writes finish and refuses later ones.
func (w *writer) close() {
	w.closing.Lock()
	if !w.closed {
		w.closed = true
		close(w.queue)
	}
	w.closing.Unlock()
	<-w.done
	w.side.close()
	w.conn.close()
}

func (w *writer) do(ctx context.Context, fn func(*Tx) error) error {
	job := &write{fn: fn, result: make(chan result, 1)}
	if err := w.enqueue(ctx, job); err != nil {
		return err
	}
	select {
	case r := <-job.result:
		return r.settled()
	case <-ctx.Done():
		if job.taken.CompareAndSwap(false, true) {
			return unavailable(ctx.Err())
		}
		// It is running, and writes to what its caller will read.
		return (<-job.result).settled()
	}
}

func (w *writer) enqueue(ctx context.Context, job *write) error {
	w.closing.RLock()
	defer w.closing.RUnlock()
	if w.closed {
		return errClosed
	}
	select {
	case w.queue <- job:
		return nil
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
}

func (w *writer) loop() {
	defer close(w.done)
	for job := range w.queue {
		if group := w.gather(job); len(group) < 2 || !w.together(group) {
			for _, job := range group {
				tx, err := w.conn.transact(job.fn)
				job.result <- result{tx, err}
			}
		}
		w.side.after(w.conn)
	}
}

// gather takes what is queued now, less what was given up meanwhile.
func (w *writer) gather(first *write) []*write {
	var group []*write
	for job := first; job != nil; {
		if job.taken.CompareAndSwap(false, true) {
			group = append(group, job)
		}
		job = nil
		if len(group) < maxGroup {
			select {
			case job = <-w.queue: // nil when closed
			default:
			}
		}
	}
	return group
}

// together runs a group in one transaction and answers its members. It reports
// false, with nothing changed and nobody answered, where the driver failed in it.
func (w *writer) together(group []*write) bool {
	if err := w.conn.begin(); err != nil {
		for _, job := range group {
			job.result <- result{err: err}
		}
		return true
	}
	verdicts, txs := make([]error, len(group)), make([]*Tx, len(group))
	for i, job := range group {
		tx, verdict, err := w.member(job)
		if err != nil {
			_ = w.conn.control("ROLLBACK") // fails where the driver has done so by itself
			return false
		}
		txs[i], verdicts[i] = tx, verdict
	}
	if w.conn.control("COMMIT") != nil {
		_ = w.conn.control("ROLLBACK")
		return false
	}
	for i, job := range group {
		job.result <- result{txs[i], verdicts[i]}
	}
	return true
}

// member runs one write of a group. Its verdict is the write's own; its error,
// the driver's.
func (w *writer) member(job *write) (tx *Tx, verdict, err error) {
	if err := w.conn.control("SAVEPOINT member"); err != nil {
		return nil, nil, err
	}
	tx = newTx(w.conn)
	verdict = tx.attempt(job.fn)
	if tx.broken != nil {
		return nil, nil, tx.broken
	}
	if verdict != nil {
		if err := w.conn.control("ROLLBACK TO member"); err != nil {
			return nil, nil, err
		}
	}
	return tx, verdict, w.conn.control("RELEASE member")
}
