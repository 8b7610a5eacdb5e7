package pgtest

import (
	"os"
	"path/filepath"
)

// Durable is a server on the disk for a program that is no test, as a benchmark:
// what is committed there survives the machine.
type Durable struct{ server *server }

// StartDurable starts a server with PostgreSQL's programs on this machine, and
// these lines of postgresql.conf. It ends with the process at the latest.
func StartDurable(settings ...string) (*Durable, error) {
	s, err := newServer(os.TempDir(), settings)
	if err != nil {
		return nil, err
	}
	return &Durable{s}, nil
}

// Close ends the server and removes it from the disk.
func (d *Durable) Close() { d.server.discard() }

// Database makes a new, empty database and returns its URI.
func (d *Durable) Database() (string, error) {
	database, err := newDatabase(d.server.admin(), d.server.owner())
	return database.String(), err
}

// Superuser returns the URI of the database "postgres" for the superuser.
func (d *Durable) Superuser() string {
	admin := d.server.admin()
	return admin.String()
}

// Program returns the path of one of PostgreSQL's programs, which may be missing.
func (d *Durable) Program(name string) string { return filepath.Join(d.server.bin, name) }
