package share

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// Of many calls with one key, such as one user, some run, some wait, and the rest are refused.
// Calls with other keys run. A call that gives up makes room, and nothing is left behind.
func TestTurns(t *testing.T) {
	const callsAtOnce, callsWaiting = 3, 10
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(callsAtOnce, callsWaiting)
		var running, most, done, refused, left atomic.Int64
		release := make(chan struct{})
		call := func(ctx context.Context, key string) {
			leave, err := turns.Enter(ctx, key)
			switch {
			case errors.Is(err, ErrNoTurn):
				refused.Add(1)
				return
			case err != nil:
				left.Add(1)
				return
			}
			defer leave()
			n := running.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			running.Add(-1)
			done.Add(1)
		}
		want := func(when string, wantRunning, wantRefused, wantLeft, wantDone int64) {
			t.Helper()
			synctest.Wait()
			if running.Load() != wantRunning || refused.Load() != wantRefused || left.Load() != wantLeft || done.Load() != wantDone {
				t.Fatalf("%s: %d running, %d refused, %d left, %d done; want %d, %d, %d, %d", when,
					running.Load(), refused.Load(), left.Load(), done.Load(), wantRunning, wantRefused, wantLeft, wantDone)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		for i := range callsAtOnce + callsWaiting {
			if i < callsAtOnce+callsWaiting/2 {
				go call(t.Context(), "alice")
			} else {
				synctest.Wait() // these calls wait for a turn
				go call(ctx, "alice")
			}
		}
		want("full", callsAtOnce, 0, 0, 0)
		go call(t.Context(), "alice")
		want("one too many", callsAtOnce, 1, 0, 0)
		go call(t.Context(), "bob")
		want("with another key", callsAtOnce+1, 1, 0, 0)
		cancel()
		want("half of the waiting ones left", callsAtOnce+1, 1, callsWaiting/2, 0)
		go call(t.Context(), "alice")
		want("in their place", callsAtOnce+1, 1, callsWaiting/2, 0)
		close(release)
		want("released", 0, 1, callsWaiting/2, callsAtOnce+callsWaiting/2+2)
		if most.Load() != callsAtOnce+1 || len(turns.keys) != 0 {
			t.Errorf("%d ran at once, and %d keys are remembered", most.Load(), len(turns.keys))
		}
	})
}
