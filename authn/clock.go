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
	// askEvery is the time between two calls of GetTime at the server: in a minute, the quartz
	// of a machine drifts by some milliseconds.
	askEvery = time.Minute
	// longTrip is the round trip of a GetTime after which the verifier soon calls GetTime
	// again: the verifier refuses tokens too early by the length of the round trip.
	longTrip = 5 * time.Second
	// unanswered is the age of the newest GetTime answered by the server process that sends the
	// stream. From this age on, the feed opens another stream. Behind a load balancer other
	// processes may answer every GetTime.
	unanswered = 10 * askEvery
)

var (
	errNoTimes     = errors.New("a heartbeat without the server's times")
	errAnotherHost = errors.New("a heartbeat of another server process than the stream's")
)

// A serverClock knows the token time, by which tokens expire, and the age of the messages that
// a server has sent.
//
// A serverClock uses three clocks:
//
//   - the elapsed time of this process, which continues during suspensions of the machine and is
//     never set;
//   - the process clock, which is the elapsed time of the server's process;
//   - the token time, which is the time of the server's database, and can be set.
//
// The answer to a call of GetTime has the process clock of a moment between the request and the
// response ([serverClock.answered]). A heartbeat has the token time and the process clock of one
// moment. So a heartbeat that arrives late does no harm. A response of GetTime that arrives late
// makes tokens expire too early, by at most the round trip.
//
// Invariants, while no two clocks drift apart by more than 200 parts in a million:
//
//  1. latest is the token time or later. Only in the first moments after a heartbeat, latest may be
//     earlier than the token time, by at most the round trip of the newest GetTime.
//  2. since returns a moment too early rather than too late: too late by at most the round trip of
//     the newest GetTime.
//
// A token expires when the latest possible token time reaches `exp`. The claim `iat` is compared
// with the earliest possible token time.
//
// Two goroutines of the verifier's [feed], which receives the trust bundle, change a serverClock:
// the first calls opened and beat, the second calls answered. Any goroutine can call the other
// methods.
type serverClock struct {
	elapsed *clock.Elapsed
	token   atomic.Pointer[clock.Offset] // the token time in ns since 1970, against elapsed

	mu       sync.Mutex // guards the fields below
	estimate clock.Estimate
	process  []byte        // the id of the server process that sends the stream; nil after opened
	server   clock.Offset  // the process clock, against elapsed
	asked    time.Duration // when the newest GetTime was sent that the process has answered
	again    bool          // true if GetTime must be called again soon
	readBy   []byte        // the id of the process with the newest reading of the token time
	readAt   time.Duration // when that process had the reading, by the process clock
}

func newServerClock() *serverClock {
	c := &serverClock{elapsed: clock.New()}
	here := time.Duration(time.Now().UnixNano())
	c.guess(clock.Answer(here, 0, 0)) // no check of a token uses the guess: before the first heartbeat the bundle is incomplete
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

// opened notes that the feed opens a stream now. The opening of a stream serves as a GetTime: the
// server makes the first heartbeat of the stream after it has received the request.
func (c *serverClock) opened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.process, c.asked = nil, c.elapsed.Now()
}

// beat uses the times of a heartbeat that has just arrived. beat returns by how much the token
// time was set, and a function that turns a moment of the server's process clock into the
// elapsed time of this process.
//
// Errors: an error if the heartbeat has no times, or if the heartbeat comes from another server
// process than the earlier heartbeats of the stream.
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

// answered uses the times in the server's answer to a GetTime that was sent at the elapsed time
// `sent`. answered returns by how much the token time was set.
//
// Errors: an error if the answer has no times.
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

// followLocked adds a reading of the token time to the estimate, by the process clock of the
// server that has sent the reading. c.mu must be held.
func (c *serverClock) followLocked(t *watchwordv1.ServerTimes, server clock.Offset, now time.Duration) (set time.Duration) {
	if bytes.Equal(c.readBy, t.GetProcess()) && t.GetAnswered().AsDuration() < c.readAt {
		return 0 // the answer has an older reading of the same process, and a newer heartbeat has come first
	}
	shown := t.GetNow().AsDuration()
	from, to := elapsedAt(server, now, shown)
	asked, _ := elapsedAt(server, now, t.GetAsked().AsDuration())
	_, answered := elapsedAt(server, now, t.GetAnswered().AsDuration())
	after := bytes.Equal(c.readBy, t.GetProcess()) && t.GetAsked().AsDuration() >= c.readAt &&
		(t.GetAnswered().AsDuration() > c.readAt || !c.estimate.Vague()) // without this condition, t may hold the reading that c has already
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
	c.again = c.again || set != 0 // the token time was perhaps not set, and the server's process was paused: call GetTime again
	return set
}

// elapsedAt returns the earliest and the latest elapsed time at which a process clock has shown
// the time `shown`. server is the offset of the process clock, and now the elapsed time.
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

// due reports whether the feed should call GetTime now. due also reports whether the process of
// the stream has answered no GetTime for so long that the feed must open another stream.
func (c *serverClock) due() (ask, reopen bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	age := c.elapsed.Now() - c.asked
	return c.again || age >= askEvery, age >= unanswered
}

// expired returns the token time before which a revocation is no longer needed: the earliest
// time of every clock that the verifier has heard in the last span.
func (c *serverClock) expired(span time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Unix(0, int64(c.estimate.Expired(c.elapsed.Now(), span)))
}

// memory returns the elapsed time, and what a snapshot file keeps of the server clocks that the
// verifier has heard in the last span.
func (c *serverClock) memory(span time.Duration) (now time.Duration, m clock.Memory) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now = c.elapsed.Now()
	return now, c.estimate.Memory(now, span)
}

// remember loads m, the memory that an earlier process has kept in a snapshot file. The
// parameter ago is the time since the earlier process wrote the file.
func (c *serverClock) remember(ago time.Duration, m clock.Memory) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.estimate.Remember(-ago, m)
}
