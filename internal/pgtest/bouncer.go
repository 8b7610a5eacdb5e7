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

// bouncerConfig is the configuration of PgBouncer for tests. All other settings keep
// PgBouncer's defaults, so tests see what the defaults refuse.
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

// Bouncer starts a PgBouncer in transaction mode before a database, and returns the
// database's URI through PgBouncer. PgBouncer ends with the test.
func Bouncer(t testing.TB, uri string) string {
	t.Helper()
	database, err := url.Parse(uri)
	if err != nil {
		t.Fatal("the database's URI is malformed") // url.Parse's error would show the password
	}
	program, err := findBouncer()
	if err != nil {
		skipOrFail(t, err)
	}
	for range 3 { // another process may take the free port first
		var p *process
		if p, err = startBouncer(program, database); err == nil {
			t.Cleanup(p.discard)
			return database.String()
		}
	}
	t.Fatalf("starting PgBouncer: %v", err)
	return ""
}

// startBouncer starts a PgBouncer, and replaces the address in the URL database by the address
// of PgBouncer.
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
	// The query shows that PgBouncer has the port: another server on the port would refuse the
	// password.
	if err := p.waitUntil(func() bool { return execute(bouncer, "SELECT 1") == nil }); err != nil {
		err = fmt.Errorf("%w\n%s", err, logOf(dir))
		p.discard()
		return nil, err
	}
	*database = bouncer
	return p, nil
}

// configureBouncer writes the configuration of PgBouncer into dir and returns the port of
// PgBouncer.
func configureBouncer(dir string, database *url.URL) (port int, err error) {
	if port, err = FreePort(); err != nil {
		return 0, err
	}
	user, name := database.User.Username(), strings.TrimPrefix(database.Path, "/")
	password, _ := database.User.Password()
	config := fmt.Sprintf(bouncerConfig, name, database.Hostname(), cmp.Or(database.Port(), "5432"),
		quote("'", user), quote("'", password), port)
	users := quote(`"`, user) + " " + quote(`"`, password) + "\n"
	return port, errors.Join(write(dir, "config", config), write(dir, "users", users))
}

// quote puts s in quotes and doubles the quotes inside. PgBouncer escapes single and
// double quotes in the same way.
func quote(with, s string) string {
	return with + strings.ReplaceAll(s, with, with+with) + with
}

// findBouncer looks for PgBouncer in PATH and in sbin. Debian installs PgBouncer in
// /usr/sbin, which only root has in PATH.
func findBouncer() (string, error) {
	for _, place := range []string{"pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer"} {
		if path, err := exec.LookPath(place); err == nil {
			return path, nil
		}
	}
	return "", errNoBouncer
}
