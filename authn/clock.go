package authn

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/clock"
)

const (
	// askEvery is the time between two questions to the server: in a minute, a quartz drifts
	// by some milliseconds.
	askEvery = time.Minute
	// longTrip is the time between question and answer after which the verifier soon asks
	// again: tokens are refused earlier by as much.
	longTrip = 5 * time.Second
	// unanswered is the age of the newest question that the stream's own process has
	// answered, after which the feed opens another stream. Behind a load balancer other
	// processes may answer every question.
	unanswered = 10 * askEvery
)

var (
	errNoTimes     = errors.New("a heartbeat without the server's times")
	errAnotherHost = errors.New("a heartbeat of another server process than the stream's")
)

// A serverClock knows the token time, by which tokens expire, and the age of what a server
// has sent.
//
// Three clocks play a part. The elapsed time of this process counts suspensions and is never
// set. The process clock of the server is the same in the server. The token time is the time
// of the server's database, and may be set. A question to the server ([serverClock.answered])
// bounds the process clock between question and answer. Every heartbeat bounds the token time
// by the process clock. So the delay of a heartbeat has no influence, and the delay of an
// answer only makes tokens expire earlier.
//
// Invariants, while no two clocks drift apart by more than 200 parts in a million:
//
//  1. latest is at most one round trip before the token time at the newest heartbeat, and
//     otherwise not before the token time.
//  2. since returns a moment not after the moment meant, save for the round trip of the
//     newest question.
//
// Expiry counts by the latest possible token time, the check of `iat` by the earliest.
//
// One goroutine, the feed's, calls opened and beat. The feed's second goroutine calls
// answered. Any goroutine may call the other methods.
type serverClock struct {
	elapsed *clock.Elapsed
	token   atomic.Pointer[clock.Offset] // the token time in ns since 1970, against elapsed

	mu       sync.Mutex // guards the fields below
	estimate clock.Estimate
	process  []byte        // the id of the server process; nil after opened
	server   clock.Offset  // the process clock, against elapsed
	asked    time.Duration // when the newest question was sent that process has answered
	again    bool          // the newest question must be repeated soon
	readBy   []byte        // the id of the process with the newest reading of the token time
	readAt   time.Duration // when that process had the reading, by the process clock
}

func newServerClock() *serverClock {
	c := &serverClock{elapsed: clock.New()}
	here := time.Duration(time.Now().UnixNano())
	c.guess(clock.Answer(here, 0, 0)) // serves no judgement: before the first heartbeat the bundle is incomplete
	return c
}

// read returns the earliest and the latest token time of this moment, in ns since 1970.
func (c *serverClock) read() (earliest, latest int64) {
	now, token := c.elapsed.Now(), c.token.Load()
	return int64(token.Earliest(now)), int64(token.Latest(now))
}

// guess sets the token time until the first heartbeat.
func (c *serverClock) guess(o clock.Offset) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.estimate.Guess(o)
	c.token.Store(&o)
}

// opened is called before a stream is opened. The opening is a question: the first heartbeat
// of the stream is made after the server has received the request.
func (c *serverClock) opened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.process, c.asked = nil, c.elapsed.Now()
}

