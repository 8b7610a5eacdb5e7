package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// breaker makes callers fail at once while the database does not answer. The breaker trips if a
// replica without a connection cannot make one, or if the database answers no caller for
// silentTime. A tripped breaker lets one caller through per tripTime, until the database
// answers a caller. So an outage costs a timeout only to the callers that are let through, and
// a database that comes back is not flooded.
//
// A breaker is safe for concurrent use.
type breaker struct {
	until  atomic.Int64           // the next time at which a caller is allowed to try, in ns since 1970; zero: every caller is allowed to try now
	silent atomic.Int64           // when the first call began that got no answer after the latest answer, in ns since 1970; zero: there is no such call
	cause  atomic.Pointer[string] // the error behind the latest trip
}

// silentTime is nearly statementTime, so that one caller without a deadline is enough to trip
// the breaker. Several callers with short deadlines trip the breaker together.
const silentTime = statementTime - leastTime

// tripTime is the time between two callers that a tripped breaker lets through. A
// random time of up to tripTime/2 is added, so that replicas try at different times.
const tripTime = 100 * time.Millisecond

var errDown = unavailable(errors.New("the database did not answer a moment ago"))

// allow returns nil if the caller may use the database now, and errDown otherwise. trying
// tells that the breaker has tripped: this caller uses up the one try per tripTime.
func (b *breaker) allow() (trying bool, err error) {
	until := b.until.Load()
	if until == 0 {
		return false, nil
	}
	if b.refuses() || !b.until.CompareAndSwap(until, nextTry()) {
		return false, b.err()
	}
	return true, nil
}

// tripped reports whether the breaker lets only one caller through per tripTime.
func (b *breaker) tripped() bool { return b.until.Load() != 0 }

// err returns the error for a caller that the breaker refuses. The error matches errDown, and
// holds only the text of the cause: errors.Is must not match the cause, which is the error of
// another call.
func (b *breaker) err() error {
	if cause := b.cause.Load(); cause != nil {
		return fmt.Errorf("%w: %s", errDown, *cause)
	}
	return errDown
}

// refuses reports whether [breaker.allow] would return errDown now.
func (b *breaker) refuses() bool { return time.Now().UnixNano() < b.until.Load() }

func nextTry() int64 { return time.Now().Add(tripTime + rand.N(tripTime/2)).UnixNano() }

func (b *breaker) trip(cause error) {
	text := cause.Error()
	b.cause.Store(&text)
	b.until.Store(nextTry())
}

// unanswered trips the breaker if the database has been silent for silentTime. began is the
// time at which a call began that got no answer before the end of the caller's deadline.
func (b *breaker) unanswered(began time.Time, cause error) {
	b.silent.CompareAndSwap(0, began.UnixNano())
	if since := b.silent.Load(); since != 0 && time.Now().UnixNano()-since >= int64(silentTime) {
		b.trip(cause)
	}
}

// answered notes an answer of the database, resets the breaker, and reports whether the breaker
// had tripped. answered runs after every answered call, and loads an atomic variable before it
// stores, since a load is cheaper than a store.
func (b *breaker) answered() bool {
	if b.silent.Load() != 0 {
		b.silent.Store(0)
	}
	return b.until.Load() != 0 && b.until.Swap(0) != 0
}
