package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
)

type backupCmd struct {
	datastore
	File string `arg:"" type:"path" help:"The file, which must not exist."`
}

// Help is what --help says besides.
func (c *backupCmd) Help() string {
	return `It holds everything that servers have acknowledged before the command began, and is
there whole or not at all. The master key file is not in it: keep that elsewhere.`
}

func (c *backupCmd) Run(ctx context.Context, t Terminal) error {
	err := store.Backup(ctx, c.DatastoreURI, c.File)
	if errors.Is(err, store.ErrEngine) {
		return usageError{fmt.Errorf("--datastore-uri: %w; for PostgreSQL there are pg_dump and pg_basebackup", err)}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(t.Err, "%s is written. The master key file is not in it, and nothing can be read without: keep that too, elsewhere\n", c.File)
	return nil
}

type datastoreCmd struct {
	Copy     datastoreCopyCmd     `cmd:"" help:"Move a SQLite database to PostgreSQL, while it is served."`
	Restored datastoreRestoredCmd `cmd:"" help:"End every session and withdraw every key, after a backup was restored or a standby promoted behind. Everybody must log in again."`
}

type datastoreCopyCmd struct {
	From string `arg:"" help:"The database that there is: sqlite:FILE."`
	To   string `arg:"" help:"An empty one, after watchword migrate: postgres://… (its password by PGPASSWORD or PGPASSFILE, since arguments can be seen)."`
}

// Help is what --help says besides.
func (c *datastoreCopyCmd) Help() string {
	return `Every user, session, key and revocation goes along. From its beginning on, calls that
write are answered STORE_UNAVAILABLE, and FROM is fenced for good at its end: then start
the servers with TO, and with the same --master-key-file. Where it is interrupted, run it
again: it starts over, or finishes what was done.`
}

func (c *datastoreCopyCmd) Run(ctx context.Context, t Terminal) error {
	copied, err := store.Copy(ctx, c.From, c.To)
	if errors.Is(err, store.ErrEngine) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	for _, table := range copied.Tables {
		fmt.Fprintf(t.Out, "%d rows of %s\n", table.Rows, table.Name)
	}
	if copied.Earlier {
		fmt.Fprintln(t.Err, "an earlier copy was whole, and is finished now")
	}
	fmt.Fprintf(t.Err, "moved to %s: start the servers with that as --datastore-uri, and with the same master key file\n", copied.To)
	return nil
}

type datastoreRestoredCmd struct {
	datastore
	MasterKeyFile string `type:"path" help:"File of the master key, as for serve."`
}

// Help is what --help says besides.
func (c *datastoreRestoredCmd) Help() string {
	return `For when what the database has lost may have been a logout, a new password or another
revocation. Everybody must log in again. Servers may be running on the database: they
know within a second.`
}

func (c *datastoreRestoredCmd) Run(ctx context.Context, t Terminal) error {
	return c.with(ctx, func(s *store.Store) error {
		master, err := masterKeys(s, c.MasterKeyFile)
		if err != nil {
			return err
		}
		users, key, err := server.Restored(ctx, s, master, record(s))
		if err != nil {
			return err
		}
		fmt.Fprintf(t.Out, "%d users raised, and every session has ended\nevery signing key withdrawn; %s %s signs from %s\n",
			users, key.KID, key.Algorithm, moment(key.SignsFrom))
		return nil
	})
}
