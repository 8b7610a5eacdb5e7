package storetest_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
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
	`ANALYZE`,
}

var scansAll = regexp.MustCompile(`Seq Scan on (users|usernames|sessions|events|audit)\b`)

// No statement that the store runs reads all of a table that grows with use,
// whether it is planned for the arguments that it has or for any.
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
	proxy.Trips() // of opening
	storetest.TouchEverything(t, s, 1)
	planned := map[string]bool{}
	for _, trip := range proxy.Trips() {
		for _, statement := range trip.Statements {
			if sql := statement.SQL; planned[sql] || !regexp.MustCompile(`^(SELECT|INSERT|UPDATE|DELETE)`).MatchString(sql) {
				continue
			}
			planned[statement.SQL] = true
			exec(`PREPARE p AS ` + statement.SQL)
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				exec(`SET plan_cache_mode = ` + mode)
				if plan := explain(t, conn, statement); scansAll.MatchString(plan) {
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

func explain(t *testing.T, conn *pgx.Conn, statement pgtest.Statement) string {
	t.Helper()
	var args []string
	for _, arg := range statement.Args {
		if arg == nil {
			args = append(args, "NULL")
		} else {
			args = append(args, "'"+strings.ReplaceAll(string(arg), "'", "''")+"'")
		}
	}
	sql := `EXPLAIN EXECUTE p`
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
