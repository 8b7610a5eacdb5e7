//go:build unix

package e2e

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// outages is the log of a verifier that measures the times without a stream.
type outages struct {
	mu      sync.Mutex
	since   time.Time // when the present outage began; zero while there is a stream
	longest time.Duration
	count   int
}

func (o *outages) Enabled(context.Context, slog.Level) bool { return true }
func (o *outages) WithAttrs([]slog.Attr) slog.Handler       { return o }
func (o *outages) WithGroup(string) slog.Handler            { return o }

func (o *outages) Handle(_ context.Context, r slog.Record) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case strings.HasPrefix(r.Message, "the stream of the trust bundle ended") && o.since.IsZero():
		o.since = r.Time
		o.count++
	case r.Message == "the trust bundle is up to date" && !o.since.IsZero():
		o.longest = max(o.longest, r.Time.Sub(o.since))
		o.since = time.Time{}
	}
	return nil
}

// read returns the number of outages, and the longest.
func (o *outages) read() (count int, longest time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		return o.count, max(o.longest, time.Since(o.since))
	}
	return o.count, o.longest
}

// steadyCalls are calls of one client, ten a second, until the end of the test.
type steadyCalls struct {
	mu     sync.Mutex
	made   int
	failed []string
}

// callSteadily calls the server until the end of the test.
func callSteadily(t *testing.T, c *client) *steadyCalls {
	t.Helper()
	s := &steadyCalls{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			bounded, done := context.WithTimeout(ctx, runTimeout)
			_, err := c.GetKeySet(bounded, &watchwordv1.GetKeySetRequest{})
			done()
			s.mu.Lock()
			if s.made++; err != nil && ctx.Err() == nil {
				s.failed = append(s.failed, err.Error())
			}
			s.mu.Unlock()
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

// wantNone waits for a further call, checks that no call has failed since the last wantNone, and
// returns the number of calls so far.
func (s *steadyCalls) wantNone(t *testing.T, after string) int {
	t.Helper()
	read := func() (int, []string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.made, s.failed
	}
	before, _ := read()
	eventually(t, runTimeout, "a further call "+after, func() error {
		if made, _ := read(); made < before+2 {
			return errors.New("no further call has ended")
		}
		return nil
	})
	made, failed := read()
	if len(failed) > 0 {
		t.Errorf("%s: %d calls of another client failed, the first with %s", after, len(failed), failed[0])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = nil
	return made
}
