package store

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// Hints tell a replica that another replica has appended an event, or asks all replicas for
// their watchers (the services that receive events). A transaction that does so sends NOTIFY
// with the commit, and every replica listens on a connection of its own, outside of the pool. A
// hint only shortens the wait for the replica's next poll of the events, so any hint may be
// lost. A pooler in transaction mode drops notifications: a replica behind such a pooler only
// polls. A replica to which PostgreSQL gives no connection for listening only polls, too.
//
// A role that is allowed to connect to the database is allowed to send notifications.
// PostgreSQL keeps notifications for a slow listener, and refuses NOTIFY to every role when the
// queue is full. So the listener reads notifications as fast as they come, and passes on one
// hint in hintEvery at most.

// hintEvery is the shortest time between two hints. A hint causes a poll, which takes
// about a millisecond.
const hintEvery = 5 * time.Millisecond

// hints calls hint for new notifications until ctx ends, and reconnects after a failure.
func (p *pgDB) hints(ctx context.Context, hint func()) {
	notified := make(chan struct{}, 1) // holds a notification for which hint was not called yet
	var passing sync.WaitGroup
	defer passing.Wait()
	passing.Go(func() {
		for again := true; again; again = pause(ctx, hintEvery) {
			select {
			case <-notified:
				hint()
			case <-ctx.Done():
			}
		}
	})
	for again := true; again; {
		listening := p.listener.begin(ctx)
		err := p.listen(listening, notified) // the error is ignored: without hints, a replica learns of events by polling
		wait := time.Second/2 + rand.N(time.Second)
		if listening.Err() != nil || sqlState(err) == tooManyConnections {
			wait += growAfter
		}
		again = pause(ctx, wait)
	}
}

// listener stops listening for hints when callers need the connection more, such as the last
// connection that PostgreSQL gives to this replica.
type listener struct {
	stop atomic.Pointer[context.CancelFunc]
}

// begin returns a context for the listening, which ends with ctx or by yield.
func (l *listener) begin(ctx context.Context) context.Context {
	ctx, stop := context.WithCancel(ctx)
	if before := l.stop.Swap(&stop); before != nil {
		(*before)()
	}
	return ctx
}

// yield makes the listener close its connection, and connect again some time later.
func (l *listener) yield() {
	if stop := l.stop.Load(); stop != nil {
		(*stop)()
	}
}

// listen reads notifications until ctx ends or the connection fails. listen fills
// notified after each notification if there is room.
func (p *pgDB) listen(ctx context.Context, notified chan<- struct{}) error {
	config := p.pool.Config()
	if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "LISTEN "+notifyChannel); err != nil {
		return err
	}
	for {
		select {
		case notified <- struct{}{}: // in the first round this hint stands for events committed before LISTEN
		default:
		}
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
	}
}
