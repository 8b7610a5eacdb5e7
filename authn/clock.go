package authn

import (
	"sync/atomic"
	"time"
)

const (
	// clockSpan is how long an offset counts at least; it counts for twice that at
	// most. Long enough that among its heartbeats some came without delay, short
	// enough that two clocks drift apart by less than a tenth of a second (100 parts
	// in a million, a bad quartz), and that a server set back is followed soon.
	clockSpan = 5 * time.Minute
	// asleep is from how long on this machine's clock, got ahead, makes tokens
	// expire. Less may well be somebody setting it right, and less is within the
	// margin for which revocations outlive their tokens.
	asleep = 2 * time.Minute
	// lookEvery is how often that clock is looked at. Reading two clocks for every
	// call would cost twice as much as one.
	lookEvery = 20 * time.Millisecond
)

// A clock tells the server's time.
//
// A heartbeat carries the server's time, and arrives late by an unknown delay:
// server time minus local time of arrival is the true offset less that delay. So
// the largest such difference is the best one known, and no delay, however long
// or however contrived, can set this clock back and keep an expired token alive.
//
// Local time is the monotonic clock, counted from the local time at the start:
// setting the machine's clock back changes nothing here. But the monotonic clock
// stands still while the machine is suspended, as a laptop is, or a virtual machine
// that is paused. So if the machine's clock has got ahead of it since the newest
// heartbeat, that may be time which went by unnoticed, or somebody has set the clock.
// Only the server knows, and its next heartbeat says so. Until then staleness goes by
// the later time, and so does expiry if the two are far enough apart.
//
// Any number read it while one goroutine tells it what it heard.
type clock struct {
	start      time.Time // with a monotonic reading
	startUnix  int64     // the same, ns
	correction atomic.Pointer[correction]
	wall       atomic.Int64 // ns by which the machine's clock is ahead of the monotonic one, since start
	looked     atomic.Int64 // when that was looked at; ns since start

	heardAny   bool
	spanStart  time.Duration // since start
	thisSpan   time.Duration // the largest offset in it
	spanBefore time.Duration
}

// correction is what the newest heartbeat has brought.
type correction struct {
	offset int64 // ns; the largest of this span and the one before
	wall   int64 // as it was then
}

func newClock() *clock {
	now := time.Now()
	c := &clock{start: now, startUnix: now.UnixNano()}
	c.correction.Store(new(correction))
	return c
}

// read returns the server's time, as far as it is known, and the latest that it may
// be, in ns since 1970.
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

// nanos is the server's time, as far as it is known, in ns since 1970.
func (c *clock) nanos() int64 {
	now, _ := c.read()
	return now
}

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
	c.correction.Store(&correction{offset: int64(max(0, server.Add(passed).Sub(c.start)))})
}

// heard takes in the server's time, which has just arrived. It returns by how much
// the clock was set back, if it was.
func (c *clock) heard(server time.Time) (back time.Duration) {
	elapsed, wall := c.look()
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
	next := &correction{offset: int64(max(c.thisSpan, c.spanBefore)), wall: wall}
	return time.Duration(max(0, c.correction.Swap(next).offset-next.offset))
}
