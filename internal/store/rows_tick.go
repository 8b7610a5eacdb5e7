package store

import (
	"errors"
	"time"
)

const (
	// TickEvery is the time between two ticks: a running server calls [Tx.Tick] once in
	// TickEvery.
	TickEvery = 10 * time.Second
	// periodTicks is the number of ticks that one row of the table ticks counts. So a row of
	// the table ticks counts ten minutes, and [Tx.Aged] reads 13,000 rows for ninety days. Since
	// Aged counts whole rows of the table ticks, an old row of another table is deleted up to
	// twenty minutes after the end of the old row's lifetime.
	periodTicks = 60
	periodTime  = periodTicks * TickEvery
)

// period is a row of the table ticks.
type period struct {
	number, ticks int64
	low, last     time.Time
}

// newestPeriod returns the newest row of the table ticks. Errors: ErrNotFound before the
// first tick.
func (tx *Tx) newestPeriod() (p period, err error) {
	return p, tx.queryRow(into(&p.number, &p.ticks, (*timeColumn)(&p.low), (*timeColumn)(&p.last)),
		`SELECT period, ticks, low, last FROM ticks ORDER BY period DESC LIMIT 1`)
}

// Tick counts a tick in the table ticks: a tick notes that a server has run at this time. Tick
// counts nothing if the newest tick is less than TickEvery old. After the clock was set back,
// Tick counts at once, so that the table has the lower time.
//
// On PostgreSQL, a transaction with Tick always locks a row, so the commit is written to the
// log and waits for the synchronous standbys, even if Tick counts nothing. So after the
// transaction the caller knows that PostgreSQL could still commit. A row that another process
// has written into the table ticks tells less: PostgreSQL also shows commits that no standby
// has confirmed.
func (tx *Tx) Tick() error {
	if err := tx.Exclusive(); err != nil { // another server may call Tick at the same time
		return err
	}
	p, err := tx.newestPeriod()
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err == nil && !tx.Now().Before(p.last) && tx.Now().Before(p.last.Add(TickEvery)) {
		return nil
	}
	now := micros(tx.Now())
	if p.number == 0 || p.ticks >= periodTicks {
		return tx.exec(`INSERT INTO ticks (period, ticks, low, last) VALUES ($1, 1, $2, $2)`, p.number+1, now)
	}
	return tx.exec(`UPDATE ticks SET ticks = ticks + 1, low = $2, last = $3 WHERE period = $1`, p.number, min(micros(p.low), now), now)
}

// Aged returns a time for deleting old rows: every row that was written before the time is at
// least as old as age, both by the clock and by the number of ticks since the row was written.
// If no row can be as old as age, Aged returns the zero time.
func (tx *Tx) Aged(age time.Duration) (time.Time, error) {
	newest, err := tx.newestPeriod()
	if errors.Is(err, ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	// Each row of the table ticks between an older row and the newest row counts periodTicks
	// ticks.
	old := newest.number - 1 - int64((age+periodTime-1)/periodTime)
	if old < 1 {
		return time.Time{}, nil
	}
	var low timeColumn
	if err := tx.queryRow(into(&low), `SELECT min(low) FROM ticks WHERE period > $1`, old); err != nil {
		return time.Time{}, err
	}
	aged := tx.Now().Add(-age)
	if time.Time(low).Before(aged) {
		aged = time.Time(low)
	}
	return aged, nil
}
