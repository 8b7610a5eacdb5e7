package pgtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestKillAndRestart(t *testing.T) {
	c := Start(t, Options{Settings: []string{"max_connections=33"}})
	uri := c.URI(t)
	for setting, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_connections": "33",
		"server_encoding": "UTF8", "lc_collate": "C",
	} {
		if got := value[string](t, uri, "SELECT setting FROM pg_settings WHERE name = $1", setting); got != want {
			t.Errorf("%s is %s, want %s", setting, got, want)
		}
	}
	for name, end := range map[string]func(){"killed": c.Kill, "stopped": c.Stop, "running": func() {}} {
		conn := connect(t, uri)
		if _, err := conn.Exec(t.Context(), "CREATE TABLE "+name+" (id BIGINT)"); err != nil {
			t.Fatal(err)
		}
		end()
		if _, err := conn.Exec(t.Context(), "SELECT 1"); (err == nil) != (name == "running") {
			t.Errorf("%s: a connection from before says %v", name, err)
		}
		c.Restart()
		if n := value[int](t, uri, "SELECT count(*) FROM "+name); n != 0 {
			t.Errorf("%s: %d rows", name, n)
		}
	}
}

func TestKillTellsNobody(t *testing.T) {
	c := Start(t, Options{})
	conn := connect(t, c.URI(t))
	c.Kill()
	_, err := conn.Exec(t.Context(), "SELECT 1")
	if said := new(pgconn.PgError); err == nil || errors.As(err, &said) {
		t.Errorf("the server had time for a word: %v", err)
	}
}

func TestPause(t *testing.T) {
	c := Start(t, Options{})
	conn := connect(t, c.URI(t))
	answered := make(chan error)
	c.Pause()
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT 1")
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Errorf("a frozen server answers: %v", err)
	case <-time.After(200 * time.Millisecond): // it takes less than one
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
	standby := primary.Standby(t, true)
	statement(t, uri, "INSERT INTO kept VALUES (1)")

	// A frozen standby can't confirm, so a commit waits for it.
	standby.Pause()
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
	standby.Resume()
	if err := <-committed; err != nil {
		t.Fatal(err)
	}

	primary.Kill()
	standby.Promote()
	if n := value[int](t, standby.Here(uri), "SELECT count(*) FROM kept"); n != 2 {
		t.Errorf("%d rows of 2 survived the primary", n)
	}
	statement(t, standby.Here(uri), "INSERT INTO kept VALUES (3)") // and waits for no standby of its own
}

func TestForkedHistory(t *testing.T) {
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
		t.Errorf("%d rows from after the fork", n)
	}
}

func TestBouncer(t *testing.T) {
	bouncer := Bouncer(t, URI(t))
	bouncer += "&default_query_exec_mode=exec" // no prepared statement outlives its transaction
	one, other := connect(t, bouncer), connect(t, bouncer)
	// Only by transaction can both have had the one server connection.
	const backend = "SELECT pg_backend_pid()"
	var first, second int
	if err := errors.Join(
		one.QueryRow(t.Context(), backend).Scan(&first),
		other.QueryRow(t.Context(), backend).Scan(&second),
	); err != nil {
		t.Fatal(err)
	}
	if first != second {
		t.Errorf("two sessions had the backends %d and %d in turn", first, second)
	}
}
