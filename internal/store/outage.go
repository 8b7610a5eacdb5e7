package store

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// ErrAway means that the database does not answer. ErrAway matches ErrUnavailable. The Store
// logs the beginning and the end of an outage, so a caller needs no log line of its own.
var ErrAway = errors.New("the database is away")

// awayError is an error of the database that also matches ErrAway.
type awayError struct{ error }

func (e awayError) Unwrap() error        { return e.error }
func (e awayError) Is(target error) bool { return target == ErrAway }

// outage logs one line when the database stops answering, and one line when the database
// answers again, whatever number of calls fails between the two lines. An outage is safe for
// concurrent use.
type outage struct {
	logger *slog.Logger
	start  time.Time
	away   atomic.Bool  // set under mu; most calls read away without mu
	heard  atomic.Int64 // the time of the database's latest answer, in ns since the start of the process

	mu                sync.Mutex
	since             time.Time     // the time of the first failed call of the outage
	failed            time.Time     // the time of the latest failed call
	back              time.Time     // the time at which the latest outage ended
	calls             int64         // calls that failed in the outage
	outages, failures uint64        // outages and failed calls since the start of the process, for [Stats]
	settle            time.Duration // an answer of the database ends the outage if the latest failed call is this long ago
}

// The field settle begins at firstSettle. An outage that begins within restless after the end of
// the last outage doubles settle, up to restless. So a database that goes away again and again
// causes few lines in the log.
const (
	firstSettle = time.Second
	restless    = time.Minute
)

func newOutage(logger *slog.Logger) *outage { return &outage{logger: logger, start: time.Now()} }

// note counts a failed call as part of an outage if the database is away, and returns err, the
// call's error, or an error that also matches ErrAway. began is the time at which the call
// began. An error after the end of ctx tells nothing about the database.
func (o *outage) note(ctx context.Context, began time.Time, err error) error {
	switch {
	case meaningOf(err).answered:
		o.heard.Store(int64(time.Since(o.start)))
		if o.away.Load() {
			o.answered(ctx)
		}
		return err
	case errors.Is(err, errClosed):
		return err
	case ctx.Err() == nil && !o.busy(began, err):
		o.failedOnce(ctx, began, err)
	case !o.away.Load():
		return err
	}
	return awayError{err}
}

// answersEvery is longer than the time between two polls of a server: a database that works
// answers a server within answersEvery.
const answersEvery = 500 * time.Millisecond

// busy reports whether the time of a call ran out while the database answered other calls:
// because of a lock, or because other callers had every connection.
func (o *outage) busy(began time.Time, err error) bool {
	heard := o.start.Add(time.Duration(o.heard.Load()))
	return errors.Is(err, context.DeadlineExceeded) && heard.After(began) && time.Since(heard) < answersEvery
}

func (o *outage) failedOnce(ctx context.Context, began time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if began.Before(o.back) {
		return // the call belongs to the outage that has ended
	}
	now := time.Now()
	o.failed = now
	o.failures++
	if o.calls++; o.away.Load() {
		return
	}
	if o.settle = min(2*o.settle, restless); now.Sub(o.back) > restless {
		o.settle = firstSettle
	}
	o.since, o.calls = now, 1
	o.outages++
	o.away.Store(true)
	o.logger.WarnContext(ctx, "the database is not available: calls that need the database are refused, "+
		"and verifiers continue with the changes received so far", "error", err)
}

func (o *outage) answered(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if !o.away.Load() || now.Sub(o.failed) < o.settle {
		return
	}
	o.away.Store(false)
	o.back = now
	o.logger.InfoContext(ctx, "the database is available again",
		"after", now.Sub(o.since).Round(time.Millisecond), "failed_calls", o.calls)
}
