package store_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// One line tells that the database is away, and one that the database is back. A database
// that comes and goes causes fewer and fewer lines.
func TestOutagesInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		call := store.Noting(slog.New(slog.NewTextHandler(&log, nil)))
		down := errors.Join(store.ErrUnavailable, errors.New("dial error"))
		lines := func() int { defer log.Reset(); return strings.Count(log.String(), "\n") }
		want := func(n int, when string) {
			t.Helper()
			if text := log.String(); lines() != n {
				t.Errorf("%s: want %d lines:\n%s", when, n, text)
			}
		}
		for range 100 {
			if err := call(t.Context(), down); !errors.Is(err, store.ErrAway) || !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("a call on a database that is away: %v", err)
			}
		}
		want(1, "away")
		time.Sleep(time.Hour)
		if err := call(t.Context(), nil); err != nil {
			t.Error(err)
		}
		want(1, "back")

		gone, leave := context.WithCancel(t.Context())
		leave()
		if err := call(gone, down); errors.Is(err, store.ErrAway) {
			t.Errorf("the client has left: %v", err)
		}
		if err := call(t.Context(), store.ErrNotFound); err != store.ErrNotFound {
			t.Error(err)
		}
		want(0, "a client that leaves, and a missing row")

		for range 3600 * 5 {
			_ = call(t.Context(), down)
			time.Sleep(100 * time.Millisecond)
			_ = call(t.Context(), nil)
			time.Sleep(100 * time.Millisecond)
		}
		want(1, "an hour in which each second call fails")
		time.Sleep(2 * time.Minute)
		_ = call(t.Context(), nil)
		want(1, "the end of that hour")
		for range 180 { // each outage lasts long enough for a line in the log, at first
			_ = call(t.Context(), down)
			time.Sleep(10 * time.Second)
			_ = call(t.Context(), nil)
			time.Sleep(10 * time.Second)
		}
		if n := lines(); n > 12 {
			t.Errorf("%d lines in an hour of short outages", n)
		}
	})
}
