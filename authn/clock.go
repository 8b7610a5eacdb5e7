package authn

import (
	"sync/atomic"
	"time"
)

const (
	// clockSpan is the shortest time for which an offset counts; twice clockSpan is the
	// longest. Long enough for some heartbeats to come without delay; short enough for
	// two clocks to drift apart by less than a tenth of a second (100 parts in a million,
	// a bad quartz), and to follow a server's clock soon after it was set back.
	clockSpan = 5 * time.Minute
	// asleep is the lead of this machine's clock from which the lead makes tokens expire.
	// A smaller lead may well come from a correction of the clock, and is within the
	// margin for which revocations outlive their tokens.
	asleep = 2 * time.Minute
	// lookEvery is the time between two readings of this machine's clock. Reading two
	// clocks for every call would cost twice as much as reading one.
	lookEvery = 20 * time.Millisecond
)

// A clock tells the server's time.
//
// A heartbeat carries the server's time and arrives late by an unknown delay: server time
// minus local time of arrival is the true offset less the delay. So the largest
// difference is the best one known, and no delay, however long or contrived, can set the
// clock back and keep an expired token alive.
//
// Local time is the monotonic clock, counted from the local time at the start: setting
// the machine's clock back changes nothing here. But the monotonic clock stands still
// while the machine is suspended, such as a laptop or a paused virtual machine. Where
// the machine's clock has got ahead of the monotonic one since the newest heartbeat,
// either time went by unnoticed, or an operator has set the machine's clock. Only the
// server's next heartbeat can tell. Until then staleness is counted by the later time,
// and so is expiry if the lead is longer than asleep.
//
// One goroutine calls guess and heard; any number of goroutines read, without a lock.
type clock struct {
	start      time.Time // with a monotonic reading
	startUnix  int64     // the same, ns
	correction atomic.Pointer[correction]
	wall       atomic.Int64 // lead of the machine's clock over the monotonic one since start, ns
	looked     atomic.Int64 // when wall was read; ns since start

	// The largest offset of this span and of the span before; of the goroutine that hears.
	spanStart  time.Duration // since start; before the first heartbeat, long over
	thisSpan   time.Duration
	spanBefore time.Duration
}

// correction is the result of the newest heartbeat.
type correction struct {
	offset int64 // ns; the largest of this span and of the span before
	wall   int64 // clock.wall at the heartbeat
}

func newClock() *clock {
	now := time.Now()
	c := &clock{start: now, startUnix: now.UnixNano(), spanStart: -2 * clockSpan}
	c.correction.Store(new(correction))
	return c
}

// read returns the server's time as far as it is known, and the latest possible server
// time, in ns since 1970.
func (c *clock) read() (now, latest int64) {
	elapsed := int64(time.Since(c.start))
	if elapsed-c.looked.Load() > int64(lookEvery) {
		c.look()
	}
	k := c.correction.Load()
	now = c.startUnix + elapsed + k.offset
	ahead := max(0, c.wall.Load()-k.wall)
	if latest = now + ahead; ahead > int64(asleep) {
		now = latest
	}
	return now, latest
}

// look compares the machine's clock with the monotonic one.
func (c *clock) look() (elapsed time.Duration, wall int64) {
	now := time.Now()
	elapsed = now.Sub(c.start)
	wall = now.UnixNano() - c.startUnix - int64(elapsed)
	c.wall.Store(wall)
	c.looked.Store(int64(elapsed))
	return elapsed, wall
}

// now returns the server's time as far as it is known.
func (c *clock) now() time.Time {
	now, _ := c.read()
	return time.Unix(0, now)
}

// guess begins with the server's time at a moment of this machine's clock, from a
// snapshot file. The server's first heartbeat replaces the guess.
//
// How the machine's clock was set since is unknown. Three times are possible: the
// machine's clock now; the server's time then plus the time passed by the machine's
// clock; and the server's time then, where the machine's clock was set back. The latest
// counts. A clock too late refuses good tokens until the server is back; a clock too
// early takes expired tokens, and calls an old bundle fresh.
func (c *clock) guess(server, local time.Time) {
	passed := max(0, c.start.Round(0).Sub(local))
	c.correction.Store(&correction{offset: int64(max(0, server.Add(passed).Sub(c.start)))})
}

// heard takes in the server's time, just arrived. It returns by how much the clock was
// set back, zero if it was not.
func (c *clock) heard(server time.Time) (back time.Duration) {
	elapsed, wall := c.look()
	offset := server.Sub(c.start.Add(elapsed))
	switch age := elapsed - c.spanStart; {
	case age >= 2*clockSpan:
		c.spanStart, c.thisSpan, c.spanBefore = elapsed, offset, offset
	case age >= clockSpan:
		c.spanStart, c.thisSpan, c.spanBefore = elapsed, offset, c.thisSpan
	default:
		c.thisSpan = max(c.thisSpan, offset)
	}
	next := &correction{offset: int64(max(c.thisSpan, c.spanBefore)), wall: wall}
	return time.Duration(max(0, c.correction.Swap(next).offset-next.offset))
}
