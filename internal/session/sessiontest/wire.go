package sessiontest

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// Wired makes a world with PostgreSQL behind a proxy that counts statements. The feed does not
// poll, so the proxy sees only what the calls of the test send.
func Wired(t *testing.T) (*World, *pgtest.Proxy) {
	t.Helper()
	proxy := pgtest.NewProxy(t, storetest.Postgres(t))
	return On(t, proxy.URI(), func(f *feed.Feed) { f.Pace(Never, Never) }), proxy
}

// CutOnce returns a judge (a function for [pgtest.Proxy.Judge]) that gives fate to the first
// statement with a prefix, and lets every other statement pass.
func CutOnce(prefix string, fate pgtest.Fate) func(pgtest.Trip) pgtest.Fate {
	var done atomic.Bool
	return func(trip pgtest.Trip) pgtest.Fate {
		for _, s := range trip.Statements {
			if strings.HasPrefix(s.SQL, prefix) && done.CompareAndSwap(false, true) {
				return fate
			}
		}
		return pgtest.Pass
	}
}

// Counter counts the statements and round trips that calls send to PostgreSQL. Counter leaves
// out the events that the feed reads after a change or a hint, and what the pool sends by
// itself (see ofPool), since the number of these statements varies.
type Counter struct {
	proxy *pgtest.Proxy
	tails map[int]bool // the connections in a transaction by which the feed reads events
}

// Count returns a counter of the statements that pass the proxy.
func Count(proxy *pgtest.Proxy) *Counter { return &Counter{proxy, map[int]bool{}} }

// Want makes a call, and checks how many statements in how many round trips the call
// sent. Want counts BEGIN, its settings and COMMIT as statements, and statements that are sent
// together as one round trip.
func (c *Counter) Want(t *testing.T, name string, statements, trips int, call func()) {
	t.Helper()
	c.since()
	call()
	if s, n, text := c.since(); s != statements || n != trips {
		t.Errorf("%s: %d statements in %d trips, want %d in %d:\n%s", name, s, n, statements, trips, text)
	}
}

// since returns the counts of statements and round trips since the previous call of since.
func (c *Counter) since() (statements, trips int, text string) {
	for _, trip := range c.proxy.Trips() {
		last := ""
		for _, statement := range trip.Statements {
			if last = statement.SQL; strings.HasPrefix(last, "SELECT seq FROM head") && strings.HasSuffix(trip.Statements[0].SQL, "READ ONLY") {
				c.tails[trip.Conn] = true
			}
		}
		if c.tails[trip.Conn] {
			c.tails[trip.Conn] = last != "COMMIT"
			continue
		}
		if ofPool(trip) {
			continue
		}
		trips++
		statements += len(trip.Statements)
		for _, statement := range trip.Statements {
			text += statement.SQL + "\n"
		}
		text += "--\n"
	}
	return statements, trips, text
}

// ofPool reports whether the pool has sent a trip by itself: the time bounds of a new
// connection, or the check of a connection that was idle for a second.
func ofPool(trip pgtest.Trip) bool {
	for _, statement := range trip.Statements {
		sql := strings.Join(strings.Fields(statement.SQL), " ")
		if sql != "" && !strings.HasPrefix(sql, "--") && !strings.HasPrefix(sql, "SELECT set_config('statement_timeout', '5000', false)") {
			return false
		}
	}
	return true
}
