package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestBadDatabaseURI gives URIs in which a mistake makes a part of the password look like
// another part. The error must show no part of the password, name the wrong part, and say
// how to give a password.
func TestBadDatabaseURI(t *testing.T) {
	const advice = "percent-encode the password, or use PGPASSWORD"
	for uri, says := range map[string]string{
		"postgres://u:sesame@opened@host.invalid/db":                 `more than one "@"`,
		"postgres://u:sesame@op/ened@host.invalid/db":                `more than one "@"`,
		"postgres://u:sesame@host.invalid/db?a=opened@b":             `more than one "@"`,
		"postgres://u:sesame/opened@host.invalid/db":                 `a "/" before the "@"`,
		"postgres://u:4711/opened@host.invalid/db":                   `a "/" before the "@"`,
		"postgres://u:sesame/opened":                                 "the port",
		"postgres://u:sesame%opened@host.invalid/db":                 `the user or the password has a "%"`,
		"postgres://u:sesame@host.invalid:opened/db":                 "the port",
		"postgres://u:sesame@host.invalid/db%opened":                 `the database's name has a "%"`,
		"postgres://u:sesame@host.invalid/db?sesame":                 "a parameter",
		"postgres://u:sesame@host.invalid/db?sslmode=opened":         "the parameter sslmode",
		"postgres://u:sesame@host.invalid/db?sesame=1&sslmode=no":    "the parameter sslmode",
		"postgres://u:sesame@host.invalid/db?sslrootcert=/opened":    "the parameter sslrootcert",
		"postgres://u:sesame@host.invalid/db?pool_max_conns=opened":  "the parameter pool_max_conns",
		"postgres://u:sesame@host.invalid/db?service=opened":         "the parameter service",
		"postgres:u:sesame@opened":                                   "begins with postgres://",
		"postgres://u:sesame opened@host.invalid/db":                 "the user or the password has a space",
		"postgres://u:sesame@host.invalid/db?password=sesame opened": "a parameter",
	} {
		cmd := cliCommand(t, t.TempDir(), "", "migrate")
		cmd.Env = append(cmd.Env, "WATCHWORD_DATASTORE_URI="+uri)
		r := run(t, cmd)
		if r.code != 1 || !strings.Contains(r.stderr, says) || !strings.Contains(r.stderr, advice) {
			t.Errorf("%s: %v\nwant %q and %q", uri, r, says, advice)
		}
		for _, part := range []string{"sesame", "opened", "4711"} {
			if strings.Contains(r.stdout+r.stderr, part) {
				t.Errorf("%s: shows a part of the password: %v", uri, r)
			}
		}
	}
	cmd := cliCommand(t, t.TempDir(), "", "migrate")
	cmd.Env = append(cmd.Env, "WATCHWORD_DATASTORE_URI=postgres://u@host.invalid/db", "PGSSLMODE=opened")
	if r := run(t, cmd); r.code != 1 || !strings.Contains(r.stderr, "environment variables") {
		t.Errorf("with a wrong variable: %v", r)
	}
}

// TestRotatedDatabaseCredentials replaces the database password and the client certificate,
// and ends every connection, while replicas run. The replicas must continue with the new
// password file, service file and certificate. A service file that then names another
// database changes nothing.
func TestRotatedDatabaseCredentials(t *testing.T) {
	in := install(t)
	dir := t.TempDir()
	direct, err := url.Parse(in.direct)
	if err != nil {
		t.Fatal(err)
	}
	var service string // the service file, up to the database's name
	ca, later := newAuthority(t, dir, "first"), newAuthority(t, dir, "later")
	front := newTLSFront(t, in.primary.Addr(), ca)
	rotate := func(trusted *authority) {
		password := noteSecret(rand.Text())
		in.asSuperuser("ALTER ROLE rotated PASSWORD '" + password + "'")
		write(t, filepath.Join(dir, "passwords"), "*:*:*:rotated:"+password+"\n")
		service = "[auth]\nhost=" + direct.Hostname() + "\nport=" + direct.Port() + "\nuser=rotated\npassword=" + password + "\ndbname="
		write(t, filepath.Join(dir, "services"), service+direct.Path[1:]+"\n")
		_, certFile, keyFile := trusted.issue(t, "rotated", x509.ExtKeyUsageClientAuth)
		rename(t, certFile, filepath.Join(dir, "client.pem"))
		rename(t, keyFile, filepath.Join(dir, "client-key.pem"))
	}
	in.asSuperuser("CREATE ROLE rotated LOGIN", "GRANT ALL ON ALL TABLES IN SCHEMA public TO rotated",
		"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO rotated")
	rotate(ca)
	passfile := "passfile=" + filepath.Join(dir, "passwords")
	uris := []string{
		"postgres://rotated@" + direct.Host + direct.Path + "?" + passfile,
		"postgres://?service=auth&servicefile=" + filepath.Join(dir, "services"),
		"postgres://rotated@" + front.addr() + direct.Path + "?" + passfile + "&sslmode=require&sslcert=" +
			filepath.Join(dir, "client.pem") + "&sslkey=" + filepath.Join(dir, "client-key.pem"),
	}
	var replicas []*replica
	for _, uri := range uris {
		replicas = append(replicas, in.replicateOver(t, uri))
	}
	pair := replicas[0].dial(t).login(t, "admin", in.admin)
	rotate(later)
	front.trust(later)
	refresh := func() {
		t.Helper()
		in.asSuperuser("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'")
		for i, r := range replicas {
			c := r.dial(t)
			eventually(t, propagation, fmt.Sprint("refreshing at replica ", i), func() error {
				next, err := c.tryRefresh(callCtx(t), pair)
				if err == nil {
					pair = next
				}
				return err
			})
		}
	}
	refresh()
	write(t, filepath.Join(dir, "services"), service+"postgres\n") // a database without Watchword's tables
	refresh()
	replicas[1].now().awaitLog(t, regexp.MustCompile(`level=ERROR msg="the service file names another database than at the start`))
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// tlsFront is a proxy in front of PostgreSQL that asks clients for a certificate.
type tlsFront struct {
	net.Listener
	trusted chan *authority // has one element
	server  tls.Certificate
}

func newTLSFront(t *testing.T, backend string, trusted *authority) *tlsFront {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	f := &tlsFront{Listener: listener, trusted: make(chan *authority, 1)}
	f.server, _, _ = trusted.issue(t, "database", x509.ExtKeyUsageServerAuth)
	f.trusted <- trusted
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go f.serve(conn, backend)
		}
	}()
	return f
}

func (f *tlsFront) addr() string { return f.Addr().String() }

// trust makes a certificate of another authority necessary.
func (f *tlsFront) trust(a *authority) { <-f.trusted; f.trusted <- a }

// serve answers a client's SSLRequest, checks the certificate, and copies bytes until one
// side ends.
func (f *tlsFront) serve(front net.Conn, backend string) {
	defer front.Close()
	if _, err := io.ReadFull(front, make([]byte, 8)); err != nil {
		return
	}
	if _, err := front.Write([]byte("S")); err != nil {
		return
	}
	a := <-f.trusted
	f.trusted <- a
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	client := tls.Server(front, &tls.Config{Certificates: []tls.Certificate{f.server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	if client.Handshake() != nil {
		return
	}
	back, err := net.Dial("tcp", backend)
	if err != nil {
		return
	}
	defer back.Close()
	go func() { _, _ = io.Copy(back, client); back.Close(); client.Close() }()
	_, _ = io.Copy(client, back)
}
