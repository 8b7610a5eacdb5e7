package storetest_test

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// fill makes the tables large that grow with use, as they are after an autovacuum.
var fill = []string{
	`INSERT INTO users SELECT 'user' || n, 'name' || n, '$hash', 'reader', false, 7, 0, n, n, NULL FROM generate_series(1, 20000) n`,
	`INSERT INTO sessions SELECT 'session' || n, 'user' || n % 20000, 7, '["internal"]', n, n, NULL, 1, 0, 0, 0, 0, 0, 0 FROM generate_series(1, 20000) n`,
	`INSERT INTO events SELECT n, '\x01', 'session-ended', 'session' || n, 0, 1700000000000000 + n::bigint * 1000000 FROM generate_series(1, 20000) n`,
	`INSERT INTO usernames SELECT 'name' || n, 'user' || n FROM generate_series(1, 20000) n`,
	`UPDATE head SET seq = 20000`,
	`INSERT INTO audit SELECT lpad(to_hex(1700000000000000 + n::bigint * 1000000), 16, '0') || lpad(to_hex(n), 12, '0'), 'login', true, '', 'actor', 'user' || n, 'session' || n, '', '', '', 1 FROM generate_series(1, 20000) n`,
	`INSERT INTO throttle SELECT n, 1700000000000000, 1700000000000000, '' FROM generate_series(100, 20000) n`,
	`INSERT INTO bindings SELECT 'binding' || n, 'issuer' || n % 20, 'subject' || n, '[]', 'user' || n % 10000, n FROM generate_series(1, 20000) n`,
	`INSERT INTO audit_marks SELECT n, n, 1700000000000000 + n::bigint * 1000000, n % 500 FROM generate_series(1, 20000) n`,
	`ANALYZE`,
}

var scansAll = regexp.MustCompile(`Seq Scan on (users|usernames|sessions|events|audit|audit_marks|throttle|bindings)\b`)

// No statement that the store runs reads all of a table that grows with use, whether PostgreSQL
// plans the statement for its arguments or for any arguments.
func TestEveryPlanIsAnIndexScan(t *testing.T) {
	uri := storetest.Postgres(t)
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for _, statement := range fill {
		exec(statement)
	}
	proxy := pgtest.NewProxy(t, uri)
	s := storetest.Open(t, proxy.URI()+"&default_query_exec_mode=exec")
	proxy.Trips() // drops the round trips that opening the store took
	storetest.TouchEverything(t, s, 1)
	planned := map[string]bool{}
	for _, trip := range proxy.Trips() {
		for _, statement := range trip.Statements {
			if sql := statement.SQL; planned[sql] || !regexp.MustCompile(`^(SELECT|WITH|INSERT|UPDATE|DELETE)`).MatchString(sql) {
				continue
			}
			planned[statement.SQL] = true
			exec(`PREPARE p AS ` + statement.SQL)
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				exec(`SET plan_cache_mode = ` + mode)
				if plan := explain(t, conn, "", statement); scansAll.MatchString(plan) {
					t.Errorf("%s: %s\n%s", mode, statement.SQL, plan)
				}
			}
			exec(`DEALLOCATE p`)
		}
	}
	if len(planned) < 30 {
		t.Errorf("only %d statements were planned", len(planned))
	}
}

// history makes rows that no list shows: of the user `heavy` 20,000 sessions that ended
// one by one and 20,000 that ended with all sessions of the user; 20,000 deleted users; and
// records of other users.
var history = []string{
	`INSERT INTO sessions SELECT 'ended' || n, 'heavy', 8, '["internal"]', n, n, n, 1, 0, 0, 0, 0, 0, 0 FROM generate_series(1, 20000) n`,
	`INSERT INTO sessions SELECT 'raised' || n, 'heavy', 7, '["internal"]', n, n, NULL, 1, 0, 0, 0, 0, 0, 0 FROM generate_series(1, 20000) n`,
	`INSERT INTO sessions SELECT 'live' || n, 'heavy', 8, '["internal"]', n, n, NULL, 1, 0, 0, 0, 0, 0, 0 FROM generate_series(1, 300) n`,
	`INSERT INTO users SELECT 'gone' || n, 'gone' || n, '$hash', 'reader', false, 7, 0, n, n, n FROM generate_series(1, 20000) n`,
	`ANALYZE`,
}