// beat uses the times of a heartbeat that has just arrived. beat returns by how much the
// token time was set, and a function that returns the elapsed time of a moment of the process
// clock.
//
// Errors: if the heartbeat has no times; if the heartbeat is of another process than the
// heartbeats before in the stream.
func (c *serverClock) beat(t *watchwordv1.ServerTimes) (set time.Duration, since func(time.Duration) time.Duration, err error) {
	if err := checkTimes(t); err != nil {
		return 0, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now, shown := c.elapsed.Now(), t.GetNow().AsDuration()
	switch {
	case c.process == nil:
		c.process = bytes.Clone(t.GetProcess())
		c.server = clock.Answer(shown, c.asked, now)
		c.again = true
	case !bytes.Equal(c.process, t.GetProcess()):
		return 0, nil, errAnotherHost
	case shown > c.server.Latest(now): // the host paused this machine, which elapsed does not count
		c.server = clock.Answer(shown, now, now)
		c.again = true
	}
	server := c.server
	return c.followLocked(t, server, now), func(moment time.Duration) time.Duration {
		from, _ := elapsedAt(server, now, min(moment, shown))
		return from
	}, nil
}

// answered uses the times in the answer to a question. The question was sent at the elapsed
// time sent. answered returns by how much the token time was set.
//
// Errors: if the answer has no times.
func (c *serverClock) answered(t *watchwordv1.ServerTimes, sent time.Duration) (set time.Duration, err error) {
	if err := checkTimes(t); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.elapsed.Now()
	server := clock.Answer(t.GetNow().AsDuration(), sent, now)
	if bytes.Equal(c.process, t.GetProcess()) {
		c.server, _ = c.server.Meet(server)
		c.asked, c.again = max(c.asked, sent), now-sent > longTrip
	}
	return c.followLocked(t, server, now), nil
}

// followLocked adds a reading of the token time, by the process clock of the server that has
// sent the reading. c.mu must be held.
func (c *serverClock) followLocked(t *watchwordv1.ServerTimes, server clock.Offset, now time.Duration) (set time.Duration) {
	if bytes.Equal(c.readBy, t.GetProcess()) && t.GetAnswered().AsDuration() < c.readAt {
		return 0 // an older reading of the same process, in an answer that a newer heartbeat has overtaken
	}
	shown := t.GetNow().AsDuration()
	from, to := elapsedAt(server, now, shown)
	asked, _ := elapsedAt(server, now, t.GetAsked().AsDuration())
	_, answered := elapsedAt(server, now, t.GetAnswered().AsDuration())
	after := bytes.Equal(c.readBy, t.GetProcess()) && t.GetAsked().AsDuration() >= c.readAt &&
		(t.GetAnswered().AsDuration() > c.readAt || !c.estimate.Vague()) // else perhaps the same reading once more
	set, used := c.estimate.Learn(clock.Offset{
		Lo: time.Duration(nanosOf(t.GetEarliest().AsTime())) - to,
		Hi: time.Duration(nanosOf(t.GetLatest().AsTime())) - from,
		At: from,
	}, clock.Span{From: asked, To: answered}, after)
	if used {
		c.readBy, c.readAt = bytes.Clone(t.GetProcess()), t.GetAnswered().AsDuration()
	}
	token := c.estimate.Offset()
	c.token.Store(&token)
	c.again = c.again || set != 0 // perhaps the server's process was paused, and its clock was not set
	return set
}

// elapsedAt returns between which elapsed times a process clock has shown a time. server is
// the clock's offset, and now the elapsed time.
func elapsedAt(server clock.Offset, now, shown time.Duration) (from, to time.Duration) {
	drift := clock.Drift(server.Latest(now) - shown)
	return shown - (server.Latest(now) - now) - drift, shown - (server.Earliest(now) - now) + drift
}

// checkTimes returns an error for times that are missing or impossible.
func checkTimes(t *watchwordv1.ServerTimes) error {
	if t.GetNow().CheckValid() != nil || t.GetAsked().CheckValid() != nil || t.GetAnswered().CheckValid() != nil || len(t.GetProcess()) == 0 ||
		!plausible(t.GetEarliest().AsTime()) || !plausible(t.GetLatest().AsTime()) {
		return errNoTimes
	}
	return nil
}

// due returns whether to ask the server now, and whether the stream's own process has left
// the questions unanswered for so long that another stream must be opened.
func (c *serverClock) due() (ask, reopen bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	age := c.elapsed.Now() - c.asked
	return c.again || age >= askEvery, age >= unanswered
}

// expired returns the token time before which a revocation is no longer needed, by every
// clock that was heard in the last span.
func (c *serverClock) expired(span time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Unix(0, int64(c.estimate.Expired(c.elapsed.Now(), span)))
}

// memory returns the elapsed time, and what a snapshot keeps of the clocks of the last span.
func (c *serverClock) memory(span time.Duration) (now time.Duration, m clock.Memory) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now = c.elapsed.Now()
	return now, c.estimate.Memory(now, span)
}

// remember makes the clock continue the memory of an earlier process, which ended so long
// ago.
func (c *serverClock) remember(ago time.Duration, m clock.Memory) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.estimate.Remember(-ago, m)
}
