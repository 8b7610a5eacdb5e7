package store

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// Hints tell a replica that another replica has appended an event. A transaction that
// appends an event sends NOTIFY with the commit, and every replica listens on a
// connection of its own, outside of the pool. A hint only shortens the wait for the
// replica's next poll of the events, so any hint may be lost. A pooler in transaction
// mode passes no notification on: replicas behind such a pooler only poll.

// hints calls hint for each notification until ctx ends, and reconnects after a
// failure.
func (p *pgDB) hints(ctx context.Context, hint func()) {
	for again := true; again; again = pause(ctx, time.Second/2+rand.N(time.Second)) {
		_ = p.listen(ctx, hint) // without hints, replicas learn of events by polling
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
	hint() // events committed before LISTEN have sent no notification to this connection
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		hint()
	}
}
