package session

import (
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// A session's refresh tokens are numbered by generation. The row of the session keeps a
// few numbers (store.Generations) instead of a list of tokens:
//
//	Current     the generation of the valid token
//	Spent       the generation that was spent last, to get Current; 0: none
//	SpentAt     the time of spending Spent, or of the late retry of Spent
//	Low         the lowest generation spent in the span of SpentAt
//	EarlierLow  the lowest generation spent in the span before, or Low
//	Late        the generation of the last late retry; 0: none
//	LateAt      the time of the last late retry
//	Repeated    the value of Current at the last repeat; 0: none
//	Run         the number of successive generations with a repeat, up to Repeated
//
// The grace (--refresh-grace) is the time in which a client can present a spent token again,
// because the answer was lost. A span is an interval as long as the grace; spans are counted
// from 1970. A generation is "spent within the grace" on two conditions: Spent was spent less
// than the grace ago; and the generation was spent in the span of SpentAt or, while that span
// lasts, in the span before. By these conditions, every token spent less than one grace ago is
// within the grace, and every token spent more than two graces ago is not. A retry within the
// grace changes nothing, so a thief cannot keep the grace open by retries.
//
// A late retry of Spent means: the answer was lost, and the client did not notice the loss
// within the grace. The late retry gets a token of a new generation, and the generation in the
// lost answer is dead: its token is not valid any more. After a late retry, the range from Low
// to Spent starts again above the dead generation; Late is the only lower generation that can
// still be spent within the grace.
//
// A repeat is a retry that is answered: a retry within the grace, or a late retry. An honest
// client repeats when an answer is lost. A thief that follows the owner within the grace
// repeats in every generation, since the owner and the thief both need the newest token. Run is
// the number of generations with a repeat, each counted once. A generation without a repeat
// ends the run (the successive generations with a repeat). When Run has reached the limit
// (--refresh-repeats), a repeat in a further generation of the run is reuse. A second repeat in
// the same generation changes nothing, so a transaction with an unknown outcome can run again.
//
// The run continues if Repeated is at least the presented generation. One case is that every
// generation has had a repeat since the presented token was the newest. In the other case a
// client presents a token that it got by the last repeat, as when a thief spends several tokens
// just before the owner comes within the grace.
//
// The ordinary advance, in which a client presents the newest token, is also in SQL as one
// statement: store.Spend. An advance changes neither Repeated nor Run.

// verdict says what to do after a client has presented a refresh token.
type verdict int

const (
	reused   verdict = iota // two clients hold tokens of the session: end the session
	overrun                 // a repeat in more successive generations than --refresh-repeats: end the session, as after reused
	repeated                // a lost answer, or two calls at once: make the token of Current again
	retried                 // a late retry: write the row, make the token of the new Current
	advanced                // the token of Current was spent now: write the row, make the token of the new Current
)

// DefaultRepeats is the default of --refresh-repeats. With 16, a client that loses 30 %
// of the answers is logged out once in 1.1 billion generations. 15 is the lowest value with
// more than a hundred million generations for each logout. docs/decisions has the calculation.
const DefaultRepeats = 16

// limits holds the settings by which [present] decides about a refresh token.
type limits struct {
	grace   time.Duration
	repeats int64 // the number of successive generations that are allowed to have a repeat
}

// present decides about an authentic refresh token that a client presents at the time now.
// presented is the token's generation. present returns the new numbers for the session's row.
func present(g store.Generations, presented int64, now time.Time, l limits) (store.Generations, verdict) {
	inGrace := withinGrace(g, presented, now, l.grace)
	switch {
	case presented > g.Current: // the token was issued before the database was restored from a backup, which set Current back
		return store.Generations{
			Current: presented + 1, Spent: presented, SpentAt: now, Low: presented, EarlierLow: presented,
		}, advanced
	case presented == g.Current:
		return advance(g, now, l.grace), advanced
	case presented == 0: // generation 0 was never issued, since 0 stands for none
		return g, reused
	case !inGrace && presented != g.Spent:
		return g, reused
	}
	next := countRepeat(g, presented)
	switch {
	case next.Run > l.repeats:
		return g, overrun
	case inGrace:
		return next, repeated
	}
	return retryLate(next, now), retried
}

// countRepeat counts a repeat in the generation Current.
func countRepeat(g store.Generations, presented int64) store.Generations {
	switch {
	case g.Repeated == g.Current: // a repeat in this generation is counted already
	case g.Repeated >= presented:
		g.Run++
	default:
		g.Run = 1
	}
	g.Repeated = g.Current
	return g
}

// advance spends the generation Current. The statements of store.Spend do the same in SQL:
// change the statements together with advance.
func advance(g store.Generations, now time.Time, grace time.Duration) store.Generations {
	next := g
	switch span(now, grace) - span(g.SpentAt, grace) {
	case 0: // the span of the last spending still lasts: Low and EarlierLow stay
	case 1:
		next.Low, next.EarlierLow = g.Current, g.Low
	default:
		next.Low, next.EarlierLow = g.Current, g.Current
	}
	next.Spent, next.SpentAt, next.Current = g.Current, now, g.Current+1
	return next
}

// retryLate lets the generation Spent be spent again, although the grace has passed. The
// generation after Spent, which the client never got since the answer was lost, is dead from
// now on. The new generation is treated as repeated, in place of the dead generation.
func retryLate(g store.Generations, now time.Time) store.Generations {
	successor := g.Current + 1
	return store.Generations{
		Current: successor, Spent: g.Spent, SpentAt: now,
		Low: successor, EarlierLow: successor, Late: g.Spent, LateAt: now,
		Repeated: successor, Run: g.Run,
	}
}

// withinGrace reports whether the generation presented was spent within the grace.
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

// recent reports whether now is less than the grace after t. recent returns false if now is
// before t, since the clock was set back: the grace has ended.
func recent(t, now time.Time, grace time.Duration) bool {
	age := now.Sub(t)
	return age >= 0 && age < grace
}

// span returns the number of the span in which t is: the time since 1970 divided by the grace.
// A grace of zero is treated as one microsecond, since span divides by the grace.
func span(t time.Time, grace time.Duration) int64 {
	return t.UnixMicro() / max(grace.Microseconds(), 1)
}