// A list reads the rows of its page, however long the history is.
func TestListsReadTheirPage(t *testing.T) {
	uri := storetest.Postgres(t)
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for _, statement := range append(fill, history...) {
		exec(statement)
	}
	proxy := pgtest.NewProxy(t, uri)
	s := storetest.Open(t, proxy.URI()+"&default_query_exec_mode=exec")
	heavy := &store.User{ID: "heavy", RevokedBelow: 8}
	const limit = 10
	for name, c := range map[string]struct {
		list func(*store.Tx) error
		most int // the largest number of rows that the list may read
	}{
		"sessions": {func(tx *store.Tx) error { _, err := tx.Sessions(heavy, store.SessionPlace{}, limit); return err }, limit},
		"the next sessions": {func(tx *store.Tx) error {
			_, err := tx.Sessions(heavy, store.SessionPlace{BornVersion: 8, CreatedAt: time.UnixMicro(150), ID: "live150"}, limit)
			return err
		}, limit},
		"sessions beyond":       {func(tx *store.Tx) error { _, err := tx.SessionsBeyond(heavy, 200, limit); return err }, 200 + 2*limit},
		"no session beyond":     {func(tx *store.Tx) error { _, err := tx.SessionsBeyond(heavy, 1000, limit); return err }, 300},
		"ended sessions beyond": {func(tx *store.Tx) error { _, err := tx.EndedBeyond(heavy, 100, limit); return err }, 2 * (100 + limit)},
		"a recent session": {func(tx *store.Tx) error {
			_, err := tx.IsRecent(&store.Session{UserID: "heavy", BornVersion: 7, CreatedAt: time.UnixMicro(150), ID: "raised150"}, limit)
			return err
		}, 2 * limit},
		"users":       {func(tx *store.Tx) error { _, err := tx.Users("gone", limit); return err }, limit + 1}, // one row more than limit: the floor of the versions
		"services":    {func(tx *store.Tx) error { _, err := tx.UsersOf(store.KindService, "", limit); return err }, 1},
		"all records": {func(tx *store.Tx) error { _, _, err := tx.Audit(store.AuditFilter{}, limit, 50); return err }, limit + 1},
		"a type": {func(tx *store.Tx) error {
			_, _, err := tx.Audit(store.AuditFilter{Type: "login"}, limit, 50)
			return err
		}, limit + 1},
		"a rare type": {func(tx *store.Tx) error {
			_, _, err := tx.Audit(store.AuditFilter{Type: "none"}, limit, 50)
			return err
		}, 0},
		"a user": {func(tx *store.Tx) error {
			_, _, err := tx.Audit(store.AuditFilter{UserID: "user77"}, limit, 50)
			return err
		}, 1},
		"a busy user": {func(tx *store.Tx) error {
			_, _, err := tx.Audit(store.AuditFilter{UserID: "actor"}, limit, 50)
			return err
		}, limit + 1},
		"a session": {func(tx *store.Tx) error {
			_, _, err := tx.Audit(store.AuditFilter{SessionID: "session9"}, limit, 50)
			return err
		}, 1},
		"two filters": {func(tx *store.Tx) error {
			_, _, err := tx.Audit(store.AuditFilter{UserID: "actor", Type: "none"}, limit, 50)
			return err
		}, 50},
	} {
		proxy.Trips()
		if err := s.Read(t.Context(), c.list); err != nil {
			t.Fatal(err)
		}
		for _, trip := range proxy.Trips() {
			for _, statement := range trip.Statements {
				if !strings.HasPrefix(statement.SQL, "SELECT id") && !strings.HasPrefix(statement.SQL, "SELECT (SELECT count") {
					continue
				}
				exec(`PREPARE p AS ` + statement.SQL)
				for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
					exec(`SET plan_cache_mode = ` + mode)
					plan := explain(t, conn, "ANALYZE, TIMING OFF, ", statement)
					if n := rowsRead(t, plan); n > c.most {
						t.Errorf("%s, %s: read %d rows, want at most %d:\n%s\n%s", name, mode, n, c.most, statement.SQL, plan)
					}
				}
				exec(`DEALLOCATE p`)
			}
		}
	}
}

// A refresh writes a heap-only tuple: no index of the sessions holds a column that a
// refresh changes, not even in its condition.
func TestARefreshChangesNoIndex(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), storetest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), `SELECT indexdef FROM pg_indexes WHERE tablename = 'sessions'`)
	if err != nil {
		t.Fatal(err)
	}
	indexes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(indexes) < 2 {
		t.Fatalf("%d indexes, %v", len(indexes), err)
	}
	for _, index := range indexes {
		if regexp.MustCompile(`\b(refreshed_at|current|spent|spent_at|low|earlier_low|late|late_at)\b`).MatchString(index) {
			t.Error(index)
		}
	}
}

var (
	scanned = regexp.MustCompile(`(?m)^ *(?:->  )?[A-Za-z ]*Scan [^\n]*actual rows=([0-9.]+) loops=([0-9]+)\)((?:\n +(?:[A-Z][A-Za-z ]*):[^\n]*)*)`)
	removed = regexp.MustCompile(`Rows Removed by [A-Za-z ]+: ([0-9]+)`)
)

// rowsRead returns the number of rows that a plan has read from tables and indexes.
func rowsRead(t *testing.T, plan string) (n int) {
	t.Helper()
	number := func(text string) int {
		f, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Error(err)
		}
		return int(f)
	}
	scans := scanned.FindAllStringSubmatch(plan, -1)
	if len(scans) == 0 {
		t.Errorf("no scan in\n%s", plan)
	}
	for _, scan := range scans {
		if strings.Contains(scan[0], "Subquery Scan") {
			continue
		}
		rows := number(scan[1])
		for _, r := range removed.FindAllStringSubmatch(scan[3], -1) {
			rows += number(r[1])
		}
		n += rows * number(scan[2])
	}
	return n
}

// explain returns the plan of the prepared statement p, for the arguments of a statement.
// options are options of EXPLAIN.
func explain(t *testing.T, conn *pgx.Conn, options string, statement pgtest.Statement) string {
	t.Helper()
	var args []string
	for _, arg := range statement.Args {
		if arg == nil {
			args = append(args, "NULL")
		} else {
			args = append(args, "'"+strings.ReplaceAll(string(arg), "'", "''")+"'")
		}
	}
	sql := `EXPLAIN (` + options + `COSTS OFF) EXECUTE p`
	if len(args) > 0 {
		sql += fmt.Sprintf("(%s)", strings.Join(args, ", "))
	}
	rows, err := conn.Query(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.Join(lines, "\n")
}
