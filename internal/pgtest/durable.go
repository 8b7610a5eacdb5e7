package pgtest

import (
	"os"
	"path/filepath"
)

// Durable runs a PostgreSQL server with files on the disk, for a program other than a test,
// such as a benchmark. Committed data survives a crash of the machine.
type Durable struct{ server *server }

// StartDurable starts a PostgreSQL server from the programs of PostgreSQL on this machine.
// settings are lines of postgresql.conf. The PostgreSQL server ends with [Durable.Close], or
// with the process that has called StartDurable.
func StartDurable(settings ...string) (*Durable, error) {
	s, err := newServer(os.TempDir(), settings)
	if err != nil {
		return nil, err
	}
	return &Durable{s}, nil
}

// Close ends the server and removes the server's files.
func (d *Durable) Close() { d.server.discard() }

// Database makes a new, empty database and returns its URI.
func (d *Durable) Database() (string, error) {
	database, err := newDatabase(d.server.admin(), d.server.owner())
	return database.String(), err
}

// Superuser returns the URI with which the superuser connects to the database "postgres" of the
// server.
func (d *Durable) Superuser() string {
	admin := d.server.admin()
	return admin.String()
}

// Program returns the path of a program in the folder of PostgreSQL's programs. The program can
// be missing.
func (d *Durable) Program(name string) string { return filepath.Join(d.server.bin, name) }
