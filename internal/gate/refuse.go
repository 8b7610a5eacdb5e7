package gate

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// This file refuses calls without a leak in gRPC. gRPC starts a timer for the deadline of a
// call before the tap, and stops the timer at the end of the call. For a call that the tap
// refuses, gRPC leaves the timer, and half a KiB of memory, until the deadline passes. A
// client may choose a deadline in a thousand years, so the tap may refuse only a bounded
// number of calls with a deadline that is still to come. The other refused calls take the longer
// way: a handler runs for the call, and the context ends the handler at once.

const (
	// maxTimers bounds the calls that the tap has refused before their deadline: until the
	// deadline, these calls keep some four MiB.
	maxTimers = 8192
	// maxTimeLeft bounds the time until the deadline of a call that the tap refuses.
	maxTimeLeft = time.Minute
)

// timers counts the calls that the tap has refused, until the deadline of each call has
// passed: gRPC keeps a timer for each such call until then. The counts stand by the second
// of the deadline. The zero value is ready for use.
type timers struct {
	mu     sync.Mutex // guards the fields below
	left   int        // the sum of counts
	counts [int(maxTimeLeft/time.Second) + 2]int
	second int64 // seconds since 1970: counts before this second are zero
}

// add counts a call, and reports whether the tap may refuse the call.
func (t *timers) add(now, deadline time.Time) bool {
	if deadline.Sub(now) > maxTimeLeft {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	size := int64(len(t.counts))
	for ; t.second < now.Unix(); t.second++ {
		if now.Unix()-t.second > size { // every count has passed
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

// refuse refuses a call in the tap, with err. If the call would leave a timer for too long,
// refuse returns a context with which the handler refuses the call instead.
func (g *Gate) refuse(ctx context.Context, err error) (context.Context, error) {
	deadline, ok := ctx.Deadline()
	if !ok || g.timers.add(time.Now(), deadline) {
		return ctx, err
	}
	return &doomed{Context: ctx, err: err}, nil
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// doomed is a context that has ended. The first call of Err returns nil all the same: gRPC
// calls Err once before gRPC starts the handler, and would leave the timer otherwise.
type doomed struct {
	context.Context
	err   error // of the call
	asked atomic.Bool
}

// Value returns the doomed context for requestKey.
func (d *doomed) Value(key any) any {
	if key == (requestKey{}) {
		return d
	}
	return d.Context.Value(key)
}

// Done returns a closed channel.
func (*doomed) Done() <-chan struct{} { return closed }

// Err returns context.Canceled, except for the first call.
func (d *doomed) Err() error {
	if d.asked.Swap(true) {
		return context.Canceled
	}
	return nil
}
