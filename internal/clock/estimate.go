package clock

import (
	"math"
	"time"
)

// SetFrom is the smallest jump of a clock that [Estimate.Learn] reports as a setting of the
// clock. An Estimate follows a smaller jump too, and Learn returns zero: small jumps come from
// corrections of the clock.
const SetFrom = time.Second

// maxEras bounds the eras that an Estimate remembers: an era is the time between two settings
// of the clock. If the clock is set more often, [Estimate.remember] joins the two oldest eras.
const maxEras = 16

// farAhead bounds how far ahead an Estimate takes a clock to have been, after the clock was set
// back. Without the bound, a clock that was ten years ahead for a moment would make a verifier
// keep every revocation in memory for ten years.
const farAhead = 24 * time.Hour

// An Estimate says between which two times another clock is now, by readings: a reading is what
// the other clock showed once. The other clock can be set at any time. An era is the time
// between two settings of the clock. Only one goroutine at a time can use an Estimate.
//
// Invariants, if every reading is right and no two clocks drift apart faster than driftPart
// allows:
//
//  1. The estimate lies within the newest reading. So the error of the estimate is at most
//     the width of the newest reading, also just after the clock was set.
//  2. A newer reading that contradicts the estimate replaces the estimate. An older reading
//     that contradicts the estimate changes nothing. A reading is newer if it was taken later,
//     in whatever order the readings arrive.
//  3. If the order of two readings is unknown, the estimate covers both readings.
type Estimate struct {
	now   Offset
	read  Span // the span of elapsed time of the newest reading
	sure  bool // Learn has got a reading of the clock
	again bool // Remember has loaded what an earlier Estimate knew, and the field now begins with a guess
	both  bool // the field now covers two readings of unknown order

	since time.Duration // the elapsed time from which on the fields past and now know every setting of the clock
	past  []era         // the remembered eras (times between two settings of the clock), the oldest first
	hold  time.Duration // the highest time that the clock showed before the clock was set back
}

// Span holds the beginning and the end of a span of time, as times of an [Elapsed] clock.
type Span struct{ From, To time.Duration }

// era holds the lowest offset of the clock before the clock was set (lo), and the elapsed time
// of the last reading before the setting (heard).
type era struct{ lo, heard time.Duration }

// Learn adds a reading of the clock, which was taken within the span read. The parameter after
// tells that the reading is known to be newer than the earlier reading. Learn returns by how
// much the clock was set since the last reading, and zero for a difference below SetFrom. used
// is false if the reading is older than the estimate and contradicts the estimate.
func (e *Estimate) Learn(o Offset, read Span, after bool) (set time.Duration, used bool) {
	if !e.sure {
		if e.again && o.Latest(o.At)+SetFrom < e.now.Latest(o.At) { // the clock was perhaps set back since the earlier Estimate
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

// setBack notes in e.hold the highest time that the clock showed before the clock was set back
// to o. Tokens that were minted before the clock was set back carry times of the old setting,
// and so expire later.
func (e *Estimate) setBack(o Offset) {
	e.hold = max(e.hold, min(e.now.Latest(o.At), o.Latest(o.At)+farAhead))
}

// remember adds an era (the time between two settings of the clock) to e.past. If there are
// more than maxEras, remember joins the two oldest eras.
func (e *Estimate) remember(p era) {
	e.past = append(e.past, p)
	if len(e.past) > maxEras {
		e.past[1] = era{lo: min(e.past[0].lo, e.past[1].lo), heard: max(e.past[0].heard, e.past[1].heard)}
		e.past = e.past[1:]
	}
}

// Vague reports whether the estimate covers two readings of the clock, of which the order is
// unknown.
func (e *Estimate) Vague() bool { return e.both }

// Guess sets the estimate that holds until the first reading of the clock.
func (e *Estimate) Guess(o Offset) { e.now = o }

// Offset returns the estimate, as the offset of the other clock from Elapsed.
func (e *Estimate) Offset() Offset { return e.now }

// Read returns the span of elapsed time in which the clock was read last.
func (e *Estimate) Read() Span { return e.read }

// Expired returns the time of the clock before which a revocation can be dropped: a revocation that
// ends before this time has ended by every setting that the clock had within the last span. The
// parameter span is the longest life of a token and of the revocation of a token.
//
// Before the first reading, the clock could have any setting. So Expired returns the lowest
// time of all, math.MinInt64, until the estimate has followed the clock for span. After the
// clock was set back, Expired also returns math.MinInt64 until every token that was minted before
// the setting has expired.
func (e *Estimate) Expired(now, span time.Duration) time.Duration {
	if !e.sure || now-span < e.since || e.hold != 0 && e.now.Earliest(now) < e.hold+span {
		return math.MinInt64
	}
	return e.lowest(now, span)
}

// lowest returns the lowest time that the clock would show now by any setting of the last span.
func (e *Estimate) lowest(now, span time.Duration) time.Duration {
	lowest := e.now.Earliest(now)
	for _, p := range e.past {
		if p.heard >= now-span {
			lowest = min(lowest, now+p.lo-Drift(now-p.heard))
		}
	}
	return lowest
}

// Memory holds what an earlier [Estimate] knew of a clock, for a later Estimate of the same
// clock, such as that of the next process.
type Memory struct {
	Heard  time.Duration // for how long the earlier Estimate has followed the clock
	Lowest time.Duration // the lowest time that the clock would show now by any setting in the time Heard
	Hold   time.Duration // the highest time that the clock showed before the clock was set back; zero: never
}

// Memory returns what e knows of the clock in the last span, for a later Estimate of the same
// clock.
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
