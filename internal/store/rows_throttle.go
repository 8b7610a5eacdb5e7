package store

import "time"

// ThrottleBucket is a row of the table throttle. Package throttle describes the fields.
type ThrottleBucket struct {
	ID       int64
	ClearAt  time.Time
	NextAt   time.Time
	Promises []byte
}

const throttleColumns = `id, clear_at, next_at, promises`

// columns returns pointers to the fields, in the order of throttleColumns.
func (b *ThrottleBucket) columns() []any {
	return []any{&b.ID, (*timeColumn)(&b.ClearAt), (*timeColumn)(&b.NextAt), &b.Promises}
}

// ThrottleBuckets returns two buckets, in the order of ids. For a missing row, ThrottleBuckets
// returns a bucket with zero times.
func (tx *Tx) ThrottleBuckets(ids [2]int64) (pair [2]ThrottleBucket, err error) {
	for i, id := range ids {
		pair[i].ID = id
	}
	return pair, tx.fail(tx.run.query(func(r row) error {
		var b ThrottleBucket
		if err := r.Scan(b.columns()...); err != nil {
			return err
		}
		if b.ID == ids[0] {
			pair[0] = b
		} else {
			pair[1] = b
		}
		return nil
	}, lockOf("throttle"), `SELECT `+throttleColumns+` FROM throttle WHERE id IN ($1, $2) ORDER BY id`, ids[0], ids[1]))
}

// LockThrottleBuckets is like [Tx.ThrottleBuckets], inserts missing rows, and locks both rows
// until the transaction ends. The caller passes the lower id first: all transactions then lock
// the rows in one order, which excludes a deadlock.
func (tx *Tx) LockThrottleBuckets(ids [2]int64) ([2]ThrottleBucket, error) {
	for _, id := range ids {
		err := tx.queueExec(`INSERT INTO throttle (`+throttleColumns+`) VALUES ($1, 0, 0, $2)
			ON CONFLICT (id) DO UPDATE SET next_at = 0 WHERE false`, id, []byte{}) // locks an existing row, and changes nothing
		if err != nil {
			return [2]ThrottleBucket{}, err
		}
	}
	return tx.ThrottleBuckets(ids)
}

// SetThrottleBucket stores a bucket that [Tx.LockThrottleBuckets] has locked.
func (tx *Tx) SetThrottleBucket(b *ThrottleBucket) error {
	promises := b.Promises
	if promises == nil {
		promises = []byte{} // the column is NOT NULL
	}
	return tx.queueExec(`UPDATE throttle SET clear_at = $2, next_at = $3, promises = $4 WHERE id = $1`,
		b.ID, micros(b.ClearAt), micros(b.NextAt), promises)
}

// PruneThrottle reads up to limit buckets in order of id, beginning after the id `after`, and
// deletes the buckets with a ClearAt before the time clear. PruneThrottle returns the last id
// that it has read; more is false at the end of the table.
func (tx *Tx) PruneThrottle(after int64, limit int, clear time.Time) (last int64, more bool, err error) {
	buckets, err := queryAll(tx, (*ThrottleBucket).columns,
		`SELECT `+throttleColumns+` FROM throttle WHERE id > $1 ORDER BY id LIMIT $2`, after, limit)
	for _, b := range buckets {
		after = b.ID
		if err == nil && b.ClearAt.Before(clear) { // the DELETE leaves a bucket if clear_at has changed since the read
			err = tx.queueExec(`DELETE FROM throttle WHERE id = $1 AND clear_at = $2`, b.ID, micros(b.ClearAt))
		}
	}
	return after, len(buckets) == limit, err
}
