package clock

import "time"

// driftPart divides the age of a reading, to get by how much two clocks can have drifted apart
// since the reading: 200 millionths of the age, twice the drift of a bad quartz clock.
const driftPart = 5000

// Offset bounds the difference between another clock and an [Elapsed] clock. At the elapsed
// time At, the other clock is ahead by Lo at least and by Hi at most. The other clock counts
// from any fixed moment. An Offset gets wider with its age.
type Offset struct{ Lo, Hi, At time.Duration }

// Answer returns the offset of another clock from Elapsed, by a question and its answer: the
// other clock showed the time shown at some moment between sent and received, which are times
// of Elapsed.
func Answer(shown, sent, received time.Duration) Offset {
	return Offset{Lo: shown - received, Hi: shown - sent, At: received}
}

// Earliest returns the lowest time that the other clock can show at an elapsed time.
func (o Offset) Earliest(now time.Duration) time.Duration { return now + o.Lo - o.drift(now) }

// Latest returns the highest time that the other clock can show at an elapsed time.
func (o Offset) Latest(now time.Duration) time.Duration { return now + o.Hi + o.drift(now) }

func (o Offset) drift(now time.Duration) time.Duration { return Drift(now - o.At) }

// Drift returns by how much two clocks drift apart in the time d, at most; zero for a negative
// d.
func Drift(d time.Duration) time.Duration { return max(0, d) / driftPart }

// to returns the offset as it is known at a later elapsed time: wider by the drift of the two
// clocks.
func (o Offset) to(now time.Duration) Offset {
	return Offset{Lo: o.Earliest(now) - now, Hi: o.Latest(now) - now, At: max(now, o.At)}
}

// Meet returns the part that two offsets of one clock have in common. gap is zero if both offsets
// can be right. Otherwise gap says by how much the clock was set between o and newer, and Meet
// returns newer.
//
// The result lies within newer. So an error of o costs no more than the width of newer.
func (o Offset) Meet(newer Offset) (both Offset, gap time.Duration) {
	at := max(o.At, newer.At)
	a, b := o.to(at), newer.to(at)
	switch both = (Offset{Lo: max(a.Lo, b.Lo), Hi: min(a.Hi, b.Hi), At: at}); {
	case b.Lo > a.Hi:
		return newer, b.Lo - a.Hi
	case b.Hi < a.Lo:
		return newer, b.Hi - a.Lo
	}
	return both, 0
}

// cover returns an offset that is right if one of the two offsets o and other is right.
func (o Offset) cover(other Offset) Offset {
	at := max(o.At, other.At)
	a, b := o.to(at), other.to(at)
	return Offset{Lo: min(a.Lo, b.Lo), Hi: max(a.Hi, b.Hi), At: at}
}
