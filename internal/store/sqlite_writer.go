package store

import (
	"context"
	"sync"
)

// writer lets concurrent writers share a commit, and so an fsync.
//
// One goroutine owns the only connection used for writing. The goroutine takes all
// queued writes, runs each under a savepoint of its own inside one BEGIN IMMEDIATE,
// and commits the group. A write that returns an error is rolled back alone.
//
// An error of the driver does not tell the member at fault, and may have rolled back
// every member. So the group is rolled back, and the members run again one by one,
// each in a transaction of its own. Only a failed BEGIN refuses the whole group: each
// member would wait for the lock as long as the first. No caller is answered before the
// commit.
type writer struct {
	conn        *sqliteConn
	checkpoints *checkpointer
	queue       *queue[write]
	loop        sync.WaitGroup
}

// maxGroup bounds how many writes share a commit, and so how long the first waits
// for the last: about 20 ms at 20 µs each, and the fsync.
const maxGroup = 1024

type write struct {
	fn func(*Tx) error
	tx *Tx // the transaction in which fn ran last
}

func newWriter(c *sqliteConn, checkpoints *checkpointer) *writer {
	w := &writer{conn: c, checkpoints: checkpoints, queue: newQueue[write](maxGroup)}
	w.loop.Go(w.work)
	return w
}

// close lets queued writes finish and refuses later writes.
func (w *writer) close() {
	w.queue.close()
	w.loop.Wait()
	w.checkpoints.close()
	w.conn.close()
}

// do is [Store.Write].
func (w *writer) do(ctx context.Context, fn func(*Tx) error) error {
	j, err := w.queue.enqueue(ctx, write{fn: fn})
	if err != nil {
		return err
	}
	answered, err := j.wait(ctx)
	if !answered { // fn is running, and sets variables of the caller
		err = <-j.result
	}
	if err == nil {
		j.value.tx.wasCommitted()
	}
	return err
}

func (w *writer) work() {
	for group := range w.queue.batches {
		if len(group) < 2 || !w.commitGroup(group) {
			for _, j := range group {
				var err error
				j.value.tx, err = w.conn.transact(j.value.fn)
				j.result <- err
			}
		}
		w.checkpoints.afterCommit(w.conn)
	}
}

// commitGroup runs a group in one transaction and answers the members. When the
// driver failed, commitGroup returns false: nothing was changed and no member answered.
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
		if refusals[i], err = w.runMember(&j.value); err != nil {
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

// runMember runs one write of a group under a savepoint. refusal is fn's error; err,
// the driver's.
func (w *writer) runMember(member *write) (refusal, err error) {
	if err := w.conn.control("SAVEPOINT member"); err != nil {
		return nil, err
	}
	member.tx = newSQLiteTx(w.conn)
	refusal = member.tx.attempt(member.fn)
	if member.tx.broken != nil {
		return nil, member.tx.broken
	}
	if refusal != nil {
		if err := w.conn.control("ROLLBACK TO member"); err != nil {
			return nil, err
		}
	}
	return refusal, w.conn.control("RELEASE member")
}
