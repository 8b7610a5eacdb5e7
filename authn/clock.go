package authn

import (
	"sync/atomic"
	"time"
)

const (
	// clockSpan is the shortest time for which a measured offset counts; twice clockSpan is
	// the longest. Long enough for some heartbeats to come without delay; short enough for
	// two clocks to drift apart by less than a tenth of a second (100 parts in a million, a
	// bad quartz), and to follow a server's clock soon after it was set back.
	clockSpan = 5 * time.Minute
	// asleep is how far this machine's clock must be ahead of the monotonic clock before
	// the difference makes tokens expire. A smaller difference may come from a correction
	// of the machine's clock, and is within the margin for which revocations outlive their
	// tokens.
	asleep = 2 * time.Minute
	// lookEvery is the time between two readings of this machine's clock. Reading two
	// clocks for every call would cost twice as much as reading one.
	lookEvery = 20 * time.Millisecond
)

// A clock estimates the server's time from the server's heartbeats.
//
// A heartbeat carries the server's time and arrives late by an unknown delay: server time
// minus local time of arrival is the true offset less the delay. So the largest difference
// is the best estimate of the offset. A delay, even one caused by an attacker, never sets
// the clock back, so it keeps no expired token alive.
//
// Local time is the monotonic clock, counted from the local time at the start: setting the
// machine's clock back changes nothing here. But the monotonic clock stands still while the
// machine is suspended, such as a laptop or a paused virtual machine. If the machine's
// clock has got ahead of the monotonic clock since the newest heartbeat, either the machine
// was suspended, or an operator has set its clock. Only the server's next heartbeat shows
// which. Until then the later time counts for staleness, and also for the expiry of tokens
// if the difference is more than asleep.
//
// One goroutine calls guess and heard; any number of goroutines call read and now, without
// a lock.
type clock struct {
	start      time.Time // with a monotonic reading
	startUnix  int64     // the same, ns
	correction atomic.Pointer[correction]
	wall       atomic.Int64 // lead of the machine's clock over the monotonic one since start, ns
	looked     atomic.Int64 // when wall was read; ns since start

	// The largest offset of this span and of the span before. Used only by the goroutine
	// that calls heard.
	spanStart  time.Duration // since start; so early that the span has ended before the first heartbeat
	thisSpan   time.Duration
	spanBefore time.Duration
}

// correction holds the result of the newest heartbeat.
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

// read returns the estimated server's time, and the latest possible time of the server, both in
// ns since 1970.
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

// look compares the machine's clock with the monotonic clock. look returns the time since
// start, and the lead of the machine's clock in ns.
func (c *clock) look() (elapsed time.Duration, wall int64) {
	now := time.Now()
	elapsed = now.Sub(c.start)
	wall = now.UnixNano() - c.startUnix - int64(elapsed)
	c.wall.Store(wall)
	c.looked.Store(int64(elapsed))
	return elapsed, wall
}

// now returns the estimated server's time.
func (c *clock) now() time.Time {
	now, _ := c.read()
	return time.Unix(0, now)
}

// guess sets the clock from a snapshot file: at the time local of this machine's clock, the
// server's time was server. The server's first heartbeat replaces the guess.
//
// An operator may have set the machine's clock since then. Three times are possible: the
// machine's clock now; the server's time in the file plus the time passed by the machine's
// clock; and the server's time in the file, if the machine's clock was set back. guess
// takes the latest. A clock too late refuses good tokens until the server answers; a clock
// too early accepts expired tokens, and takes an old bundle for a fresh one.
func (c *clock) guess(server, local time.Time) {
	passed := max(0, c.start.Round(0).Sub(local))
	c.correction.Store(&correction{offset: int64(max(0, server.Add(passed).Sub(c.start)))})
}

// heard corrects the clock by the server's time in a heartbeat that has just arrived. heard
// returns by how much the correction set the clock back; zero otherwise.
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
