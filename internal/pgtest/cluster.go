package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options is how a cluster of one's own differs from PostgreSQL's defaults,
// which are durable: what is committed survives whatever befalls the processes.
type Options struct {
	// Disk makes it survive the machine as well, by files that are not in
	// memory. It is for measuring what a commit costs.
	Disk     bool
	Settings []string // lines of postgresql.conf, like "max_connections=20"
}

// Cluster is a server of a test's own, to be stopped, killed, frozen and
// replaced. It keeps its address throughout, and goes with the test. Only one
// goroutine may use it at a time. What can't be done fails the test that
// started it.
type Cluster struct {
	t           testing.TB
	server      *server
	synchronous []string // the standbys that a commit waits for
}

// Start starts a cluster with PostgreSQL's programs on this machine, which it
// needs even where URI has a server elsewhere.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	parent, settings := memory(), append([]string{frugal}, o.Settings...)
	if o.Disk {
		parent, settings = os.TempDir(), o.Settings
	}
	s, err := newServer(parent, settings)
	if err != nil {
		needServers(t, err)
	}
	return own(t, s)
}

func own(t testing.TB, s *server) *Cluster {
	t.Cleanup(s.discard)
	return &Cluster{t: t, server: s}
}

// needServers ends a test that needs servers of its own. It is left out where
// the programs are missing and whoever runs it chose a server elsewhere, which
// scripts/prerequisites.sh announces; everywhere else a missing program fails.
func needServers(t testing.TB, err error) {
	t.Helper()
	if os.Getenv(external) != "" && (errors.Is(err, errNoPostgres) || errors.Is(err, errNoBouncer)) {
		t.Skipf("%s is set, but this test needs servers of its own: %v", external, err)
	}
	t.Fatal(err)
}

// URI returns the URI of a new, empty database.
func (c *Cluster) URI(t testing.TB) string {
	t.Helper()
	database, err := newDatabase(c.server.admin(), c.server.owner())
	if err != nil {
		t.Fatal(err)
	}
	return database.String()
}

// Here returns the URI of the database of the same name on this server: a
// standby has those of its primary.
func (c *Cluster) Here(uri string) string {
	database, err := url.Parse(uri)
	if err != nil {
		c.t.Error(err)
		return ""
	}
	database.Host = c.Addr()
	return database.String()
}

// Superuser returns the URI of the database "postgres" for the superuser.
func (c *Cluster) Superuser() string {
	admin := c.server.admin()
	return admin.String()
}

// Addr is where the server listens.
func (c *Cluster) Addr() string { return c.server.addr() }

// Exec runs statements as the superuser, each by itself.
func (c *Cluster) Exec(t testing.TB, statements ...string) {
	t.Helper()
	if err := execute(c.server.admin(), statements...); err != nil {
		t.Fatal(err)
	}
}

// Kill ends every process of the server by SIGKILL, and returns when all are
// gone. No client is told; their connections are cut.
func (c *Cluster) Kill() {
	c.t.Helper()
	if err := c.server.kill(); err != nil {
		c.t.Errorf("killing PostgreSQL: %v", err)
	}
}

// Stop ends the server in order: clients are told, what is committed reaches
// the standbys.
func (c *Cluster) Stop() {
	c.t.Helper()
	if err := c.server.stop(); err != nil {
		c.t.Errorf("stopping PostgreSQL: %v", err)
	}
}

// Restart starts the server on the same address after Kill or Stop, and stops
// it before if it runs. It returns when the server takes connections.
func (c *Cluster) Restart() {
	c.t.Helper()
	c.Stop()
	c.server.process.release()
	if err := c.server.start(); err != nil {
		c.t.Error(err)
	}
}

// Pause freezes every process of the server: the kernel still takes
// connections, and nothing answers.
func (c *Cluster) Pause() {
	c.t.Helper()
	if err := c.server.signal(syscall.SIGSTOP); err != nil {
		c.t.Errorf("freezing PostgreSQL: %v", err)
	}
}

// Resume ends Pause.
func (c *Cluster) Resume() {
	c.t.Helper()
	if err := c.server.signal(syscall.SIGCONT); err != nil {
		c.t.Errorf("thawing PostgreSQL: %v", err)
	}
}

func (s *server) stop() error {
	if pid, _ := s.postmaster(); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
			return err
		}
	}
	return s.process.wait()
}

func (s *server) kill() error {
	if err := s.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if err := s.process.wait(); err != nil {
		return err
	}
	// Nobody is left who would remove it, and its number may go to a stranger.
	return os.Remove(s.pidFile())
}

// signal sends a signal to every process of the server. The postmaster is
// frozen meanwhile, so that it neither starts nor buries a child.
func (s *server) signal(signal syscall.Signal) error {
	pid, _ := s.postmaster()
	if pid == 0 {
		return errors.New("it does not run")
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	children, err := childrenOf(pid)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := syscall.Kill(child, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return syscall.Kill(pid, signal)
}

// childrenOf lists the children of a process.
func childrenOf(pid int) (children []int, err error) {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if errors.Is(err, os.ErrNotExist) { // not Linux
		list, err = exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	}
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Fields(string(list)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}

// await asks a server until the answer is true.
func await(admin url.URL, question string, args ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, admin.String())
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	for again := time.Tick(10 * time.Millisecond); ; {
		var yes bool
		if err := conn.QueryRow(ctx, question, args...).Scan(&yes); err != nil || yes {
			return err
		}
		select {
		case <-again:
		case <-ctx.Done():
			return fmt.Errorf("not true after %v: %s", patience, question)
		}
	}
}
