package pgtest

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var errNoBouncer = errors.New(`PgBouncer is missing.
  Debian, Ubuntu: apt-get install pgbouncer
  Fedora:         dnf install pgbouncer
  macOS:          brew install pgbouncer`)

// bouncerConfig leaves everything else as PgBouncer has it, so that what its
// defaults refuse is refused here.
const bouncerConfig = `[databases]
%[1]s = host=%[2]s port=%[3]s dbname=%[1]s user=%[4]s password=%[5]s

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %[6]d
unix_socket_dir =
auth_type = plain
auth_file = users
pool_mode = transaction
max_client_conn = 1000
`

// Bouncer returns the URI of a PgBouncer in transaction mode before a database.
func Bouncer(t testing.TB, uri string) string {
	t.Helper()
	database, err := url.Parse(uri)
	if err != nil {
		t.Fatal("the URI of the database cannot be read")
	}
	program, err := findBouncer()
	if err != nil {
		needServers(t, err)
	}
	for range 3 { // somebody may be quicker on the port
		var p *process
		if p, err = startBouncer(program, database); err == nil {
			t.Cleanup(p.discard)
			return database.String()
		}
	}
	t.Fatalf("starting PgBouncer: %v", err)
	return ""
}

// startBouncer makes of the database's URL that of the PgBouncer it starts.
func startBouncer(program string, database *url.URL) (*process, error) {
	dir, err := temporary(os.TempDir())
	if err != nil {
		return nil, err
	}
	port, err := configureBouncer(dir, database)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	p, err := start(dir, "TERM", nil, program, filepath.Join(dir, "config"))
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	bouncer := *database
	bouncer.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	// The password tells it from another that answers on the port.
	if err := p.until(func() bool { return execute(bouncer, "SELECT 1") == nil }); err != nil {
		err = fmt.Errorf("%w\n%s", err, logOf(dir))
		p.discard()
		return nil, err
	}
	*database = bouncer
	return p, nil
}

// configureBouncer writes the configuration into dir and returns the port.
func configureBouncer(dir string, database *url.URL) (port int, err error) {
	if port, err = freePort(); err != nil {
		return 0, err
	}
	user, name := database.User.Username(), strings.TrimPrefix(database.Path, "/")
	password, _ := database.User.Password()
	config := fmt.Sprintf(bouncerConfig, name, database.Hostname(), cmp.Or(database.Port(), "5432"),
		quote("'", user), quote("'", password), port)
	users := quote(`"`, user) + " " + quote(`"`, password) + "\n"
	return port, errors.Join(write(dir, "config", config), write(dir, "users", users))
}

// quote doubles the quotes inside, which is how PgBouncer escapes both kinds.
func quote(with, s string) string {
	return with + strings.ReplaceAll(s, with, with+with) + with
}

// findBouncer looks where Debian puts it, too: out of everybody's PATH but root's.
func findBouncer() (string, error) {
	for _, place := range []string{"pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer"} {
		if path, err := exec.LookPath(place); err == nil {
			return path, nil
		}
	}
	return "", errNoBouncer
}
