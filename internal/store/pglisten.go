package store

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// Hints: a transaction that appends an event sends NOTIFY with the commit, and every
// replica listens on a connection of its own, outside of the pool. A hint only shortens
// the wait for the next poll, so any may be lost. Behind a pooler in transaction mode no
// notification arrives.

// hints listens until ctx ends, and reconnects after a failure.
func (p *pgDB) hints(ctx context.Context, hint func()) {
	for again := true; again; again = pause(ctx, time.Second/2+rand.N(time.Second)) {
		_ = p.listen(ctx, hint) // polling goes on without hints
	}
}

func (p *pgDB) listen(ctx context.Context, hint func()) error {
	conn, err := pgx.ConnectConfig(ctx, p.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "LISTEN "+notifyChannel); err != nil {
		return err
	}
	hint() // for events from before LISTEN
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		hint()
	}
}
