package feed

import (
	"context"
	"time"
)

// CatchUp reads the tail now. Run must not be running.
func CatchUp(f *Feed, ctx context.Context) error { return f.readTail(ctx) }

// CountTicks counts ticks until a second attempt begins.
func CountTicks(f *Feed) {
	ctx, stop := context.WithCancel(context.Background())
	f.tick <- struct{}{} // the channel has room for one tick
	go func() {
		f.tick <- struct{}{} // the channel takes this tick after the first attempt
		f.tick <- struct{}{}
		stop()
	}()
	f.countTicks(ctx)
}

// CountTick counts a tick now.
func CountTick(f *Feed, ctx context.Context) error { return f.countTick(ctx) }

// ProvenFor sets for how long a commit proves that the database can commit.
func ProvenFor(f *Feed, d time.Duration) { f.proven = d }
