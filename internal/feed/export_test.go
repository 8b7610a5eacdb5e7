package feed

import "context"

// CatchUp reads the tail now. Run must not be running.
func CatchUp(f *Feed, ctx context.Context) error { return f.readTail(ctx) }
