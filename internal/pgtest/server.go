package pgtest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	superuser = "postgres"
	ordinary  = "watchword"
)

// server is one PostgreSQL, running or not, and its directory.
type server struct {
	bin      string
	dir      string
	port     int
	password string
	process  *process
}

// newServer makes a cluster in a directory below parent and starts it.
func newServer(parent string, settings []string) (*server, error) {
	s, err := prepare(parent, rand.Text())
	if err != nil {
		return nil, err
	}
	if err := s.initialize(settings); err != nil {
		os.RemoveAll(s.dir)
		return nil, fmt.Errorf("making a PostgreSQL cluster: %w", err)
	}
	if err := s.startAnywhere(); err != nil {
		return nil, err
	}
	if err := execute(s.admin(), "CREATE ROLE "+ordinary+" LOGIN PASSWORD '"+s.password+"'"); err != nil {
		s.discard()
		return nil, err
	}
	return s, nil
}

// prepare makes the directory of a server, and nothing in it.
func prepare(parent, password string) (*server, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	dir, err := temporary(parent)
	if err != nil {
		return nil, err
	}
	return &server{bin: bin, dir: dir, password: password}, nil
}

func (s *server) data() string               { return filepath.Join(s.dir, "data") }
func (s *server) pidFile() string            { return filepath.Join(s.data(), "postmaster.pid") }
func (s *server) program(name string) string { return filepath.Join(s.bin, name) }

// initialize fills the directory. The password is cheap to check: with SCRAM
// each of a test's many connections would cost both sides milliseconds.
func (s *server) initialize(settings []string) error {
	if err := write(s.dir, "password", s.password); err != nil {
		return err
	}
	if err := run(s.dir, nil, s.program("initdb"), "--no-sync", "--encoding=UTF8", "--no-locale",
		"--username="+superuser, "--auth=password", "--pwfile="+filepath.Join(s.dir, "password"), s.data()); err != nil {
		return err
	}
	return s.configure("postgresql.conf", slices.Concat([]string{
		"listen_addresses='127.0.0.1'",
		"unix_socket_directories=''", // its path could be too long
		"max_connections=300",
		"wal_keep_size=256MB", // for a standby that comes back
	}, settings)...)
}

// configure adds settings to a file in the server's directory. The last counts.
func (s *server) configure(file string, settings ...string) error {
	conf, err := os.OpenFile(filepath.Join(s.data(), file), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer conf.Close()
	_, err = fmt.Fprintln(conf, strings.Join(settings, "\n"))
	return err
}

// startAnywhere starts the server on a port that is free, and tries another
// when somebody was quicker.
func (s *server) startAnywhere() (err error) {
	for range 3 {
		if s.port, err = freePort(); err != nil {
			break
		}
		if err = s.start(); err == nil {
			return nil
		}
	}
	os.RemoveAll(s.dir)
	return err
}

// start starts the server on its port, and returns when it takes connections.
func (s *server) start() (err error) {
	if s.process, err = start(s.dir, "QUIT", nil, s.program("postgres"), "-D", s.data(), "-p", strconv.Itoa(s.port)); err != nil {
		return err
	}
	if err = s.process.until(s.ready); err != nil {
		s.process.release()
		return fmt.Errorf("starting PostgreSQL: %w\n%s", err, logOf(s.dir))
	}
	return nil
}

// ready asks the postmaster's own file, since another could answer on the port.
func (s *server) ready() bool {
	_, status := s.postmaster()
	return status == "ready"
}

// postmaster returns the process that the server's children have in common, or
// 0, and what it says of itself.
func (s *server) postmaster() (pid int, status string) {
	file, _ := os.ReadFile(s.pidFile())
	lines := bytes.Split(file, []byte("\n"))
	pid, _ = strconv.Atoi(string(lines[0]))
	if len(lines) > 7 {
		status = string(bytes.TrimSpace(lines[7]))
	}
	return pid, status
}

func (s *server) admin() url.URL {
	return url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, s.password),
		Host:     s.addr(),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
}

func (s *server) owner() *url.Userinfo { return url.UserPassword(ordinary, s.password) }

func (s *server) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// discard ends the server, in whatever state it is, and removes its directory.
func (s *server) discard() { s.process.discard() }

// freePort returns a port on which nobody listens. It is below those that the
// kernel hands out: a client that dials a dead server's port in that range
// again and again will one day be connected to itself, and keep the port.
func freePort() (int, error) {
	for range 100 {
		port := 15000 + mathrand.IntN(15000)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, listener.Close()
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return 0, err
		}
	}
	return 0, errors.New("no port is free")
}
