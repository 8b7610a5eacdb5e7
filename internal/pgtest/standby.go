package pgtest

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Standby starts a new server that follows c, and returns when the new server streams.
// With synchronous, every later commit on c waits until the standby has the commit on its
// disk. With several synchronous standbys, a commit waits for each.
func (c *Cluster) Standby(t testing.TB, synchronous bool) *Cluster {
	t.Helper()
	name := "standby_" + strings.ToLower(rand.Text())
	s, err := c.server.copy(name)
	if err != nil {
		t.Fatalf("making a standby: %v", err)
	}
	// synchronous_standby_names is set before the standby starts: once a client sees the
	// standby stream, all of the client's commits wait for the standby.
	if synchronous {
		c.synchronous = append(c.synchronous, name)
		c.Exec(t, fmt.Sprintf("ALTER SYSTEM SET synchronous_standby_names = '%d (%s)'",
			len(c.synchronous), strings.Join(c.synchronous, ", ")), "SELECT pg_reload_conf()")
	}
	if err := s.startOnFreePort(); err != nil {
		t.Fatalf("starting a standby: %v", err)
	}
	standby := newCluster(t, s)
	if err := await(c.server.admin(), `SELECT EXISTS (SELECT FROM pg_stat_replication
		WHERE application_name = $1 AND state = 'streaming' AND (sync_state = 'sync') = $2)`, name, synchronous); err != nil {
		t.Fatalf("waiting for a standby: %v\n%s", err, logOf(s.dir))
	}
	return standby
}

// copy makes the directory of a standby that follows the server s.
func (s *server) copy(name string) (*server, error) {
	standby, err := prepare(filepath.Dir(s.dir), s.password)
	if err != nil {
		return nil, err
	}
	source := fmt.Sprintf("host=127.0.0.1 port=%d user=%s application_name=%s sslmode=disable", s.port, superuser, name)
	if err := run(standby.dir, []string{"PGPASSWORD=" + s.password}, s.program("pg_basebackup"), "--no-sync",
		"--checkpoint=fast", "--write-recovery-conf", "--pgdata="+standby.data(), "--dbname="+source); err != nil {
		os.RemoveAll(standby.dir)
		return nil, err
	}
	// The copy includes the primary's setting synchronous_standby_names. Without the reset, the
	// standby would wait for the primary's standbys after Promote.
	return standby, standby.configure("postgresql.auto.conf", "synchronous_standby_names=''")
}

// Detach ends a standby's connection to the primary for ever. After [Cluster.Promote], the
// standby lacks all commits that the primary made after Detach.
func (c *Cluster) Detach(t testing.TB) {
	t.Helper()
	c.Exec(t, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
	if err := await(c.server.admin(), "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"); err != nil {
		t.Fatalf("detaching a standby: %v", err)
	}
}

// Promote makes a standby a primary, and returns when the server accepts writes.
func (c *Cluster) Promote() {
	c.t.Helper()
	if err := await(c.server.admin(), "SELECT pg_promote(true, $1)", int(patience.Seconds())); err != nil {
		c.t.Errorf("promoting a standby: %v", err)
	}
}
