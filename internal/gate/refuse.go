package gate

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// This file refuses calls without a leak in gRPC. gRPC starts a timer for the deadline of a
// call before the tap, and stops the timer at the end of the call. If the tap refuses the call,
// gRPC keeps the timer, and half a KiB of memory, until the deadline passes. A client can
// choose a deadline in a thousand years. So the tap ([Gate.Tap]) refuses only a bounded number
// of calls with a deadline that is still to come. The other refused calls take the longer way:
// gRPC starts a handler with a context that has ended, and the handler returns the refusal.

const (
	// maxTimers bounds the refused calls with a timer in gRPC. Together, maxTimers calls
	// take some four MiB.
	maxTimers = 8192
	// maxTimeLeft bounds the time until the deadline of a call that the tap refuses.
	maxTimeLeft = time.Minute
)

// timers counts the calls that the tap has refused and for which gRPC still keeps a timer. Each
// call is counted until its deadline has passed. The zero value is ready for use.
type timers struct {
	mu     sync.Mutex                            // guards the fields below
	left   int                                   // the sum of counts
	counts [int(maxTimeLeft/time.Second) + 2]int // counts[s % len(counts)]: calls with a deadline in second s
	second int64                                 // seconds since 1970: the counts of earlier seconds are zero
}

// add reports whether the tap is allowed to refuse a call, and counts the call if so.
func (t *timers) add(now, deadline time.Time) bool {
	if deadline.Sub(now) > maxTimeLeft {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	size := int64(len(t.counts))
	for ; t.second < now.Unix(); t.second++ {
		if now.Unix()-t.second > size { // every counted deadline has passed
			t.counts, t.left, t.second = [int(maxTimeLeft/time.Second) + 2]int{}, 0, now.Unix()
			break
		}
		t.left -= t.counts[t.second%size]
		t.counts[t.second%size] = 0
	}
	if t.left >= maxTimers {
		return false
	}
	t.counts[max(deadline.Unix(), t.second)%size]++
	t.left++
	return true
}

// refuse returns what the tap returns for a call that is refused with err. If timers has no
// room for the call, refuse returns a [doomed] context: a handler then starts, and refuses
// the call with err.
func (g *Gate) refuse(ctx context.Context, err error) (context.Context, error) {
	deadline, ok := ctx.Deadline()
	if !ok || g.timers.add(time.Now(), deadline) {
		return ctx, err
	}
	return &doomed{Context: ctx, err: err}, nil
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// doomed serves as the context of a call that the gate refuses in a handler: the context has
// ended. The first call of Err returns nil all the same: gRPC calls Err once before the
// handler, and would keep the timer if Err returned an error.
type doomed struct {
	context.Context
	err   error // the error with which the call is refused
	asked atomic.Bool
}

// Value implements [context.Context]. For requestKey, Value returns the doomed context.
func (d *doomed) Value(key any) any {
	if key == (requestKey{}) {
		return d
	}
	return d.Context.Value(key)
}

// Done implements [context.Context]. The channel is closed.
func (*doomed) Done() <-chan struct{} { return closed }

// Err implements [context.Context]. The first call returns nil, and each later call
// context.Canceled.
func (d *doomed) Err() error {
	if d.asked.Swap(true) {
		return context.Canceled
	}
	return nil
}
