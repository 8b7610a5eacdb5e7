package store_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// Numbers of the advisory locks that earlier programs held: "watchwor" in ASCII, and
// goose's own.
var earlierLocks = []int64{0x7761746368776f72, 4097083626}

// stranger connects to a database as a role without rights.
func stranger(t *testing.T, uri string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pgtest.Stranger(t, uri))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// databaseOf returns the name of the database in a URI.
func databaseOf(t *testing.T, uri string) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	return u.Path[1:]
}

// superuser returns the URI of a cluster's database for the superuser.
func superuser(t *testing.T, c *pgtest.Cluster, uri string) string {
	t.Helper()
	return strings.Replace(c.Superuser(), "/postgres?", "/"+databaseOf(t, uri)+"?", 1)
}

// A role without rights can hold any advisory lock, and no lock that the store takes.
func TestAStrangerHoldsNoLockOfOurs(t *testing.T) {
	uri := pgtest.URI(t)
	other := stranger(t, uri)
	for _, number := range earlierLocks {
		if _, err := other.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, number); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := store.Migrate(ctx, uri); err != nil {
		t.Fatalf("migrating: %v", err)
	}
	s := storetest.Open(t, uri)
	for _, attempt := range []string{
		`SELECT 1 FROM exclusive_lock FOR KEY SHARE NOWAIT`, `SELECT 1 FROM goose_lock FOR KEY SHARE NOWAIT`,
		`DO $$ BEGIN LOCK TABLE exclusive_lock IN ACCESS SHARE MODE NOWAIT; END $$`,
		`DO $$ BEGIN LOCK TABLE goose_lock IN ACCESS SHARE MODE NOWAIT; END $$`,
	} {
		if _, err := other.Exec(t.Context(), attempt); store.SQLState(err) != "42501" {
			t.Errorf("%s: %v, want insufficient privilege", attempt, err)
		}
	}
	// PostgreSQL locks the tables of a prepared statement before it checks any right.
	prepares := func(statements ...string) {
		for _, statement := range statements {
			if _, err := other.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
	}
	statements(t, uri, `DELETE FROM goose_db_version WHERE version_id >= 7`, `DROP INDEX goose_db_version_once`, `DROP TABLE exclusive_lock`,
		`DROP TABLE audit_marks`, `DROP INDEX audit_cli`, `ALTER TABLE audit DROP COLUMN seq`, `DROP SEQUENCE audit_numbers`, `ALTER TABLE sessions DROP COLUMN repeated, DROP COLUMN run`, `DROP TABLE bindings, issuers`, `DROP TABLE replicas, watcher_certificates`, `DROP TABLE ticks`, `DROP TABLE throttle`, `DROP INDEX sessions_ended`, `DROP INDEX users_admins`, `ALTER TABLE users DROP COLUMN kind, DROP COLUMN audiences, DROP COLUMN delegates_to`, `ALTER TABLE events DROP COLUMN program`, `ALTER TABLE signing_keys DROP COLUMN counter, DROP COLUMN tag`)
	prepares(`BEGIN`, `PREPARE a AS DELETE FROM goose_lock`)
	if err := store.Migrate(ctx, uri); err != nil {
		t.Errorf("migrating once more: %v", err)
	}
	prepares(`PREPARE b AS DELETE FROM exclusive_lock`, `PREPARE c AS SELECT 1 FROM exclusive_lock FOR UPDATE`)
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		return errors.Join(tx.Exclusive(), tx.SetSetting("held", "yes"))
	})
	if err != nil || setting(t, s, "held") != "yes" {
		t.Errorf("being exclusive: %v", err)
	}
}

// No transaction and no migration takes an advisory lock, under any number.
func TestNoAdvisoryLocks(t *testing.T) {
	proxy := pgtest.NewProxy(t, pgtest.URI(t))
	calls := map[string]func() error{
		"1 Migrate": func() error { return store.Migrate(t.Context(), proxy.URI()) },
		"2 Exclusive": func() error {
			return storetest.Open(t, proxy.URI()).Write(t.Context(), func(tx *store.Tx) error { return tx.Exclusive() })
		},
	}
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		if err := calls[name](); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		locks := 0
		for _, trip := range proxy.Trips() {
			for _, s := range trip.Statements {
				if strings.Contains(s.SQL, "goose_lock") || strings.Contains(s.SQL, "exclusive_lock") {
					locks++
				}
				if strings.Contains(strings.ToLower(s.SQL), "advisory") {
					t.Errorf("%s sends %s", name, s.SQL)
				}
			}
		}
		if locks == 0 {
			t.Errorf("%s takes no lock", name)
		}
	}
}

