// Package pgtest gives tests a real PostgreSQL: a throwaway cluster from the
// programs on this machine, or databases on the server that
// WATCHWORD_TEST_POSTGRES_URL names. It is for tests alone. What it starts
// listens on loopback under a random password, runs as an unprivileged user
// where the tests run as root, and ends with the process of the tests, even
// when that is killed. What is missing fails a test and says what to install.
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

// external names the variable with the URL of a server to make databases on.
const external = "WATCHWORD_TEST_POSTGRES_URL"

// patience bounds each wait for a server. It is long since only a test that
// has failed already waits for all of it.
const patience = time.Minute

// quick is for tests in which no machine stops: nothing waits for the disk.
var quick = []string{"fsync=off", "synchronous_commit=off", "full_page_writes=off", frugal}

// frugal is for files in memory.
const frugal = "max_wal_size=256MB"

// shared is the server that the tests of this process have in common.
var shared struct {
	sync.Mutex
	server *server
	err    error // of the only try: the next would be as long and as vain
}

// URI returns the URI of a new, empty database, which is dropped with whoever
// is still connected when the test ends. Its owner is no superuser. The server
// starts with the first call, is shared by the tests of this process, and does
// not wait for the disk; for faults and durability there is Start.
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

// Main runs the tests of a package, for its TestMain, and then ends the shared
// server. Without it the server ends just after the process.
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

// Tests are the tests of a package, for goleak.VerifyTestMain: Run is Main, so that
// the server has ended before goroutines are counted.
type Tests struct{ *testing.M }

// Run is Main.
func (t Tests) Run() int { return Main(t.M) }

// administrator returns who may make databases, and who shall own them.
func administrator() (admin url.URL, owner *url.Userinfo, err error) {
	if address := os.Getenv(external); address != "" {
		// What url.Parse says would show the password.
		parsed, err := url.Parse(address)
		if err != nil || parsed.Host == "" || parsed.User == nil || !strings.HasPrefix(parsed.Scheme, "postgres") {
			return url.URL{}, nil, fmt.Errorf("%s is not a URL like postgres://user:password@host:5432/postgres", external)
		}
		return *parsed, parsed.User, nil
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = newServer(memory(), quick)
	}
	if shared.err != nil {
		return url.URL{}, nil, shared.err
	}
	return shared.server.admin(), shared.server.owner(), nil
}

// newDatabase makes a database with a name of its own.
func newDatabase(admin url.URL, owner *url.Userinfo) (url.URL, error) {
	name := "pgtest_" + strings.ToLower(rand.Text())
	database := admin
	database.User, database.Path = owner, "/"+name
	return database, execute(admin, "CREATE DATABASE "+name+" OWNER "+pgx.Identifier{owner.Username()}.Sanitize())
}

// execute runs statements one by one on a connection of their own.
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
