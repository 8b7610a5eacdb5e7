package session

import (
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// A session's refresh tokens are numbered by generation. The row keeps no list
// of them but a few numbers (store.Generations):
//
//	Current     the generation that is good now
//	Spent       the one spent last, to get Current; 0: none
//	SpentAt     when that was, or when it was retried late
//	Low         the lowest spent in the span of SpentAt
//	EarlierLow  the lowest spent in the span before that one, or Low
//	Late        the one that was retried late; 0: none
//	LateAt      when that was
//
// A span is a piece of time as long as the grace, counted from 1970. A token
// counts as "spent within the grace" if the one spent last was spent less than
// the grace ago, and it was itself spent in the same span as that one or, while
// that span lasts, in the one before: everything spent less than one grace ago
// counts, and nothing spent more than two ago. A retry within the grace changes
// nothing, so nobody can hold the grace open.
//
// A late retry of Spent means that the answer was lost and nobody noticed. It
// makes a new successor, and the unconfirmed one is dead. The range then starts
// again above the dead, and Late is the one number below it that still counts.

// verdict is what a presented generation means.
type verdict int

const (
	reused   verdict = iota // a copy in somebody's hands
	repeated                // a lost answer, or a race with oneself: the current one again
	advanced                // spent now, or given a new successor: the row must be written
)

// present judges an authentic generation at a moment, and returns the row's
// numbers as they shall be.
func present(g store.Generations, presented int64, now time.Time, grace time.Duration) (store.Generations, verdict) {
	switch {
	case presented > g.Current: // we issued it, and the row fell behind: a restored database
		return store.Generations{
			Current: presented + 1, Spent: presented, SpentAt: now, Low: presented, EarlierLow: presented,
		}, advanced
	case presented == g.Current:
		return advance(g, now, grace), advanced
	case withinGrace(g, presented, now, grace):
		return g, repeated
	case presented == g.Spent && presented != 0: // 0 is "none", and was never issued
		return retryLate(g, now), advanced
	}
	return g, reused
}

func advance(g store.Generations, now time.Time, grace time.Duration) store.Generations {
	next := g
	switch span(now, grace) - span(g.SpentAt, grace) {
	case 0: // Low and EarlierLow stay
	case 1:
		next.Low, next.EarlierLow = g.Current, g.Low
	default:
		next.Low, next.EarlierLow = g.Current, g.Current
	}
	next.Spent, next.SpentAt, next.Current = g.Current, now, g.Current+1
	return next
}

func retryLate(g store.Generations, now time.Time) store.Generations {
	successor := g.Current + 1
	return store.Generations{
		Current: successor, Spent: g.Spent, SpentAt: now,
		Low: successor, EarlierLow: successor, Late: g.Spent, LateAt: now,
	}
}

func withinGrace(g store.Generations, presented int64, now time.Time, grace time.Duration) bool {
	if g.Spent == 0 || !recent(g.SpentAt, now, grace) {
		return false
	}
	if presented == g.Spent {
		return true
	}
	if g.Late != 0 && presented == g.Late {
		return recent(g.LateAt, now, grace)
	}
	low := g.Low
	if span(now, grace) == span(g.SpentAt, grace) {
		low = g.EarlierLow
	}
	return low <= presented && presented <= g.Spent
}

// recent reports whether now is within the grace from t on. A clock that was set
// back before t proves nothing, and ends the grace.
func recent(t, now time.Time, grace time.Duration) bool {
	age := now.Sub(t)
	return age >= 0 && age < grace
}

func span(t time.Time, grace time.Duration) int64 {
	return t.UnixMicro() / max(grace.Microseconds(), 1)
}
