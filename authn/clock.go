package authn

import (
	"sync/atomic"
	"time"
)

// clockSpan is how long an offset counts at least; it counts for twice that at
// most. Long enough that among its heartbeats some came without delay, short
// enough that two clocks drift apart by less than a tenth of a second (100 parts
// in a million, a bad quartz), and that a server set back is followed soon.
const clockSpan = 5 * time.Minute

// A clock tells the server's time.
//
// A heartbeat carries the server's time, and arrives late by an unknown delay:
// server time minus local time of arrival is the true offset less that delay. So
// the largest such difference is the best one known, and no delay, however long
// or however contrived, can set this clock back and keep an expired token alive.
//
// Local time is the monotonic clock, counted from the local time at the start:
// setting the machine's clock changes nothing here.
//
// Any number read it while one goroutine tells it what it heard.
type clock struct {
	start     time.Time    // with a monotonic reading
	startUnix int64        // the same, ns
	offset    atomic.Int64 // ns; the largest of this span and the one before

	heardAny   bool
	spanStart  time.Duration // since start
	thisSpan   time.Duration // the largest offset in it
	spanBefore time.Duration
}

func newClock() *clock {
	now := time.Now()
	return &clock{start: now, startUnix: now.UnixNano()}
}

// nanos is the server's time, as far as it is known, in ns since 1970.
func (c *clock) nanos() int64 { return c.startUnix + int64(time.Since(c.start)) + c.offset.Load() }

// now is the server's time, as far as it is known.
func (c *clock) now() time.Time { return time.Unix(0, c.nanos()) }

// guess begins with what the server's time was at a moment of this machine's
// clock, as a snapshot has it. What the server says later replaces the guess.
//
// Nobody knows how that clock was set since. Three times are possible: what it
// says now; the server's time then and what has passed since by it; and the
// server's time then, if it was set back. The latest of them counts. Too late a
// clock refuses a good token until the server is back, too early a one takes
// tokens that have expired, and calls a bundle fresh that is old.
func (c *clock) guess(server, local time.Time) {
	passed := max(0, c.start.Round(0).Sub(local))
	c.offset.Store(int64(max(0, server.Add(passed).Sub(c.start))))
}

// heard takes in the server's time, which has just arrived. It returns by how much
// the clock was set back, if it was.
func (c *clock) heard(server time.Time) (back time.Duration) {
	elapsed := time.Since(c.start)
	offset := server.Sub(c.start.Add(elapsed))
	switch age := elapsed - c.spanStart; {
	case !c.heardAny || age >= 2*clockSpan:
		c.heardAny = true
		c.spanStart, c.thisSpan, c.spanBefore = elapsed, offset, offset
	case age >= clockSpan:
		c.spanStart, c.thisSpan, c.spanBefore = elapsed, offset, c.thisSpan
	default:
		c.thisSpan = max(c.thisSpan, offset)
	}
	offset = max(c.thisSpan, c.spanBefore)
	return max(0, time.Duration(c.offset.Swap(int64(offset)))-offset)
}
