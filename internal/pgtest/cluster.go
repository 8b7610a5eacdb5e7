package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options holds settings of a [Cluster]. With PostgreSQL's defaults, committed data survives
// the end of all processes.
type Options struct {
	// Disk puts the files of the PostgreSQL server on the disk and not in memory, so committed
	// data survives a crash of the machine. Benchmarks of commits need Disk.
	Disk     bool
	Settings []string // lines of postgresql.conf, like "max_connections=20"
}

// Cluster runs a PostgreSQL server for a single test. The test can stop, kill, freeze and
// replace the server. The server keeps its address, and ends with the test.
//
// A Cluster is not safe for concurrent use. A method that fails also fails the test.
type Cluster struct {
	t           testing.TB
	server      *server
	synchronous []string // names of the synchronous standbys
}

// Start starts a PostgreSQL server for one test, from the programs of PostgreSQL on this
// machine. Start needs the programs even if WATCHWORD_TEST_POSTGRES_URL is set.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	parent, settings := memory(), append([]string{smallWAL}, o.Settings...)
	if o.Disk {
		parent, settings = os.TempDir(), o.Settings
	}
	s, err := newServer(parent, settings)
	if err != nil {
		skipOrFail(t, err)
	}
	return newCluster(t, s)
}

// newCluster returns a Cluster that ends with the test.
func newCluster(t testing.TB, s *server) *Cluster {
	t.Cleanup(s.discard)
	return &Cluster{t: t, server: s}
}

// skipOrFail ends a test that could not start a server. If the programs are missing and
// WATCHWORD_TEST_POSTGRES_URL is set, skipOrFail skips the test;
// scripts/prerequisites.sh announces the skipped tests. In every other case skipOrFail fails the
// test.
func skipOrFail(t testing.TB, err error) {
	t.Helper()
	if os.Getenv(external) != "" && (errors.Is(err, errNoPostgres) || errors.Is(err, errNoBouncer)) {
		t.Skipf("%s is set, but the test must start servers itself: %v", external, err)
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

// Here replaces the address in a database's URI by the address of c, such as the address of a
// standby, which has databases with the same names as the primary.
func (c *Cluster) Here(uri string) string {
	database, err := url.Parse(uri)
	if err != nil {
		c.t.Error(err)
		return ""
	}
	database.Host = c.Addr()
	return database.String()
}

// Superuser returns the URI with which the superuser connects to the database "postgres" of the
// server.
func (c *Cluster) Superuser() string {
	admin := c.server.admin()
	return admin.String()
}

// Addr returns the server's address.
func (c *Cluster) Addr() string { return c.server.addr() }

// Exec runs statements as the superuser, each in a transaction of its own.
func (c *Cluster) Exec(t testing.TB, statements ...string) {
	t.Helper()
	if err := execute(c.server.admin(), statements...); err != nil {
		t.Fatal(err)
	}
}

// Kill ends every process of the server by SIGKILL, and returns when all processes have ended.
// Clients get no message; the kernel closes the connections.
func (c *Cluster) Kill() {
	c.t.Helper()
	if err := c.server.kill(); err != nil {
		c.t.Errorf("killing PostgreSQL: %v", err)
	}
}

// Stop ends the server in order: clients get a message, and standbys get all committed
// data.
func (c *Cluster) Stop() {
	c.t.Helper()
	if err := c.server.stop(); err != nil {
		c.t.Errorf("stopping PostgreSQL: %v", err)
	}
}

// Restart starts the server on the same address. If the server runs, Restart stops the
// server first. Restart returns when the server accepts connections.
func (c *Cluster) Restart() {
	c.t.Helper()
	c.Stop()
	c.server.process.release()
	if err := c.server.start(); err != nil {
		c.t.Error(err)
	}
}

// Pause freezes every process of the server: the kernel still accepts connections, but
// the server sends no answer.
func (c *Cluster) Pause() {
	c.t.Helper()
	if err := c.server.signal(Freeze); err != nil {
		c.t.Errorf("freezing PostgreSQL: %v", err)
	}
}

// Resume lets every process of a server that [Cluster.Pause] has frozen run again.
func (c *Cluster) Resume() {
	c.t.Helper()
	if err := c.server.signal(Thaw); err != nil {
		c.t.Errorf("thawing PostgreSQL: %v", err)
	}
}

func (s *server) stop() error {
	if pid, _ := s.postmaster(); pid != 0 {
		if err := send(pid, syscall.SIGINT); err != nil {
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
	// A server that SIGKILL has ended leaves two things behind, which must be removed before
	// the next start: a System V segment, by which servers in the same directory notice each
	// other, and a file with a pid that another process can get.
	if key := strings.Fields(s.pidLine(7)); len(key) == 2 {
		if out, err := exec.Command("ipcrm", "-m", key[1]).CombinedOutput(); err != nil {
			return fmt.Errorf("ipcrm: %w: %s", err, out)
		}
	}
	return os.Remove(filepath.Join(s.data(), pidFile))
}

// signal sends a signal to every process of the server. First, signal freezes the
// postmaster: a running postmaster could start a child between the list and the signal.
func (s *server) signal(signal syscall.Signal) error {
	pid, _ := s.postmaster()
	if pid == 0 {
		return errors.New("PostgreSQL does not run")
	}
	if err := send(pid, Freeze); err != nil {
		return err
	}
	children, err := childrenOf(pid)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := send(child, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return send(pid, signal)
}

// childrenOf lists the children of a process.
func childrenOf(pid int) (children []int, err error) {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if errors.Is(err, os.ErrNotExist) { // the system is not Linux
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

// await runs an SQL query every 10 ms until the query returns true.
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
			return fmt.Errorf("still false after %v: %s", patience, question)
		}
	}
}
