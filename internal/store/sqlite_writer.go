package store

import (
	"context"
	"errors"
	"sync"
)

// writer lets concurrent writers share a commit, and so an fsync.
//
// One goroutine owns the only connection used for writing. The goroutine takes all
// queued writes, runs each write under a savepoint of its own inside one BEGIN
// IMMEDIATE, and commits the group. A write that returns an error is rolled back alone.
// No caller gets an answer before the commit. A write of which only the last statement changes
// something has no savepoint, since SQLite does all of a statement or nothing.
//
// An error of the driver does not tell which write of the group caused the error, and may have
// rolled back every write. So the group is rolled back, and the writes run again one by one,
// each in a transaction of its own. If BEGIN fails, every write of the group gets the error:
// otherwise each write would wait for SQLite's lock as long as BEGIN has waited.
type writer struct {
	conn        *sqliteConn
	checkpoints *checkpointer
	queue       *queue[write]
	loop        sync.WaitGroup
}

// maxGroup bounds how many writes share a commit, and so how long the first write waits for the
// last: about 20 ms if each write takes 20 µs, plus the fsync.
const maxGroup = 1024

type write struct {
	fn func(*Tx) error
	// writesLast tells that fn changes the database by its last statement alone, and returns an
	// error only if nothing has changed.
	writesLast bool
	work       <-chan func() // functions from fn that the caller runs while the caller waits for the commit; nil: none
	tx         *Tx           // the transaction of the latest run of fn
}

func newWriter(c *sqliteConn, checkpoints *checkpointer) *writer {
	w := &writer{conn: c, checkpoints: checkpoints, queue: newQueue[write](maxGroup)}
	w.loop.Go(w.work)
	return w
}

// close lets the queued writes finish, refuses later writes, and closes the
// connections.
func (w *writer) close() {
	w.queue.close()
	w.loop.Wait()
	w.checkpoints.close()
	w.conn.close()
}

// do does what [Store.Write] promises.
func (w *writer) do(ctx context.Context, member write) error {
	j, err := w.queue.enqueue(ctx, member)
	if err != nil {
		return err
	}
	answered, err := j.wait(ctx, member.work)
	if !answered { // fn is running and sets variables of the caller, so the caller must wait
		err = <-j.result
	}
	if err == nil {
		j.value.tx.wasCommitted()
	}
	return err
}

func (w *writer) work() {
	for group := range w.queue.batches {
		ctx, sharing := startShared(group)
		w.conn.spans = ctx
		if len(group) < 2 || !w.commitGroup(group) {
			for _, j := range group {
				var err error
				j.value.tx, err = w.conn.transact(w.conn.tracedBy(j.ctx, j.value.fn))
				j.result <- err
			}
		}
		sharing.End()
		w.conn.spans = nil
		w.checkpoints.afterCommit(w.conn)
	}
}

// commitGroup runs a group of writes in one transaction and answers the callers. If the
// driver fails, commitGroup returns false: in this case nothing was changed, and no caller has
// an answer yet.
func (w *writer) commitGroup(group []*job[write]) bool {
	if err := w.conn.begin(); err != nil {
		for _, j := range group {
			j.result <- err
		}
		return true
	}
	refusals := make([]error, len(group))
	for i, j := range group {
		var err error
		if refusals[i], err = w.runMember(j); err != nil {
			w.conn.rollback()
			return false
		}
	}
	if w.conn.control("COMMIT") != nil {
		w.conn.rollback()
		return false
	}
	for i, j := range group {
		j.result <- refusals[i]
	}
	return true
}

// runMember runs one write of a group. refusal is the error of the write's own function; err is
// an error of the driver, or an error after which the group must be rolled back.
func (w *writer) runMember(j *job[write]) (refusal, err error) {
	if j.value.writesLast {
		if refusal, err = w.attempt(j); refusal != nil && (j.value.tx.wrote || errors.Is(refusal, errPanic)) {
			err = refusal // fn has a bug, and has perhaps changed something
		}
		return refusal, err
	}
	if err := w.conn.control("SAVEPOINT member"); err != nil {
		return nil, err
	}
	if refusal, err = w.attempt(j); err != nil {
		return nil, err
	}
	if refusal != nil {
		if err := w.conn.control("ROLLBACK TO member"); err != nil {
			return nil, err
		}
	}
	return refusal, w.conn.control("RELEASE member")
}

// attempt runs the function of a write. refusal is the error of the function, after which the
// other writes of the group go on; err is an error of the driver, after which the group is rolled
// back.
func (w *writer) attempt(j *job[write]) (refusal, err error) {
	member := &j.value
	member.tx = newSQLiteTx(w.conn)
	refusal = member.tx.attempt(w.conn.tracedBy(j.ctx, member.fn))
	return refusal, member.tx.broken
}
