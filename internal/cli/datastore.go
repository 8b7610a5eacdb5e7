package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
)

// backupCmd copies a SQLite database while a server runs.
type backupCmd struct {
	datastore
	File string `arg:"" type:"path" help:"The file to make; must not exist."`
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *backupCmd) Help() string {
	return `The file holds everything acknowledged by servers before the command began. The file is
complete or does not exist. The master key file is not in the backup: keep a copy of the
master key file in another place.`
}

// Run writes a backup of the database, and reminds the operator to keep the master key, without
// which no signing key in the backup can be opened.
func (c *backupCmd) Run(ctx context.Context, t Terminal) error {
	defer t.progress()()
	err := store.Backup(ctx, c.DatastoreURI, c.File)
	if errors.Is(err, store.ErrEngine) {
		return usageError{fmt.Errorf("--datastore-uri: %w; for PostgreSQL there are pg_dump and pg_basebackup", err)}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(t.Err, "wrote %s. The master key file is not in the backup, and the backup is useless without the master key: keep a copy in another place\n", c.File)
	return nil
}

// datastoreCmd holds the commands for a move to another database, for a restored database and
// for a database with a lost master key.
type datastoreCmd struct {
	Copy     datastoreCopyCmd     `cmd:"" help:"Move a SQLite database to PostgreSQL, while it is served."`
	Restored datastoreRestoredCmd `cmd:"" help:"End every session and withdraw every key, after restoring a backup or promoting a standby that was behind. Every user must log in again."`
	Rekey    datastoreRekeyCmd    `cmd:"" help:"Begin again with new keys, after the master key was lost. Users and passwords stay; every user must log in again."`
}

type datastoreCopyCmd struct {
	From string `arg:"" help:"The existing database: sqlite:FILE."`
	To   string `arg:"" help:"An empty database, after watchword migrate: postgres://… (give the password in PGPASSWORD or PGPASSFILE, since other users can read arguments)."`
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *datastoreCopyCmd) Help() string {
	return `The command copies every user, session, key and revocation. While the command runs, every
call that writes is refused with STORE_UNAVAILABLE. At the end FROM cannot be used any
more: start the servers with TO and the same --master-key-file. If the command is
interrupted, run the command again: it starts over, or finishes the copy.`
}

// Run copies a SQLite database to PostgreSQL, and prints the number of copied rows of each
// table.
func (c *datastoreCopyCmd) Run(ctx context.Context, t Terminal) error {
	defer t.progress()()
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
		fmt.Fprintln(t.Err, "an earlier copy was complete, and is finished now")
	}
	fmt.Fprintf(t.Err, "moved to %s: start the servers with this --datastore-uri and the same master key file\n", copied.To)
	return nil
}

type datastoreRestoredCmd struct{ keys }

// Help returns the text that --help prints below the first sentence about the command.
func (c *datastoreRestoredCmd) Help() string {
	return `Use this command if the database may have lost a logout, a new password or another
revocation. Every user must log in again. Servers may be running on the database: they
know the change within a second.`
}

// Run ends every session in the database, and withdraws every signing key. If the operator
// runs watchword datastore restored a second time, users have to log in a second time, and
// nothing else is lost.
func (c *datastoreRestoredCmd) Run(ctx context.Context, t Terminal) error {
	defer t.progress()()
	return c.withMaster(ctx, seal.Load, func(s *store.Store, master *seal.Keys) error {
		users, key, err := server.Restored(ctx, s, master, record(s))
		if err != nil {
			return err
		}
		fmt.Fprintf(t.Out, "%d users raised, and every session has ended\nevery signing key withdrawn; %s\n", users, signsFrom(key))
		return nil
	})
}

type datastoreRekeyCmd struct {
	keys
	MasterKeyIsLost bool `help:"Confirm that the master key is lost, and that every session may end."`
}

// Help returns the text that --help prints below the first sentence about the command.
func (c *datastoreRekeyCmd) Help() string {
	return `Stop every server first. The command makes the master key file if the file does not exist,
and replaces every signing key and every key of refresh tokens in the database. Users,
passwords and the security record stay. Copy the new master key file to every server, and
start the servers. If you find the lost master key file, the command has nothing to do: start
the servers with that file instead.`
}

// Run replaces every key in the database. If Run is interrupted, the operator runs the
// command again.
func (c *datastoreRekeyCmd) Run(ctx context.Context, t Terminal) error {
	if !c.MasterKeyIsLost {
		return usageError{errors.New("this ends every session, and every user must log in again. " +
			"If the master key is lost, stop every server, and confirm with --master-key-is-lost")}
	}
	made := ""
	defer t.progress()()
	load := func(path string) (*seal.Keys, error) {
		master, err := seal.Load(path)
		if errors.Is(err, fs.ErrNotExist) {
			made = path
			if database, embedded := strings.CutPrefix(c.DatastoreURI, "sqlite:"); embedded {
				master, err = seal.CreateBeside(path, database)
			} else {
				master, err = seal.Create(path)
			}
		}
		return master, err
	}
	return c.withMaster(ctx, load, func(s *store.Store, master *seal.Keys) error {
		users, key, err := server.Rekey(ctx, s, master, record(s))
		if err != nil {
			return err
		}
		if made != "" {
			fmt.Fprintf(t.Err, "made %s: keep a copy in another place than the database, and copy the file to every server\n", made)
		}
		fmt.Fprintf(t.Out, "%d users raised, and every session has ended\nevery key replaced; %s\n", users, signsFrom(key))
		return nil
	})
}
