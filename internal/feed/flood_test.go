package feed_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// polls counts the readings of the tail since the last call.
func polls(proxy *pgtest.Proxy) (n int64) {
	for _, trip := range proxy.Trips() {
		for _, s := range trip.Statements {
			if strings.HasPrefix(s.SQL, "SELECT seq FROM head") {
				n++
			}
		}
	}
	return n
}

// A role without rights that floods NOTIFY causes a bounded number of polls, and events arrive
// all the same. The feed does not poll by itself here, so the events come only by hints, the
// store's notifications of new events.
func TestAFloodOfNotificationsIsFewPolls(t *testing.T) {
	uri := storetest.Postgres(t)
	proxy := pgtest.NewProxy(t, uri)
	f := openFeed(t, storetest.Open(t, proxy.URI()))
	f.Pace(time.Hour, time.Hour)
	run(t, f)
	w, writer := watch(t, f), storetest.Open(t, uri)
	snapshot(t, w)
	conn, err := pgx.Connect(t.Context(), pgtest.Stranger(t, uri))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	ctx, stop := context.WithCancel(t.Context())
	var sent atomic.Int64
	over := make(chan struct{})
	polls(proxy)
	began := time.Now()
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			if _, err := conn.Exec(ctx, `SELECT pg_notify('watchword_events', n::text) FROM generate_series(1, 2) AS n`); err != nil {
				return
			}
			sent.Add(2)
		}
	}()
	events := 0
	for ; sent.Load() < 4_000; events++ {
		id := fmt.Sprint("session-", events)
		write(t, writer, ended(id))
		for heard := false; !heard; {
			for _, s := range next(t, w).GetChange().GetEndedSessions() {
				heard = heard || s.GetSessionId() == id
			}
		}
	}
	stop()
	<-over
	n, most := polls(proxy), 10+int64(time.Since(began)/(4*time.Millisecond))
	if n > most || n == 0 {
		t.Errorf("%d notifications caused %d polls in %v, want at most %d", sent.Load(), n, time.Since(began), most)
	}
	t.Logf("%d notifications and %d events, %d polls in %v", sent.Load(), events, n, time.Since(began))
}
