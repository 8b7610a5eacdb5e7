package clock

import (
	"math"
	"testing"
	"time"
)

// at returns a reading of a clock that was ahead by lead, exact to a second, within the
// second before the elapsed time now.
func at(lead, now time.Duration) (Offset, Span) {
	return Answer(now-time.Second/2+lead, now-time.Second, now), Span{now - time.Second, now}
}

func learn(t *testing.T, e *Estimate, lead, now time.Duration) time.Duration {
	t.Helper()
	o, read := at(lead, now)
	set, used := e.Learn(o, read, false)
	if !used {
		t.Errorf("the reading of %v is not used", now)
	}
	return set
}

// The estimate of another clock gets narrower with every reading, gets wider with time, and
// follows a clock that was set. A small difference is followed without a line in the log.
func TestEstimate(t *testing.T) {
	e := &Estimate{}
	within := func(lead, width, now time.Duration) {
		t.Helper()
		o := e.Offset()
		early, late := o.Earliest(now)-now, o.Latest(now)-now
		if early > lead || late < lead || late-early > width {
			t.Errorf("the clock is ahead by %v to %v, want %v within %v", early, late, lead, width)
		}
	}
	if set := learn(t, e, time.Hour, 10*time.Second); set != 0 {
		t.Errorf("the first reading sets the clock by %v", set)
	}
	within(time.Hour, time.Second, 10*time.Second)
	within(time.Hour, 2*time.Second, 10*time.Second+driftPart*time.Second/2)
	for i := range time.Duration(10) {
		e.Learn(Answer((20+i)*time.Second+time.Hour, (20+i)*time.Second, (20+i)*time.Second+i*100*time.Millisecond), Span{(20 + i) * time.Second, (20 + i) * time.Second}, false)
	}
	within(time.Hour, 10*time.Millisecond, 30*time.Second)
	if set := learn(t, e, 0, 40*time.Second); set > -59*time.Minute || set < -time.Hour {
		t.Errorf("set by %v", set)
	}
	within(0, time.Second, 40*time.Second)
	if set := learn(t, e, 1500*time.Millisecond, 50*time.Second); set != 0 {
		t.Errorf("a small difference: %v", set)
	}
	within(1500*time.Millisecond, time.Second, 50*time.Second)
}

// A reading that is older than the estimate, and contradicts the estimate, changes nothing. If
// the order of a reading and the estimate is unknown, the estimate covers both of them, until a
// newer reading comes.
func TestTheOrderOfReadings(t *testing.T) {
	e := &Estimate{}
	learn(t, e, time.Hour, 10*time.Second)
	old, read := at(0, 5*time.Second)
	if _, used := e.Learn(old, read, false); used || e.Offset().Lo < 59*time.Minute {
		t.Errorf("an older reading counts: %+v", e.Offset())
	}
	same, read := at(0, 10*time.Second)
	e.Learn(same, read, false)
	if o := e.Offset(); !e.Vague() || o.Lo > 0 || o.Hi < time.Hour {
		t.Errorf("two readings of one moment: %+v", o)
	}
	learn(t, e, 0, 20*time.Second)
	if o := e.Offset(); e.Vague() || o.Hi > time.Second {
		t.Errorf("after a newer reading: %+v", o)
	}
}

// A time counts as expired only if the time has passed by every clock that was read in the
// remembered span: not within the first span, and not before a clock that was set back has
// passed its earlier time. A restarted process continues from the readings of the earlier
// process.
func TestExpired(t *testing.T) {
	const span = 15 * time.Minute
	e := &Estimate{}
	expired := func(now, want time.Duration) {
		t.Helper()
		got := e.Expired(now, span)
		if want < 0 && got != math.MinInt64 || want >= 0 && (got > want+time.Second || got < want-2*time.Second) {
			t.Errorf("at %v everything before %v has expired, want %v", now, got, want)
		}
	}
	const never = -1
	learn(t, e, 0, time.Second)
	expired(span-time.Second, never)
	learn(t, e, 0, span+time.Second)
	expired(span+time.Second, span)
	learn(t, e, 2*time.Hour, span+10*time.Second)
	expired(span+10*time.Second, span+10*time.Second) // the lower of the two clocks decides
	learn(t, e, 2*time.Hour, 2*span+20*time.Second)
	expired(2*span+20*time.Second, 2*span+20*time.Second+2*time.Hour)
	learn(t, e, 0, 2*span+30*time.Second)
	expired(2*span+30*time.Second, never)
	back := 2*span + 20*time.Second + 2*time.Hour // the highest time that the clock has shown
	learn(t, e, 0, back+span-time.Minute)
	expired(back+span-time.Minute, never)

	again := &Estimate{}
	again.Guess(Offset{Lo: 2 * span, Hi: 2 * span})
	again.Remember(-time.Minute, e.Memory(back+span-time.Minute, span))
	e = again
	expired(0, never) // no reading yet
	learn(t, e, back+span, time.Second)
	expired(time.Second, never)
	learn(t, e, back+span, time.Minute*2)
	expired(time.Minute*2, back+span+2*time.Minute)
}

// Elapsed counts suspensions, and never goes back.
func TestElapsed(t *testing.T) {
	e := New()
	a := e.Now()
	e.Suspend(time.Hour)
	b := e.Now()
	e.Suspend(time.Minute) // shorter than the suspension of an hour that e already knows
	if c := e.Now(); b < a+time.Hour || c < b || c > b+time.Minute {
		t.Errorf("%v, %v, %v", a, b, c)
	}
}
