package feed

import "context"

// CatchUp reads the tail now. Run must not be running.
func CatchUp(f *Feed, ctx context.Context) error { return f.readTail(ctx) }

// CountTicks counts ticks until a second attempt begins.
func CountTicks(f *Feed) {
	ctx, stop := context.WithCancel(context.Background())
	f.clockSet <- struct{}{} // has room for one
	go func() {
		f.clockSet <- struct{}{} // taken after the first attempt
		f.clockSet <- struct{}{}
		stop()
	}()
	f.countTicks(ctx)
}
