package authn

import "time"

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
type clock struct {
	start  time.Time     // with a monotonic reading
	offset time.Duration // the largest of this span and the one before

	heardAny   bool
	spanStart  time.Duration // since start
	thisSpan   time.Duration // the largest offset in it
	spanBefore time.Duration
}

func newClock() clock { return clock{start: time.Now()} }

// now is the server's time, as far as it is known.
func (c *clock) now() time.Time {
	return c.start.Add(time.Since(c.start) + c.offset)
}

// heard takes in the server's time, which has just arrived.
func (c *clock) heard(server time.Time) {
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
	c.offset = max(c.thisSpan, c.spanBefore)
}
