package pgtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestCluster(t *testing.T) {
	c := Start(t, Options{Settings: []string{"max_connections=33"}})
	uri := c.URI(t)
	t.Run("settings", func(t *testing.T) { hasSettings(t, uri) })
	t.Run("restart", func(t *testing.T) { restarts(t, c, uri) })
	t.Run("pause", func(t *testing.T) { pauses(t, c, uri) })
}

func hasSettings(t *testing.T, uri string) {
	for setting, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_connections": "33",
		"server_encoding": "UTF8", "lc_collate": "C",
	} {
		if got := value[string](t, uri, "SELECT setting FROM pg_settings WHERE name = $1", setting); got != want {
			t.Errorf("setting %s is %s, want %s", setting, got, want)
		}
	}
}

func restarts(t *testing.T, c *Cluster, uri string) {
	for name, end := range map[string]func(){"killed": c.Kill, "stopped": c.Stop, "running": func() {}} {
		conn := connect(t, uri)
		if _, err := conn.Exec(t.Context(), "CREATE TABLE "+name+" (id BIGINT)"); err != nil {
			t.Fatal(err)
		}
		end()
		_, err := conn.Exec(t.Context(), "SELECT 1")
		if (err == nil) != (name == "running") {
			t.Errorf("%s: on the old connection, got error %v", name, err)
		}
		if message := new(pgconn.PgError); name == "killed" && errors.As(err, &message) {
			t.Errorf("the killed server still sent a message: %v", err)
		}
		c.Restart()
		if n := value[int](t, uri, "SELECT count(*) FROM "+name); n != 0 {
			t.Errorf("%s: the table has %d rows, want none", name, n)
		}
	}
}

func pauses(t *testing.T, c *Cluster, uri string) {
	conn := connect(t, uri)
	answered := make(chan error, 1)
	c.Pause()
	defer c.Resume()
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT 1")
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("the frozen server answered: %v", err)
	case <-time.After(200 * time.Millisecond): // a running server answers within 1 ms
	}
	c.Resume()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestStandby(t *testing.T) {
	primary := Start(t, Options{})
	uri := primary.URI(t)
	statement(t, uri, "CREATE TABLE kept (id BIGINT)")
	frozen, standby := primary.Standby(t, true), primary.Standby(t, true)
	statement(t, uri, "INSERT INTO kept VALUES (1)")

	// A commit waits for both standbys, and the frozen standby cannot confirm.
	frozen.Pause()
	committed := make(chan error)
	conn := connect(t, uri)
	go func() {
		_, err := conn.Exec(context.Background(), "INSERT INTO kept VALUES (2)")
		committed <- err
	}()
	admin := primary.server.admin()
	if err := await(admin, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')"); err != nil {
		t.Fatal(err)
	}
	frozen.Resume()
	if err := <-committed; err != nil {
		t.Fatal(err)
	}

	primary.Kill()
	standby.Promote()
	if n := value[int](t, standby.Here(uri), "SELECT count(*) FROM kept"); n != 2 {
		t.Errorf("after the primary's end, %d of 2 rows are left", n)
	}
	statement(t, standby.Here(uri), "INSERT INTO kept VALUES (3)") // must not wait for a standby
}

func TestDetachedStandbyLacksLaterCommits(t *testing.T) {
	primary := Start(t, Options{})
	uri := primary.URI(t)
	standby := primary.Standby(t, false)
	statement(t, uri, "CREATE TABLE forked (id BIGINT)")
	const replayed = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn())"
	if err := await(primary.server.admin(), replayed); err != nil {
		t.Fatal(err)
	}
	standby.Detach(t)
	statement(t, uri, "INSERT INTO forked VALUES (1)")
	primary.Kill()
	standby.Promote()
	if n := value[int](t, standby.Here(uri), "SELECT count(*) FROM forked"); n != 0 {
		t.Errorf("the standby has %d rows from after Detach, want none", n)
	}
}

func TestBouncer(t *testing.T) {
	bouncer := Bouncer(t, URI(t))
	bouncer += "&default_query_exec_mode=exec" // PgBouncer keeps no prepared statement between transactions
	one, other := connect(t, bouncer), connect(t, bouncer)
	// In transaction mode, both clients use the same server connection in turn.
	const backend = "SELECT pg_backend_pid()"
	var first, second int
	if err := errors.Join(
		one.QueryRow(t.Context(), backend).Scan(&first),
		other.QueryRow(t.Context(), backend).Scan(&second),
	); err != nil {
		t.Fatal(err)
	}
	if first != second {
		t.Errorf("the two clients got the backends %d and %d, want the same backend", first, second)
	}
}
