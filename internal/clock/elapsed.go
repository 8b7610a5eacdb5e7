// Package clock measures the time that passes in this process, and calculates between which two
// times another clock is, such as the clock of the server's database.
//
// [Elapsed] counts the time since the start of the process. Setting the machine's clock does
// not change Elapsed. Elapsed includes the time during which the machine was suspended. An
// [Offset] bounds the difference between another clock and Elapsed. An [Estimate] follows a
// clock that can be set, and remembers what the clock showed before each setting.
//
// A pause of a virtual machine by its host leaves no trace inside the machine. Elapsed does
// not count such a pause.
package clock

import (
	"sync/atomic"
	"time"
)

// lookEvery is the time between two calls in which [Elapsed.Now] asks the operating system how
// long the machine was suspended: the question takes longer than reading the monotonic clock.
const lookEvery = 20 * time.Millisecond

// Elapsed counts the time since [New]: by the monotonic clock, plus the time during which
// the machine was suspended. Elapsed never goes back. Elapsed is safe for concurrent use.
//
// For up to lookEvery after the end of a suspension, Elapsed can be too low by the length of
// the suspension.
type Elapsed struct {
	start  time.Time // when [New] ran, with a reading of the monotonic clock
	asleep func(start time.Time) time.Duration
	before time.Duration // what asleep returned at the start
	slept  atomic.Int64  // for how long the machine was suspended since the start, in ns; only grows
	looked atomic.Int64  // when Now last asked for slept: ns since start, by the monotonic clock
}

// New returns an Elapsed clock that begins at zero.
func New() *Elapsed {
	e := &Elapsed{start: time.Now(), asleep: suspended}
	for range 3 { // suspended can return too short a time if this thread is interrupted
		e.before = max(e.before, e.asleep(e.start))
	}
	return e
}

// Now returns the time since the start. Now takes no lock and allocates nothing.
func (e *Elapsed) Now() time.Duration {
	ran := time.Since(e.start)
	if ran-time.Duration(e.looked.Load()) > lookEvery {
		e.looked.Store(int64(ran))
		e.Suspend(e.asleep(e.start) - e.before)
	}
	return ran + time.Duration(e.slept.Load())
}

// Suspend notes that the machine was suspended for at least total since the start of the
// process. Only [Elapsed.Now] and tests call Suspend.
func (e *Elapsed) Suspend(total time.Duration) {
	for {
		known := e.slept.Load()
		if int64(total) <= known || e.slept.CompareAndSwap(known, int64(total)) {
			return
		}
	}
}
