package clock

import (
	"math"
	"time"
)

// SetFrom is the difference from which a clock counts as set. An Estimate follows a smaller
// difference too, in silence: such a difference comes from a correction of the clock.
const SetFrom = time.Second

// maxEras bounds the clocks that an Estimate remembers. A clock that is set more often
// makes the oldest eras one.
const maxEras = 16

// farAhead bounds for how long a clock that was ahead counts after it was set back. Without
// the bound, a clock that was ten years ahead for a moment would fill the memory with the
// revocations of ten years.
const farAhead = 24 * time.Hour

// An Estimate bounds a clock that may be set, by readings of the clock. An era is the time
// between two settings of the clock. An Estimate is for one goroutine.
//
// Invariants, if readings bound the clock and no two clocks drift apart faster than
// driftPart allows:
//
//  1. The estimate lies within the newest reading. So the error of the estimate is at most
//     the width of the newest reading, also just after the clock was set.
//  2. A newer reading that contradicts the estimate replaces the estimate. An older one
//     changes nothing. The order of the readings counts, and not the order of their arrival.
//  3. If the order of two readings is unknown, the estimate covers both.
type Estimate struct {
	now   Offset
	read  Span // of the newest reading
	sure  bool // there was a reading
	again bool // the estimate continues an earlier one, and began with a guess
	both  bool // now covers two readings, of which either may be the newer

	since time.Duration // the elapsed time from which on every clock that was heard is in past or now
	past  []era         // the oldest first
	hold  time.Duration // the highest time that the clock showed before the clock was set back
}

// Span is a span of elapsed time.
type Span struct{ From, To time.Duration }

// era is the lowest offset of a clock until the clock was set, and when it was last heard.
type era struct{ lo, heard time.Duration }

// Learn adds a reading of the clock, which was taken within the span read. after tells that
// the reading is known to be newer than the reading before. Learn returns by how much the
// clock was set since the last reading, and zero for a difference below SetFrom. used is
// false if the reading is older than the estimate and contradicts it.
func (e *Estimate) Learn(o Offset, read Span, after bool) (set time.Duration, used bool) {
	if !e.sure {
		if e.again && o.Latest(o.At)+SetFrom < e.now.Latest(o.At) { // perhaps set back since the earlier estimate
			e.setBack(o)
		}
		e.now, e.read, e.sure = o, read, true
		return 0, true
	}
	next, gap := e.now.Meet(o)
	if gap != 0 && read.To < e.read.From && !after {
		return 0, false
	}
	if gap >= SetFrom || gap <= -SetFrom {
		set = gap
		e.remember(era{lo: e.now.to(e.read.To).Lo, heard: e.read.To})
		if gap < 0 {
			e.setBack(o)
		}
	}
	after = after || read.From >= e.read.To
	if e.both = !after && (gap != 0 || e.both); e.both {
		e.remember(era{lo: o.to(read.To).Lo, heard: read.To})
		next = e.now.cover(o)
	}
	e.now, e.read = next, Span{max(e.read.From, read.From), max(e.read.To, read.To)}
	return set, true
}

// setBack follows a clock that was set back: tokens of before expire as late as the clock has
// shown.
func (e *Estimate) setBack(o Offset) {
	e.hold = max(e.hold, min(e.now.Latest(o.At), o.Latest(o.At)+farAhead))
}

// remember adds an era.
func (e *Estimate) remember(p era) {
	e.past = append(e.past, p)
	if len(e.past) > maxEras {
		e.past[1] = era{lo: min(e.past[0].lo, e.past[1].lo), heard: max(e.past[0].heard, e.past[1].heard)}
		e.past = e.past[1:]
	}
}

// Vague reports whether the estimate covers two readings of unknown order.
func (e *Estimate) Vague() bool { return e.both }

// Guess sets the estimate until the first reading.
func (e *Estimate) Guess(o Offset) { e.now = o }

// Offset returns the estimate.
func (e *Estimate) Offset() Offset { return e.now }

// Read returns the span of the newest reading.
func (e *Estimate) Read() Span { return e.read }

// Expired returns a time: what ends earlier has ended by every clock of the last span. span
// is the life of a token and of what is known about the token.
//
// Before the estimate's start any clock may have been in force, so Expired returns the lowest
// time of all until span has passed. Expired does so too after the clock was set back, until
// every token of the time before has expired.
func (e *Estimate) Expired(now, span time.Duration) time.Duration {
	if !e.sure || now-span < e.since || e.hold != 0 && e.now.Earliest(now) < e.hold+span {
		return math.MinInt64
	}
	return e.lowest(now, span)
}

// lowest returns the lowest time that any clock of the last span would show now.
func (e *Estimate) lowest(now, span time.Duration) time.Duration {
	lowest := e.now.Earliest(now)
	for _, p := range e.past {
		if p.heard >= now-span {
			lowest = min(lowest, now+p.lo-Drift(now-p.heard))
		}
	}
	return lowest
}

// Memory is what a later estimate must know of an earlier one.
type Memory struct {
	Heard  time.Duration // for how long the clocks in force are known
	Lowest time.Duration // the lowest time that any of them would show now
	Hold   time.Duration // the highest time that the clock showed before the clock was set back; zero: never
}

// Memory returns what to remember of the last span.
func (e *Estimate) Memory(now, span time.Duration) Memory {
	if !e.sure {
		return Memory{Hold: e.hold}
	}
	span = min(span, now-e.since)
	return Memory{Heard: span, Lowest: e.lowest(now, span), Hold: e.hold}
}

// Remember loads m, what an earlier Estimate has learned about the clock of the server, into
// e. The parameter at is the elapsed time to which m belongs. A caller that does not know the
// elapsed time exactly passes the latest possible elapsed time.
func (e *Estimate) Remember(at time.Duration, m Memory) {
	e.again, e.hold = true, m.Hold
	if m.Heard > 0 {
		e.since, e.past = at-m.Heard, append(e.past, era{lo: m.Lowest - at, heard: at})
	}
}
