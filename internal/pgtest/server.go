package pgtest

import (
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
	ordinary  = "watchword" // the owner of new databases, without special rights
	pidFile   = "postmaster.pid"
)

// server stands for a PostgreSQL server and the server's directory.
type server struct {
	bin      string
	dir      string
	port     int
	password string
	process  *process
}

// newServer makes a cluster in a new directory below parent, and starts the server.
func newServer(parent string, settings []string) (*server, error) {
	s, err := prepare(parent, rand.Text())
	if err != nil {
		return nil, err
	}
	if err := s.initialize(settings); err != nil {
		os.RemoveAll(s.dir)
		return nil, fmt.Errorf("making a PostgreSQL cluster: %w", err)
	}
	if err := s.startOnFreePort(); err != nil {
		return nil, err
	}
	if err := execute(s.admin(), "CREATE ROLE "+ordinary+" LOGIN PASSWORD '"+s.password+"'"); err != nil {
		s.discard()
		return nil, err
	}
	return s, nil
}

// prepare makes an empty directory for a PostgreSQL server.
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
func (s *server) program(name string) string { return filepath.Join(s.bin, name) }

// initialize makes the files of the cluster. The server checks passwords in plain text:
// SCRAM would cost milliseconds on both sides, for each of a test's many connections.
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
		"unix_socket_directories=''", // a socket's path could be too long
		"max_connections=300",
		"dynamic_shared_memory_type=mmap", // uses files in the directory, removed with the directory after Kill
		"wal_keep_size=256MB",             // keeps the log for a standby that connects again
	}, settings)...)
}

// configure appends settings to a file in the server's directory. PostgreSQL uses the last
// setting of a name in the file.
func (s *server) configure(file string, settings ...string) error {
	conf, err := os.OpenFile(filepath.Join(s.data(), file), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer conf.Close()
	_, err = fmt.Fprintln(conf, strings.Join(settings, "\n"))
	return err
}

// startOnFreePort starts the server on a free port. If another process takes the port
// first, startOnFreePort tries another port, three times in all.
func (s *server) startOnFreePort() (err error) {
	for range 3 {
		if s.port, err = FreePort(); err != nil {
			break
		}
		if err = s.start(); err == nil {
			return nil
		}
	}
	os.RemoveAll(s.dir)
	return err
}

// start starts the server on s.port, and returns when the server accepts connections.
func (s *server) start() (err error) {
	if s.process, err = start(s.dir, "QUIT", nil, s.program("postgres"), "-D", s.data(), "-p", strconv.Itoa(s.port)); err != nil {
		return err
	}
	if err = s.process.waitUntil(s.ready); err != nil {
		s.process.release()
		return fmt.Errorf("starting PostgreSQL: %w\n%s", err, logOf(s.dir))
	}
	return nil
}

// ready reports whether the postmaster's file says that the server accepts connections. A
// connection would show less, because another server could answer on the port.
func (s *server) ready() bool {
	_, status := s.postmaster()
	return status == "ready"
}

// postmaster returns the pid of the postmaster, the parent of all server processes, and
// the postmaster's status. Without a postmaster, the pid is 0.
func (s *server) postmaster() (pid int, status string) {
	pid, _ = strconv.Atoi(s.pidLine(1))
	return pid, s.pidLine(8)
}

// pidLine returns a line of the postmaster's file, counted from 1.
func (s *server) pidLine(n int) string {
	file, _ := os.ReadFile(filepath.Join(s.data(), pidFile))
	lines := strings.Split(string(file), "\n")
	if n > len(lines) {
		return ""
	}
	return strings.TrimSpace(lines[n-1])
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

// discard ends the server and removes the server's directory, whether the server runs, is frozen,
// or has ended.
func (s *server) discard() { s.process.discard() }

// FreePort returns a port without a listener, below the range of the kernel's own ports
// for clients. A client that keeps dialing a dead server's port inside the kernel's range can
// connect to itself, and so keep the port. Nor does the kernel give the port to a program that
// asks for any port.
func FreePort() (int, error) {
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
