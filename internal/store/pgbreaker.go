package store

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// breaker makes callers fail at once while the database is away. The breaker trips when
// making a connection failed, or the database did not answer in time. A tripped breaker
// lets one caller try per tripTime, until a caller succeeds. So a database that is away
// costs a timeout only to the callers that try, and a database that is back is not
// stormed.
//
// A breaker is safe for concurrent use.
type breaker struct{ until atomic.Int64 } // ns since 1970, when a caller may try; zero: all may

// tripTime is the time between two tries. A random half of tripTime is added, so that
// replicas try at different times.
const tripTime = 100 * time.Millisecond

var errDown = unavailable(errors.New("the database did not answer a moment ago"))

// allow returns nil if the caller may try, and errDown otherwise.
func (b *breaker) allow() error {
	until := b.until.Load()
	if until == 0 || !b.refuses() && b.until.CompareAndSwap(until, nextTry()) {
		return nil
	}
	return errDown
}

// refuses reports whether no caller may try now.
func (b *breaker) refuses() bool { return time.Now().UnixNano() < b.until.Load() }

func nextTry() int64 { return time.Now().Add(tripTime + rand.N(tripTime/2)).UnixNano() }

func (b *breaker) trip() { b.until.Store(nextTry()) }

func (b *breaker) reset() {
	if b.until.Load() != 0 { // a load is cheaper than a store on every call
		b.until.Store(0)
	}
}
