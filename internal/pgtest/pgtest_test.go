package pgtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func connect(t *testing.T, uri string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// value runs a query with a single value as result.
func value[T any](t *testing.T, uri, question string, args ...any) (answer T) {
	t.Helper()
	if err := connect(t, uri).QueryRow(t.Context(), question, args...).Scan(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func statement(t *testing.T, uri, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := connect(t, uri).Exec(ctx, text); err != nil {
		t.Fatal(err)
	}
}

func TestURIReturnsSeparateDatabases(t *testing.T) {
	const tables = "SELECT count(*) FROM pg_tables WHERE tableowner = current_user"
	first, second := URI(t), URI(t)
	statement(t, first, "CREATE TABLE mine (id BIGINT)")
	if n := value[int](t, first, tables); n != 1 {
		t.Errorf("the first database has %d tables, want 1", n)
	}
	if n := value[int](t, second, tables); n != 0 {
		t.Errorf("the second database has %d tables, want none", n)
	}
	if value[bool](t, first, "SELECT usesuper FROM pg_user WHERE usename = current_user") && os.Getenv(external) == "" {
		t.Error("the database's owner is a superuser, so PostgreSQL would check no permission")
	}
}

func TestDatabaseIsDropped(t *testing.T) {
	var dropped string
	t.Run("user", func(t *testing.T) {
		dropped = URI(t)
		// The connection stays open: the drop must cut the connection.
		if _, err := pgx.Connect(t.Context(), dropped); err != nil {
			t.Fatal(err)
		}
	})
	const exists = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)"
	name := dropped[strings.LastIndex(dropped, "/")+1:]
	name, _, _ = strings.Cut(name, "?")
	if value[bool](t, URI(t), exists, name) {
		t.Errorf("the database %s still exists after the test", name)
	}
}

// TestURIUsesTheServerInTheEnvironment sets WATCHWORD_TEST_POSTGRES_URL.
func TestURIUsesTheServerInTheEnvironment(t *testing.T) {
	elsewhere := Start(t, Options{})
	t.Setenv(external, elsewhere.Superuser())
	if uri := URI(t); !strings.Contains(uri, elsewhere.Addr()) || value[string](t, uri, "SELECT 'here'") != "here" {
		t.Errorf("the database %s is not on the server %s", uri, elsewhere.Addr())
	}
}

func TestPrograms(t *testing.T) {
	if _, err := programsIn([]string{t.TempDir()}); !errors.Is(err, errNoPostgres) {
		t.Errorf("an empty directory: got error %v, want errNoPostgres", err)
	}
	if version("/usr/lib/postgresql/15/bin") <= version("/usr/lib/postgresql/9/bin") {
		t.Error("version 9 sorts after version 15")
	}
}

// inChild reports whether this process was started by asChild.
func inChild() bool { return os.Getenv("PGTEST_CHILD") != "" }

// asChild returns a command that runs the current test in a child process.
func asChild(t *testing.T, env ...string) *exec.Cmd {
	child := exec.Command(os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
	child.Env = append(append(os.Environ(), "PGTEST_CHILD=1", external+"="), env...)
	return child
}

func TestMissingProgramsFail(t *testing.T) {
	if inChild() {
		programs = func() (string, error) { return programsIn(nil) }
		URI(t)
		t.Log("the test went on")
		return
	}
	out, err := asChild(t).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "apt-get install postgresql") || strings.Contains(string(out), "the test went on") {
		t.Errorf("the child did not fail with a hint to install PostgreSQL: %v\n%s", err, out)
	}
}

func TestMissingProgramsSkipIfAServerIsSet(t *testing.T) {
	if inChild() {
		programs = func() (string, error) { return programsIn(nil) }
		Start(t, Options{})
	}
	out, err := asChild(t, external+"=postgres://user:password@127.0.0.1:1/postgres").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- SKIP") || !strings.Contains(string(out), external+" is set") {
		t.Errorf("the child did not skip the test: %v\n%s", err, out)
	}
}

// TestServersEndWithAKilledTest kills a process with servers of every kind, among them a
// frozen server and a dead server. All programs must end, and all directories must go.
func TestServersEndWithAKilledTest(t *testing.T) {
	if inChild() {
		startServersAndWait(t)
		return
	}
	tmp, err := os.MkdirTemp(memory(), "pgtest-killed")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	if err := os.Chmod(tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	child := asChild(t, "TMPDIR="+tmp)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var addresses []string
	for lines.Scan() && lines.Text() != "ready" {
		if address, ok := strings.CutPrefix(lines.Text(), "at "); ok {
			addresses = append(addresses, address)
		}
	}
	child.Process.Kill()
	child.Wait()
	if len(addresses) != 3 {
		t.Fatalf("the child printed the addresses %q, want three", addresses)
	}
	eventually(t, "the child's directories are removed", func() bool {
		left, err := os.ReadDir(tmp)
		return err == nil && len(left) == 0
	})
	for _, address := range addresses {
		eventually(t, address+" refuses connections", func() bool {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
			}
			return errors.Is(err, syscall.ECONNREFUSED)
		})
	}
}

// startServersAndWait prints the servers' addresses and waits to be killed.
func startServersAndWait(t *testing.T) {
	uri := URI(t)
	addressOf := func(uri string) string { return connect(t, uri).PgConn().Conn().RemoteAddr().String() }
	frozen, dead := Start(t, Options{}), Start(t, Options{})
	for _, address := range []string{addressOf(uri), addressOf(Bouncer(t, uri)), frozen.Addr()} {
		fmt.Println("at " + address)
	}
	frozen.Pause()
	dead.Kill()
	fmt.Println("ready")
	select {} // waits until the parent kills this process
}

func eventually(t *testing.T, what string, true func() bool) {
	t.Helper()
	timeout := time.After(patience)
	for again := time.Tick(10 * time.Millisecond); !true(); {
		select {
		case <-again:
		case <-timeout:
			t.Fatalf("still not true after %v: %s", patience, what)
		}
	}
}
