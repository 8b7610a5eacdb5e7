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
	c.offset.Store(int64(max(c.thisSpan, c.spanBefore)))
}
