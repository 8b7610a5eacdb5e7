package storetest

import (
	"sync/atomic"
	"testing"
	"time"
)

// Lateness measures, until the end of the test, how much later than due the machine wakes a
// goroutine. The returned function returns the longest delay so far. A test that bounds a time
// adds a multiple of this delay to the bound: a busy machine delays the code under test as much.
func Lateness(t testing.TB) (longest func() time.Duration) {
	const nap = 5 * time.Millisecond
	var most atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for began := time.Now(); ; began = time.Now() {
			select {
			case <-time.After(nap):
				most.Store(max(most.Load(), int64(time.Since(began)-nap)))
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return func() time.Duration { return time.Duration(most.Load()) }
}
