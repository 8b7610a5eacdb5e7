package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

// copyVariable tells the test's program to be a copy that is killed, and how:
// FROM, TO and after how many steps.
const copyVariable = "WATCHWORD_STORE_TEST_COPY"

// inhabited makes an embedded database with rows in every table, with the given number of
// sessions, and with every kind of value that a column can hold.
func inhabited(t *testing.T, sessions int) (uri string) {
	t.Helper()
	uri = storetest.SQLite(t)
	s, err := store.Open(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Write(t.Context(), func(tx *store.Tx) error {
		now := tx.Now()
		errs := []error{
			tx.SetSetting("database_id", "an id"), tx.SetMaxLifetime(time.Hour), tx.Tick(),
			tx.WriteReplica(&store.Replica{ID: 7, Summary: []byte{1}}), tx.SawCertificates([]string{"DNS orders"}),
			tx.InsertUser(&store.User{ID: "-_", Username: "zoë\U0001F511", PasswordHash: "$argon2id$…", Roles: []string{"a", "b"}, Version: 1 << 40, CreatedAt: now}),
			tx.InsertUser(&store.User{ID: "gone", Username: "gone", Disabled: true, RevokedBelow: 7, CreatedAt: now, DeletedAt: now}),
			tx.InsertMACKey(&store.MACKey{ID: 1, SealedKey: []byte{0, 0xff, '\n', '\\'}, CreatedAt: now}),
			tx.InsertSigningKey(&store.SigningKey{KID: "k1", Algorithm: "EdDSA", PublicKey: []byte{1}, SealedKey: []byte{}, PublishedAt: now, SignsFrom: now, Counter: 1, Tag: []byte{0}}),
			tx.InsertSigningKey(&store.SigningKey{KID: "k2", Algorithm: "EdDSA", PublicKey: []byte{2}, SealedKey: []byte{3}, PublishedAt: now, Counter: 1, Tag: []byte{4}}),
			tx.InsertIssuer(&store.Issuer{Name: "i", Issuer: "https://i", Jwks: "{\"keys\":\t[]}", Discovery: true, MaxLifetime: time.Hour, CreatedAt: now, UpdatedAt: now}),
			tx.InsertBinding(&store.Binding{ID: "b1", Issuer: "i", Subject: "a\ttab", UserID: "-_", CreatedAt: now, Claims: []store.BoundClaim{{Path: []string{`"`, `\`}, Value: true}}}),
			tx.InsertAudit(&store.AuditRecord{Type: "login", Success: true, Detail: "a\ttab, a \"quote\" and a \\", Count: 3}),
		}
		for i := range sessions {
			row := &store.Session{ID: fmt.Sprintf("s%d", i), UserID: "-_", Audience: []string{`in"side`}, CreatedAt: now, RefreshedAt: now,
				Generations: store.Generations{Current: int64(i), SpentAt: now, Late: -1}}
			errs = append(errs, tx.InsertSession(row))
			if i%1000 == 0 {
				errs = append(errs, tx.EndSession(row.ID), tx.AppendEvent(&store.Event{Tag: []byte{8, 7, 6, 5, 4, 3, 2, byte(i)}, Kind: store.SessionEnded, Subject: row.ID, ExpiresAt: now}))
			}
		}
		_, err := tx.MarkAudit()
		errs = append(errs, err)
		pair, err := tx.LockThrottleBuckets([2]int64{7, 1 << 40})
		pair[0].ClearAt, pair[0].NextAt, pair[0].Promises = now, now, []byte{0, 0xff, '\n', '\\'}
		return errors.Join(append(errs, err, tx.SetThrottleBucket(&pair[0]))...)
	})
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return uri
}

// tables returns the content of a database by tables, a line for each row, in the form in which
// the engine's own program shows the row.
func tables(t *testing.T, uri string, names, columns string) map[string][]string {
	t.Helper()
	driver, name := "sqlite", "file:"+strings.TrimPrefix(uri, "sqlite:")
	if strings.HasPrefix(uri, "postgres") {
		driver, name = "pgx", uri
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found := map[string][]string{}
	for _, table := range column(t, db, names) {
		lines := column(t, db, fmt.Sprintf(columns, table))
		slices.Sort(lines)
		query := fmt.Sprintf(`SELECT concat_ws('|', %s) FROM %s`, asText(lines), table)
		rows := column(t, db, query)
		slices.Sort(rows)
		found[strings.TrimPrefix(table, "moved_")] = rows
	}
	return found
}

// asText is columns as both engines write them.
func asText(columns []string) string {
	var texts []string
	for _, c := range columns {
		switch c {
		case "allow_private", "disabled", "discovery", "success":
			texts = append(texts, fmt.Sprintf("CAST(CAST(%s AS INTEGER) AS TEXT)", c))
		case "tag", "public_key", "sealed_key", "promises", "certificate", "summary":
			texts = append(texts, fmt.Sprintf("hex(%s)", c))
		default:
			texts = append(texts, fmt.Sprintf("COALESCE(CAST(%s AS TEXT), 'NULL')", c))
		}
	}
	return strings.Join(texts, ", ")
}

func column(t *testing.T, db *sql.DB, query string) (values []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		values = append(values, v)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return values
}

// sqliteHolds and postgresHolds leave out what a copy itself notes.
func sqliteHolds(t *testing.T, uri string) map[string][]string {
	t.Helper()
	holds := withoutNotes(tables(t, uri, `SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'goose_db_version' AND name NOT LIKE 'sqlite_%'`,
		`SELECT name FROM pragma_table_info('%s')`))
	delete(holds, "replicas") // a copy leaves this table out
	return holds
}

func postgresHolds(t *testing.T, uri string) map[string][]string {
	t.Helper()
	execute(t, uri, `CREATE OR REPLACE FUNCTION hex(BIGINT) RETURNS TEXT LANGUAGE SQL AS $$ SELECT upper(encode(convert_to($1::TEXT, 'UTF8'), 'hex')) $$`)
	execute(t, uri, `CREATE OR REPLACE FUNCTION hex(BYTEA) RETURNS TEXT LANGUAGE SQL AS $$ SELECT upper(encode($1, 'hex')) $$`)
	holds := withoutNotes(tables(t, uri, `SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_name NOT IN ('goose_db_version', 'goose_lock', 'exclusive_lock')`,
		`SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = '%s'`))
	if rows := holds["replicas"]; len(rows) > 0 {
		t.Errorf("a replica of the embedded database was copied: %q", rows)
	}
	delete(holds, "replicas")
	return holds
}

func withoutNotes(holds map[string][]string) map[string][]string {
	holds["settings"] = slices.DeleteFunc(holds["settings"], func(row string) bool {
		return strings.HasPrefix(row, "copy|") || strings.HasPrefix(row, "moved_to|") || strings.HasPrefix(row, "copy_incomplete|")
	})
	return holds
}

func execute(t *testing.T, uri, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func wantSame(t *testing.T, want, got map[string][]string) {
	t.Helper()
	if len(want) != len(got) || len(want) == 0 {
		t.Errorf("%d tables became %d", len(want), len(got))
	}
	for table, rows := range want {
		if len(rows) == 0 {
			t.Errorf("nothing was in %s", table)
		}
		if !slices.Equal(rows, got[table]) {
			t.Errorf("%s: %d rows became %d: %.200q, then %.200q", table, len(rows), len(got[table]), rows, got[table])
		}
	}
}

func copyTo(t *testing.T, from, to string) *store.Copied {
	t.Helper()
	copied, err := store.Copy(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	return copied
}

// refusesToOpen fails the test unless Open returns an error that contains says.
func refusesToOpen(t *testing.T, uri, says string) {
	t.Helper()
	s, err := store.Open(t.Context(), uri)
	if err == nil {
		s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("opening it: %v, want an error that says %q", err, says)
	}
}

func TestCopyBringsEverything(t *testing.T) {
	const sessions = 5001 // more than one message of COPY
	from, to := inhabited(t, sessions), storetest.Postgres(t)
	before := sqliteHolds(t, from)
	copied := copyTo(t, from, to)
	wantSame(t, before, postgresHolds(t, to))
	wantSame(t, before, sqliteHolds(t, from)) // the source keeps its rows, in renamed tables
	if i := slices.IndexFunc(copied.Tables, func(c store.CopiedTable) bool { return c.Name == "sessions" }); i < 0 || copied.Tables[i].Rows != sessions {
		t.Errorf("it says %v", copied)
	}
	s := storetest.Open(t, to)
	err := s.Write(t.Context(), func(tx *store.Tx) error { // the numbers of events continue in the copy
		e := &store.Event{Tag: []byte("12345678"), Kind: store.KeysChanged}
		tx.OnCommit(func() {
			if e.Seq != 7 {
				t.Errorf("the event behind six has number %d", e.Seq)
			}
		})
		return tx.AppendEvent(e)
	})
	if err != nil {
		t.Error(err)
	}
	if again := copyTo(t, from, to); !again.Earlier { // the first copy was killed before it could report
		t.Errorf("copied again: %v", again)
	}
	refusesToOpen(t, from, copied.To)
	if u, _ := pgx.ParseConfig(to); u.Password == "" || strings.Contains(fmt.Sprint(copied, setting(t, s, "copy")), u.Password) {
		t.Errorf("%v shows the password", copied)
	}
	elsewhere := storetest.Postgres(t)
	if _, err := store.Copy(t.Context(), from, elsewhere); err == nil || !strings.Contains(err.Error(), "was moved to") {
		t.Errorf("copied elsewhere: %v", err)
	}
}

// After a copy, a server that still has the source open gets the error that the database is away
// for every call, and the copy has every write that the server has acknowledged.
func TestCopyTakesAlongWhatWasAcknowledged(t *testing.T) {
	from, to := inhabited(t, 10), storetest.Postgres(t)
	running := storetest.Open(t, from)
	var acknowledged sync.Map
	var fenced atomic.Bool
	var started, workers sync.WaitGroup
	for w := range 8 {
		started.Add(1)
		workers.Go(func() {
			for i := 0; ; i++ {
				id, late := fmt.Sprintf("writer-%d-%d", w, i), fenced.Load()
				err := running.Write(t.Context(), func(tx *store.Tx) error { return tx.InsertUser(newUser(id)) })
				if i == 0 {
					started.Done()
				}
				if err == nil && !late {
					acknowledged.Store(id, true)
					continue
				}
				if !errors.Is(err, store.ErrUnavailable) || late && !wasMoved(err) {
					t.Errorf("a write was answered by %v", err)
				}
				return
			}
		})
	}
	started.Wait()
	copyTo(t, from, to)
	fenced.Store(true)
	workers.Wait()
	copied := map[string]bool{}
	for _, row := range postgresHolds(t, to)["users"] {
		copied[strings.Split(row, "|")[5]] = true // audiences, created_at, delegates_to, deleted_at, disabled, id
	}
	n := 0
	acknowledged.Range(func(id, _ any) bool {
		if n++; !copied[id.(string)] {
			t.Errorf("%v was acknowledged, and is lost", id)
		}
		return true
	})
	t.Logf("%d writes were acknowledged before the fence", n)
	if n == 0 {
		t.Error("nobody wrote")
	}
	err := running.Read(t.Context(), func(tx *store.Tx) error { _, err := tx.Head(); return err })
	if !errors.Is(err, store.ErrUnavailable) || !wasMoved(err) {
		t.Errorf("a read of a database that was moved: %v", err)
	}
	if err := running.Read(t.Context(), (*store.Tx).Usable); err == nil || !strings.Contains(err.Error(), "was moved to") {
		t.Errorf("who had it open before is told %v", err)
	}
	if err := running.Spend(t.Context(), &store.Spend{SessionID: "s1", Generation: 1}, func(*store.Spent) {}); !errors.Is(err, store.ErrUnavailable) || !wasMoved(err) {
		t.Errorf("a refresh on a database that was moved: %v", err)
	}
}

func wasMoved(err error) bool { return errors.As(err, new(*store.MovedError)) }

func newUser(id string) *store.User { return &store.User{ID: id, Username: id, CreatedAt: time.Now()} }

// copyAndDie is a copy that is killed, in a process of its own.
func copyAndDie(arguments string) {
	fields := strings.Fields(arguments)
	steps, err := strconv.Atoi(fields[2])
	if err == nil {
		err = store.CopySteps(context.Background(), fields[0], fields[1], steps)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Kill()
	}
	select {}
}

func TestCopyIsKilled(t *testing.T) {
	const committed, fenced = 4, 6 // the number of steps after which the copy has committed, and has fenced the source
	for steps := 1; steps <= store.StepsOfACopy; steps++ {
		t.Run(fmt.Sprint(steps), func(t *testing.T) {
			from, to := inhabited(t, 10), storetest.Postgres(t)
			before := sqliteHolds(t, from)
			early := storetest.Open(t, to) // opens the target like a server that starts just before the copy
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", copyVariable, from, to, steps))
			var out bytes.Buffer
			cmd.Stdout = &out
			if err := cmd.Run(); cmd.ProcessState.ExitCode() != -1 {
				t.Fatalf("it was not killed: %v %s", err, &out)
			}
			if steps < fenced {
				s := storetest.Open(t, from)
				if err := s.Write(t.Context(), func(tx *store.Tx) error { return tx.InsertUser(newUser("later")) }); err != nil {
					t.Errorf("the source, which was not fenced: %v", err)
				}
				before = sqliteHolds(t, from)
			} else {
				refusesToOpen(t, from, "was moved to")
			}
			if steps >= committed && steps < store.StepsOfACopy {
				refusesToOpen(t, to, "was interrupted")
				err := early.Write(t.Context(), func(tx *store.Tx) error { return errors.Join(tx.Exclusive(), tx.Usable()) })
				if err == nil {
					t.Error("who had it open may work on a copy that is not finished")
				}
			}
			if copied := copyTo(t, from, to); copied.Earlier != (steps >= fenced) {
				t.Errorf("the next copy says %v", copied)
			}
			wantSame(t, before, postgresHolds(t, to))
			refusesToOpen(t, from, "was moved to")
			storetest.Open(t, to)
		})
	}
}

func TestCopyRefuses(t *testing.T) {
	from := inhabited(t, 10)
	before := sqliteHolds(t, from)
	used := storetest.Postgres(t)
	if err := storetest.Open(t, used).Write(t.Context(), func(tx *store.Tx) error { return tx.InsertUser(newUser("someone")) }); err != nil {
		t.Fatal(err)
	}
	begun := storetest.Postgres(t)
	if err := storetest.Open(t, begun).Write(t.Context(), set("database_id", "another")); err != nil {
		t.Fatal(err)
	}
	strange := filepath.Join(t.TempDir(), "strange.db")
	if err := os.WriteFile(strange, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "missing.db")
	empty := storetest.Postgres(t)
	for _, test := range []struct{ from, to, says string }{
		{from, used, "its table usernames has rows"},
		{from, begun, "its table settings has rows"},
		{from, pgtest.URI(t), store.ErrOldSchema.Error() + ": there is none yet"},
		{from, from, "must be postgres"},
		{empty, empty, "must be sqlite"},
		{"sqlite:" + missing, empty, "there is no database " + missing},
		{"sqlite:" + strange, empty, "not a watchword database"},
	} {
		_, err := store.Copy(t.Context(), test.from, test.to)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("copying %s to %s: %v, want an error that says %q", test.from, test.to, err, test.says)
		}
		if u, _ := pgx.ParseConfig(test.to); err != nil && u != nil && strings.Contains(err.Error(), u.Password) {
			t.Errorf("%v shows the password", err)
		}
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("a database was made where there was none")
	}
	wantSame(t, before, sqliteHolds(t, from))
	copyTo(t, from, empty+"&default_query_exec_mode=exec") // the failed copies have left the source as it was; exec is the mode for a pooler
	wantSame(t, before, postgresHolds(t, empty))
}

// docs/restore.md has the statements that undo a fence, for a database that no server has
// written to after the fence.
func TestAFenceCanBeUndone(t *testing.T) {
	from := inhabited(t, 10)
	before := sqliteHolds(t, from)
	copyTo(t, from, storetest.Postgres(t))
	document, err := os.ReadFile(filepath.Join("..", "..", "docs", "restore.md"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", strings.TrimPrefix(from, "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for line := range strings.Lines(string(document)) {
		if statement := strings.TrimSpace(line); strings.HasPrefix(line, "    ") && strings.HasSuffix(statement, ";") {
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Errorf("%s %v", statement, err)
			}
		}
	}
	storetest.Open(t, from)
	wantSame(t, before, sqliteHolds(t, from))
	again := storetest.Postgres(t)
	copyTo(t, from, again)
	wantSame(t, before, postgresHolds(t, again))
}
