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

// value asks for one value.
func value[T any](t *testing.T, uri, question string, args ...any) (answer T) {
	t.Helper()
	if err := connect(t, uri).QueryRow(t.Context(), question, args...).Scan(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func statement(t *testing.T, uri, text string) {
	t.Helper()
	if _, err := connect(t, uri).Exec(t.Context(), text); err != nil {
		t.Fatal(err)
	}
}

func TestDatabasesOfTheirOwn(t *testing.T) {
	const tables = "SELECT count(*) FROM pg_tables WHERE tableowner = current_user"
	first, second := URI(t), URI(t)
	statement(t, first, "CREATE TABLE mine (id BIGINT)")
	if n := value[int](t, first, tables); n != 1 {
		t.Errorf("the first has %d tables, want 1", n)
	}
	if n := value[int](t, second, tables); n != 0 {
		t.Errorf("the second has %d tables, want none", n)
	}
	if value[bool](t, first, "SELECT usesuper FROM pg_user WHERE usename = current_user") && os.Getenv(external) == "" {
		t.Error("the owner is a superuser, whom nothing is refused")
	}
}

func TestDatabaseIsDropped(t *testing.T) {
	var dropped string
	t.Run("user", func(t *testing.T) {
		dropped = URI(t)
		// Nobody closes this one.
		if _, err := pgx.Connect(t.Context(), dropped); err != nil {
			t.Fatal(err)
		}
	})
	const exists = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)"
	name := dropped[strings.LastIndex(dropped, "/")+1:]
	name, _, _ = strings.Cut(name, "?")
	if value[bool](t, URI(t), exists, name) {
		t.Errorf("the database %s is still there", name)
	}
}

// TestElsewhere gives URI the address of a server, as the environment may.
func TestElsewhere(t *testing.T) {
	elsewhere := Start(t, Options{})
	t.Setenv(external, elsewhere.Superuser())
	if uri := URI(t); !strings.Contains(uri, elsewhere.Addr()) || value[string](t, uri, "SELECT 'here'") != "here" {
		t.Errorf("%s is not on %s", uri, elsewhere.Addr())
	}
}

func TestPrograms(t *testing.T) {
	if _, err := programsIn([]string{t.TempDir()}); !errors.Is(err, errNoPostgres) {
		t.Errorf("an empty directory: %v", err)
	}
	if version("/usr/lib/postgresql/15/bin") <= version("/usr/lib/postgresql/9/bin") {
		t.Error("9 is taken for newer than 15")
	}
}

// inChild says whether this is the process that asChild starts.
func inChild() bool { return os.Getenv("PGTEST_CHILD") != "" }

// asChild returns the running test as a process of its own.
func asChild(t *testing.T, env ...string) *exec.Cmd {
	child := exec.Command(os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
	child.Env = append(append(os.Environ(), "PGTEST_CHILD=1", external+"="), env...)
	return child
}

func TestMissingProgramsFail(t *testing.T) {
	if inChild() {
		programs = func() (string, error) { return programsIn(nil) }
		URI(t)
		t.Log("it went on")
		return
	}
	out, err := asChild(t).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "apt-get install postgresql") || strings.Contains(string(out), "it went on") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestMissingProgramsAreLeftOutBesideAServer(t *testing.T) {
	if inChild() {
		programs = func() (string, error) { return programsIn(nil) }
		Start(t, Options{})
	}
	out, err := asChild(t, external+"=postgres://user:password@127.0.0.1:1/postgres").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- SKIP") || !strings.Contains(string(out), external+" is set") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestKilledTests kills a process that has started every kind of server, one of
// them frozen and one dead, and sees that no program and no directory is left.
func TestKilledTests(t *testing.T) {
	if inChild() {
		toBeKilled(t)
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
		t.Fatalf("the child says %q", addresses)
	}
	eventually(t, "its directories are gone", func() bool {
		left, err := os.ReadDir(tmp)
		return err == nil && len(left) == 0
	})
	for _, address := range addresses {
		eventually(t, address+" refuses", func() bool {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
			}
			return errors.Is(err, syscall.ECONNREFUSED)
		})
	}
}

func toBeKilled(t *testing.T) {
	uri := URI(t)
	addressOf := func(uri string) string { return connect(t, uri).PgConn().Conn().RemoteAddr().String() }
	frozen, dead := Start(t, Options{}), Start(t, Options{})
	for _, address := range []string{addressOf(uri), addressOf(Bouncer(t, uri)), frozen.Addr()} {
		fmt.Println("at " + address)
	}
	frozen.Pause()
	dead.Kill()
	fmt.Println("ready")
	select {} // until it is killed
}

func eventually(t *testing.T, what string, true func() bool) {
	t.Helper()
	timeout := time.After(patience)
	for again := time.Tick(10 * time.Millisecond); !true(); {
		select {
		case <-again:
		case <-timeout:
			t.Fatalf("not so after %v: %s", patience, what)
		}
	}
}
