package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(besideVariable); path != "" {
		os.Exit(writeBeside(path))
	}
	if arguments := os.Getenv(copyVariable); arguments != "" {
		copyAndDie(arguments)
	}
	if uri := os.Getenv(holderVariable); uri != "" {
		os.Exit(holdRow(uri))
	}
	goleak.VerifyTestMain(pgtest.Tests{M: m})
}

func open(t *testing.T) *store.Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "test.db"))
}

func openAt(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func setting(t *testing.T, s *store.Store, name string) (value string) {
	t.Helper()
	err := s.Read(t.Context(), func(tx *store.Tx) (err error) {
		value, err = tx.Setting(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func set(name, value string) func(*store.Tx) error {
	return func(tx *store.Tx) error { return tx.SetSetting(name, value) }
}

func TestWriteIsThereAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b%20c?.db") // a name that must not be read as a URI
	s, err := store.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), set("a", "1")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("file %v, %v", info, err)
	}
	if got := setting(t, openAt(t, path), "a"); got != "1" {
		t.Fatalf("a = %q", got)
	}
}

// group queues writes behind a blocked writer, so that they share a commit, and
// returns their errors.
func group(t *testing.T, s *store.Store, writes ...func(*store.Tx) error) []error {
	t.Helper()
	calls := make([]func() error, len(writes))
	for i, write := range writes {
		calls[i] = func() error { return s.Write(context.Background(), write) }
	}
	return groupCalls(t, s, calls...)
}

// groupCalls is like group, for calls of which each writes once.
func groupCalls(t *testing.T, s *store.Store, calls ...func() error) []error {
	t.Helper()
	release := storetest.Block(t, s)
	errs := make([]error, len(calls))
	var tasks sync.WaitGroup
	for i, call := range calls {
		tasks.Go(func() { errs[i] = call() })
	}
	store.WaitQueued(s, len(calls))
	release()
	tasks.Wait()
	return errs
}

func TestMembersOfAGroupRefuseAlone(t *testing.T) {
	s := open(t)
	refusal := errors.New("refused")
	errs := group(t, s,
		set("a", "1"),
		func(tx *store.Tx) error { return errors.Join(tx.SetSetting("b", "2"), refusal) },
		func(tx *store.Tx) error {
			if err := tx.SetSetting("c", "3"); err != nil {
				return err
			}
			panic("a bug")
		},
		func(tx *store.Tx) error {
			u := &store.User{ID: "x", Username: "x"}
			if err := tx.InsertUser(u); err != nil {
				return err
			}
			if err := tx.InsertUser(u); !errors.Is(err, store.ErrExists) {
				return fmt.Errorf("second insert: %w", err)
			}
			return tx.SetSetting("d", "4")
		},
	)
	if errs[0] != nil || !errors.Is(errs[1], refusal) || errs[2] == nil || errs[3] != nil {
		t.Fatalf("errors %v", errs)
	}
	for name, want := range map[string]string{"a": "1", "b": "", "c": "", "d": "4", "e": ""} {
		if got := setting(t, s, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

// A write without a savepoint of its own leaves the others of the group as they are, and
// leaves nothing of itself, whatever its function does.
func TestAMemberWithoutASavepointFailsAlone(t *testing.T) {
	s := open(t)
	refusal := errors.New("refused")
	write := func(fn func(*store.Tx) error) func() error {
		return func() error { return s.WriteLast(context.Background(), fn) }
	}
	errs := groupCalls(t, s,
		func() error { return s.Write(context.Background(), set("a", "1")) },
		write(func(tx *store.Tx) error { return errors.Join(tx.SetSetting("b", "2"), refusal) }),
		write(func(*store.Tx) error { return store.ErrNotFound }),
		write(func(tx *store.Tx) error {
			if err := tx.SetSetting("c", "3"); err != nil {
				return err
			}
			panic("a bug")
		}),
		write(set("d", "4")),
		write(func(tx *store.Tx) error { // writes by a statement that returns rows
			return errors.Join(store.SetSettingReturning(tx, "e", "5"), refusal)
		}),
	)
	if errs[0] != nil || !errors.Is(errs[1], refusal) || !errors.Is(errs[2], store.ErrNotFound) || errs[3] == nil || errs[4] != nil || !errors.Is(errs[5], refusal) {
		t.Fatalf("errors %v", errs)
	}
	for name, want := range map[string]string{"a": "1", "b": "", "c": "", "d": "4"} {
		if got := setting(t, s, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func TestADriversErrorHarmsNoStranger(t *testing.T) {
	s := open(t)
	const members = 20
	writes := make([]func(*store.Tx) error, members)
	for i := range writes {
		writes[i] = func(tx *store.Tx) error {
			if err := tx.SetSetting(fmt.Sprint("n", i), "yes"); err != nil {
				return err
			}
			if i == 7 {
				return store.FailDriver(tx)
			}
			return nil
		}
	}
	for i, err := range group(t, s, writes...) {
		want := "yes"
		if i == 7 {
			want = ""
			if !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("the one that failed: %v", err)
			}
		} else if err != nil {
			t.Errorf("stranger %d: %v", i, err)
		}
		if got := setting(t, s, fmt.Sprint("n", i)); got != want {
			t.Errorf("n%d = %q, want %q", i, got, want)
		}
	}
}

// A group that cannot begin is refused together: to wait for the lock again for
// each of its members would make the last ones wait for minutes.
func TestAGroupWaitsForALockOnce(t *testing.T) {
	const patience, members = 200 * time.Millisecond, 50
	s := open(t)
	db, err := sql.Open("sqlite", "file:"+s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := s.Write(t.Context(), set("a", "0")); err != nil {
		t.Fatal(err)
	}
	store.WaitForLock(t, s, patience)
	held, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := held.ExecContext(t.Context(), `BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	var writes sync.WaitGroup
	began := time.Now()
	for range members { // while the first write of the group waits, the other writes queue up
		writes.Go(func() {
			if err := s.Write(context.Background(), set("a", "1")); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("a write while another holds the lock: %v", err)
			}
		})
	}
	writes.Wait()
	if took := time.Since(began); took > members*patience/2 {
		t.Errorf("%d members waited for %v, where one waits for %v", members, took, patience)
	}
	if _, err := held.ExecContext(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), set("a", "2")); err != nil {
		t.Errorf("when the lock is free again: %v", err)
	}
}

func TestAFullDiskLeavesNoHalf(t *testing.T) {
	s := open(t)
	store.LimitPages(t, s, 60)
	big := string(make([]byte, 1<<20))
	writes := []func(*store.Tx) error{
		set("small1", "yes"),
		func(tx *store.Tx) error {
			if err := tx.SetSetting("half", "yes"); err != nil {
				return err
			}
			return tx.SetSetting("big", big)
		},
		set("small2", "yes"),
	}
	errs := group(t, s, writes...)
	if errs[0] != nil || !errors.Is(errs[1], store.ErrUnavailable) || errs[2] != nil {
		t.Fatalf("errors %v", errs)
	}
	for name, want := range map[string]string{"small1": "yes", "half": "", "big": "", "small2": "yes"} {
		if got := setting(t, s, name); got != want {
			t.Errorf("%s = %q, want %q", name, got[:min(len(got), 10)], want)
		}
	}
}

func TestACallerWhoGivesUpWritesNothingAndHarmsNobody(t *testing.T) {
	s := open(t)
	release := storetest.Block(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp, stayed := make(chan error, 1), make(chan error, 1)
	go func() { gaveUp <- s.Write(ctx, set("gave up", "yes")) }()
	go func() { stayed <- s.Write(context.Background(), set("stayed", "yes")) }()
	store.WaitQueued(s, 2)
	cancel()
	if err := <-gaveUp; !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatalf("who gave up: %v", err)
	}
	release()
	if err := <-stayed; err != nil {
		t.Fatalf("the stranger: %v", err)
	}
	if a, b := setting(t, s, "gave up"), setting(t, s, "stayed"); a != "" || b != "yes" {
		t.Fatalf("gave up %q, stayed %q", a, b)
	}
}

func TestAProcessBesideUs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	a, b := openAt(t, path), openAt(t, path) // two writers on one file, as the server and the command line
	var tasks sync.WaitGroup
	for name, s := range map[string]*store.Store{"a": a, "b": b} {
		for i := range 100 {
			tasks.Go(func() {
				if err := s.Write(t.Context(), set(fmt.Sprint(name, i), "yes")); err != nil {
					t.Errorf("%s%d: %v", name, i, err)
				}
			})
		}
	}
	tasks.Wait()
	for i := range 100 {
		if setting(t, a, fmt.Sprint("b", i)) != "yes" || setting(t, b, fmt.Sprint("a", i)) != "yes" {
			t.Fatalf("write %d is lost", i)
		}
	}
}

// If a newer program has changed the schema, the setting schema_floor tells whether this program
// can work with the schema.
func TestASchemaFromTheFuture(t *testing.T) {
	for floor, want := range map[string]error{"3": nil, "99998": store.ErrSchema, "99999": store.ErrSchema, "": store.ErrSchema} {
		path := filepath.Join(t.TempDir(), "test.db")
		s, err := store.Open(t.Context(), "sqlite:"+path)
		if err != nil {
			t.Fatal(err)
		}
		store.ForgeSchemaVersion(t, s, floor)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, err = store.Open(t.Context(), "sqlite:"+path)
		if !errors.Is(err, want) {
			t.Errorf("floor %q: %v, want %v", floor, err, want)
		}
		if err == nil {
			s.Close()
		}
	}
}

// A migration by a newer program beneath an open database is found.
func TestTheSchemaChangesBeneathUs(t *testing.T) {
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		s := storetest.Open(t, new(t))
		if err := s.CheckSchema(t.Context()); err != nil {
			t.Error(err)
		}
		store.ForgeSchemaVersion(t, s, "3")
		if err := s.CheckSchema(t.Context()); err != nil {
			t.Errorf("a schema that the program can work with: %v", err)
		}
		if err := s.Write(t.Context(), set("schema_floor", "99999")); err != nil {
			t.Fatal(err)
		}
		if err := s.CheckSchema(t.Context()); !errors.Is(err, store.ErrSchema) {
			t.Errorf("a schema that excludes the program: %v", err)
		}
	})
}

func TestURIs(t *testing.T) {
	for _, uri := range []string{"", "sqlite:", "watchword.db", "mysql://user:sesame@host/db", "postgres://user:sesame@host:port/db", "postgres://user:sesame@127.0.0.1:1/db"} {
		_, err := store.Open(t.Context(), uri)
		if err == nil {
			t.Errorf("%q was opened", uri)
		} else if strings.Contains(err.Error(), "sesame") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

// The migration that brings the table of usernames fills it with the names of all users,
// deleted users included.
func TestUsernamesOfEarlierUsers(t *testing.T) {
	uri := storetest.SQLite(t)
	s := storetest.Open(t, uri)
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		gone := newUser("gone")
		gone.DeletedAt = tx.Now()
		return errors.Join(tx.InsertUser(gone), tx.InsertUser(newUser("here")))
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", strings.TrimPrefix(uri, "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		`DROP TABLE audit_marks`, `DROP INDEX audit_cli`, `DROP INDEX audit_seq`, `ALTER TABLE audit DROP COLUMN seq`,
		`DROP TABLE usernames`, `ALTER TABLE audit DROP COLUMN actor_name`, `ALTER TABLE audit DROP COLUMN user_name`,
		`ALTER TABLE sessions DROP COLUMN repeated`, `ALTER TABLE sessions DROP COLUMN run`,
		`DROP INDEX users_services`, `ALTER TABLE users DROP COLUMN kind`, `ALTER TABLE users DROP COLUMN audiences`, `ALTER TABLE users DROP COLUMN delegates_to`, `ALTER TABLE events DROP COLUMN program`,
		`DROP TABLE bindings`, `DROP TABLE issuers`, `DROP TABLE replicas`, `DROP TABLE watcher_certificates`, `DROP TABLE ticks`, `DROP TABLE throttle`, `DROP INDEX sessions_ended`, `DROP INDEX users_admins`, `ALTER TABLE signing_keys DROP COLUMN counter`, `ALTER TABLE signing_keys DROP COLUMN tag`, `DELETE FROM goose_db_version WHERE version_id >= 6`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(statement, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	err = storetest.Open(t, uri).Read(t.Context(), func(tx *store.Tx) error {
		for _, name := range []string{"gone", "here"} {
			if ids, err := tx.UserIDs(name, 10); err != nil || len(ids) != 1 || ids[0] != name {
				t.Errorf("%s: %v, %v", name, ids, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// The new tokens of a refresh are prepared before the commit, which the writer holds back here
// until they are. If the group runs again, the tokens are prepared from the row of the newest run.
func TestTokensArePreparedBeforeTheCommit(t *testing.T) {
	for name, c := range map[string]struct {
		stranger func(*store.Tx) error
		prepared int
	}{
		"once":          {set("a", "1"), 1},
		"a second time": {store.FailDriver, 2},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			insertAlice(t, s, 1)
			var tasks sync.WaitGroup
			release, first := storetest.Block(t, s), make(chan struct{})
			var prepared []*store.Spent
			var err error
			tasks.Go(func() {
				err = s.Spend(t.Context(), spendOf("s0", 1), func(spent *store.Spent) {
					if prepared = append(prepared, spent); len(prepared) == 1 {
						close(first)
					}
				})
			})
			store.WaitQueued(s, 1)
			tasks.Go(func() {
				_ = s.Write(t.Context(), func(tx *store.Tx) error {
					select {
					case <-first:
					case <-time.After(20 * time.Second):
						t.Error("nothing is prepared before the commit")
					}
					return c.stranger(tx)
				})
			})
			store.WaitQueued(s, 2)
			release()
			tasks.Wait()
			if err != nil || len(prepared) != c.prepared {
				t.Fatalf("%v; prepared %d times", err, len(prepared))
			}
			err = s.Read(t.Context(), func(tx *store.Tx) error {
				row, err := tx.Session("s0")
				if newest := prepared[len(prepared)-1]; err == nil && (row.Generations.Current != 2 || !row.RefreshedAt.Equal(newest.RefreshedAt)) {
					t.Errorf("prepared %+v, and the session is %+v", newest, row)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
