// Package pgtest gives tests a real PostgreSQL: a temporary server from the programs of
// PostgreSQL on this machine, or databases on the server in WATCHWORD_TEST_POSTGRES_URL. The
// package serves tests alone.
//
// The servers listen on loopback with a random password. If the tests run as root, the
// servers run as an unprivileged user. The servers end with the process of the tests,
// even if that process is killed. If a program is missing, the test fails with a text
// about the package to install.
package pgtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// external names an environment variable, which holds the URL of a PostgreSQL server for the
// databases of the tests.
const external = "WATCHWORD_TEST_POSTGRES_URL"

// patience bounds each wait for a PostgreSQL server. A long bound costs little, because only a
// failing test waits until the end.
const patience = time.Minute

// withoutDisk holds the settings of PostgreSQL with which no commit waits for the disk. A crash
// of the machine can lose data, so the settings fit tests of everything but durability.
var withoutDisk = []string{"fsync=off", "synchronous_commit=off", "full_page_writes=off", smallWAL}

// smallWAL bounds the write-ahead log for servers with files in memory.
const smallWAL = "max_wal_size=256MB"

// The variables PG… of PostgreSQL's clients would change what the URIs of this package mean, such as
// by PGSSLMODE. A server of the environment may need such a variable, such as PGPASSFILE.
func init() {
	if os.Getenv(external) != "" {
		return
	}
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") && !strings.HasPrefix(name, "PGTEST_") {
			os.Unsetenv(name)
		}
	}
}

// shared holds the PostgreSQL server that all tests of this process use.
var shared struct {
	sync.Mutex
	server *server
	err    error // the error of the first start, which no test repeats: a second start would fail as slowly
}

// URI returns the URI of a new, empty database. The database's owner is not a superuser.
// When the test ends, URI drops the database and cuts open connections to the database.
//
// The first call starts the server, and the tests of this process share the server. The
// server does not wait for the disk; tests of faults and durability need [Start].
func URI(t testing.TB) string {
	t.Helper()
	admin, owner, err := administrator()
	if err != nil {
		t.Fatal(err)
	}
	database, err := newDatabase(admin, owner)
	if err != nil {
		t.Fatalf("making a database: %v", err)
	}
	t.Cleanup(func() {
		if err := execute(admin, "DROP DATABASE "+database.Path[1:]+" WITH (FORCE)"); err != nil {
			t.Errorf("dropping a database: %v", err)
		}
	})
	return database.String()
}

// Main runs the tests of a package and then ends the PostgreSQL server that the tests share.
// TestMain of the package calls Main. Without Main, the server ends shortly after the process.
func Main(m *testing.M) int {
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.server != nil {
		shared.server.discard()
		shared.server = nil
	}
	return code
}

// Tests wraps the tests of a package for goleak.VerifyTestMain. goleak counts goroutines after
// Run, and Run ends the PostgreSQL server that the tests share.
type Tests struct{ *testing.M }

// Run calls [Main].
func (t Tests) Run() int { return Main(t.M) }

// administrator returns the URL of a PostgreSQL server with a user that can create databases,
// and the owner for new databases.
func administrator() (admin url.URL, owner *url.Userinfo, err error) {
	if address := os.Getenv(external); address != "" {
		// The error of url.Parse would show the password.
		parsed, err := url.Parse(address)
		if err != nil || parsed.Host == "" || parsed.User == nil || !strings.HasPrefix(parsed.Scheme, "postgres") {
			return url.URL{}, nil, fmt.Errorf("%s is not a URL like postgres://user:password@host:5432/postgres", external)
		}
		return *parsed, parsed.User, nil
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = newServer(memory(), withoutDisk)
	}
	if shared.err != nil {
		return url.URL{}, nil, shared.err
	}
	return shared.server.admin(), shared.server.owner(), nil
}

// newDatabase makes a PostgreSQL database with a random name.
func newDatabase(admin url.URL, owner *url.Userinfo) (url.URL, error) {
	name := "pgtest_" + strings.ToLower(rand.Text())
	database := admin
	database.User, database.Path = owner, "/"+name
	return database, execute(admin, "CREATE DATABASE "+name+" OWNER "+pgx.Identifier{owner.Username()}.Sanitize())
}

// execute runs statements one by one on a new connection.
func execute(admin url.URL, statements ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, admin.String())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// Stranger returns the URI of a database of [URI] for another role, which has the right to connect
// and no other right. Tests use Stranger to show what other users of the same server can
// do. When the test ends, Stranger cuts the connections of the role and drops the role.
func Stranger(t testing.TB, uri string) string {
	t.Helper()
	admin, _, err := administrator()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := url.Parse(uri)
	if err != nil {
		t.Fatal("the database's URI is malformed") // url.Parse's error would show the password
	}
	name, password := "stranger_"+strings.ToLower(rand.Text()), rand.Text()
	if err := execute(admin, "CREATE ROLE "+name+" LOGIN PASSWORD '"+password+"'"); err != nil {
		t.Fatalf("making a role: %v", err)
	}
	t.Cleanup(func() {
		if err := execute(admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+name+"'", "DROP ROLE "+name); err != nil {
			t.Errorf("dropping a role: %v", err)
		}
	})
	stranger.User = url.UserPassword(name, password)
	return stranger.String()
}
