package feed

import (
	"context"
	"fmt"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/store"
)

// Beat sends a heartbeat to all watchers now.
func Beat(f *Feed) { f.beat() }

// CatchUp reads the tail now. Run must not be running.
func CatchUp(f *Feed, ctx context.Context) error { return f.catchUp(ctx) }

// Fill adds so many ended sessions, which the database does not have.
func Fill(f *Feed, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	until := time.Now().Add(time.Hour)
	for i := range n {
		f.revoked.add(&store.Event{Kind: store.SessionEnded, Subject: fmt.Sprintf("%016d", i), ExpiresAt: until}, &watchwordv1.Change{})
	}
}