// floods is a role without rights that sends notifications until the function returned
// is called. sent counts the transactions with notifications.
func floods(t *testing.T, uri string, sent *atomic.Int64) (stop func()) {
	t.Helper()
	conn := stranger(t, uri)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			// Notifications with the same payload in one transaction are one.
			if _, err := conn.Exec(ctx, `SELECT pg_notify('watchword_events', n::text) FROM generate_series(1, 100) AS n`); err == nil {
				sent.Add(100)
			} else if ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// Hints come at most once in a few milliseconds, however many notifications a role
// without rights sends. A hint after the newest notification always comes.
func TestAFloodOfNotificationsIsFewHints(t *testing.T) {
	uri := storetest.Postgres(t)
	s := storetest.Open(t, uri)
	var hints, sent atomic.Int64
	hinted := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(ended)
		s.Hints(ctx, func() {
			hints.Add(1)
			select {
			case hinted <- struct{}{}:
			default:
			}
		})
	}()
	<-hinted // the first hint shows that the store listens
	stop := floods(t, uri, &sent)
	for sent.Load() < 20_000 {
		<-hinted
	}
	n := hints.Load() // before the time, since more hints come
	if most := 2 + int64(time.Since(began)/store.HintEvery); n > most {
		t.Errorf("%d notifications gave %d hints in %v, want at most %d", sent.Load(), n, time.Since(began), most)
	}
	t.Logf("%d notifications, %d hints in %v", sent.Load(), hints.Load(), time.Since(began))
	stop()
	// After the flood has been read, a single event gives a hint.
	err := s.Write(t.Context(), func(tx *store.Tx) error { return appendEvent(tx, "genuine") })
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-hinted:
	case <-time.After(10 * time.Second):
		t.Error("no hint after the flood")
	}
	cancel()
	<-ended
}

// The commit of an event does not depend on NOTIFY: a role without rights can fill
// PostgreSQL's queue of notifications, and NOTIFY then fails for every role.
func TestEventsCommitWithoutNotify(t *testing.T) {
	cluster := pgtest.Start(t, pgtest.Options{})
	uri := cluster.URI(t)
	if err := store.Migrate(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	s := storetest.Open(t, uri)
	statements(t, superuser(t, cluster, uri), `REVOKE EXECUTE ON FUNCTION pg_notify(TEXT, TEXT) FROM PUBLIC`)
	for n := range 3 {
		runs := 0
		err := s.Write(t.Context(), func(tx *store.Tx) error {
			runs++
			return errors.Join(tx.SetSetting("n", fmt.Sprint(n)), appendEvent(tx, "s"))
		})
		if err != nil || runs != 1 || setting(t, s, "n") != fmt.Sprint(n) {
			t.Errorf("write %d: ran %d times, %v; the setting is %q", n, runs, err, setting(t, s, "n"))
		}
	}
	var head int64
	err := s.Read(t.Context(), func(tx *store.Tx) (err error) { head, err = tx.Head(); return err })
	if err != nil || head != 3 {
		t.Errorf("%d events, %v", head, err)
	}
}

// The statement of docs/postgresql.md keeps other roles out of the database.
func TestRevokeConnect(t *testing.T) {
	uri := storetest.Postgres(t)
	other := pgtest.Stranger(t, uri)
	statements(t, uri, `REVOKE CONNECT ON DATABASE `+databaseOf(t, uri)+` FROM PUBLIC`)
	if conn, err := pgx.Connect(t.Context(), other); err == nil {
		conn.Close(t.Context())
		t.Error("a role without rights connects")
	} else if store.SQLState(err) != "42501" {
		t.Error(err)
	}
	storetest.Open(t, uri)
}

// The statement REVOKE ALL of docs/postgresql.md, for a database that several roles use, keeps
// the other roles from locking Watchword's tables.
func TestRevokeSchema(t *testing.T) {
	uri := storetest.Postgres(t)
	other := stranger(t, uri)
	statements(t, uri, `REVOKE ALL ON SCHEMA public FROM PUBLIC`)
	var left bool
	if err := other.QueryRow(t.Context(), `SELECT has_schema_privilege('public', 'USAGE')`).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left {
		t.Skip("before PostgreSQL 15 the schema public belongs to the superuser")
	}
	for _, attempt := range []string{
		`PREPARE a AS DELETE FROM public.users`, `CREATE RULE a AS ON INSERT TO public.users DO NOTHING`, `CREATE TABLE public.goose_lock (id INT)`,
	} {
		if _, err := other.Exec(t.Context(), attempt); store.SQLState(err) != "42501" {
			t.Errorf("%s: %v, want insufficient privilege", attempt, err)
		}
	}
	if err := storetest.Open(t, uri).Write(t.Context(), set("a", "b")); err != nil {
		t.Error(err)
	}
}
