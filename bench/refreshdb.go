package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
)

const (
	// tableRows is the number of sessions, as many as the table of bench/limits has rows.
	tableRows = 1_000_000
	// refreshed is the number of sessions that a number of callers refreshes, as many as
	// bench/limits updates. The sessions are spread over the whole table.
	refreshed = 65_536
	// owners is the number of users that have the sessions.
	owners = 1000
)

// installation is the built server with its key and its database, and the program bench/limits.
type installation struct {
	name   string // the name of this part of the benchmark
	folder string
	uri    string
	crowd  *crowd
}

// install builds the programs, and lets the server make its first user and its keys.
func (b *bench) install(name, uri string) (*installation, error) {
	folder, err := os.MkdirTemp("", "watchword-bench-")
	if err != nil {
		return nil, err
	}
	i := &installation{name: name, folder: folder, uri: uri, crowd: &crowd{watchword: &watchword{}}}
	if uri == "" {
		i.uri = "sqlite:" + i.database()
	}
	err = errors.Join(ship(i.limits(), ".", "./limits"), b.shipProfiled(i.program(), name))
	if err == nil {
		i.crowd.watchword.master, err = seal.Create(i.key())
	}
	if err == nil {
		err = i.setUp()
	}
	if err != nil {
		i.remove()
	}
	return i, err
}

func (i *installation) limits() string   { return filepath.Join(i.folder, "limits") }
func (i *installation) program() string  { return filepath.Join(i.folder, "watchword") }
func (i *installation) key() string      { return filepath.Join(i.folder, "master.key") }
func (i *installation) database() string { return filepath.Join(i.folder, "watchword.db") }
func (i *installation) remove()          { os.RemoveAll(i.folder) }

var listening = regexp.MustCompile(` grpc=(\S+)`)

// start starts the server with its defaults and further flags.
func (i *installation) start(flags ...string) (*program, error) {
	p, err := launch(append([]string{i.program(), "serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--datastore-uri", i.uri,
		"--master-key-file", i.key(), "--issuer", "http://127.0.0.1:8080", "--audience", audience, "--audience", "billing"}, flags...)...)
	if err != nil {
		return nil, err
	}
	line, err := p.line("msg=ready")
	if err != nil {
		return nil, err
	}
	i.crowd.addr = listening.FindStringSubmatch(line)[1]
	p.discard()
	return p, nil
}

func (i *installation) setUp() error {
	file := filepath.Join(i.folder, "password")
	p, err := i.start("--initial-password-file", file)
	if err != nil {
		return err
	}
	password, err := os.ReadFile(file)
	i.crowd.password = strings.TrimSpace(string(password))
	return errors.Join(err, p.stop())
}

// sqliteRefresh compares refreshes on SQLite with their parts.
func sqliteRefresh(b *bench) error {
	i, err := b.install("sqlite-refresh", "")
	if err != nil {
		return err
	}
	defer i.remove()
	db, err := sql.Open("sqlite", "file:"+i.database()+"?_pragma=cache_size(-400000)&_pragma=synchronous(OFF)")
	if err != nil {
		return err
	}
	if err := errors.Join(i.crowd.fillSQLite(db), db.Close()); err != nil {
		return err
	}
	update, err := startPart("update", i.limits(), "sqlite", filepath.Join(i.folder, "limits.db"))
	if err != nil {
		return err
	}
	return b.refreshAgainst(i, []*part{update})
}

// fillSQLite reads the key of refresh tokens, and inserts users and sessions as [crowd.fill]
// does.
func (c *crowd) fillSQLite(db *sql.DB) error {
	ctx := context.Background()
	var sealed []byte
	err := db.QueryRow(`SELECT sealed_key FROM mac_keys WHERE id = 1`).Scan(&sealed)
	if err == nil {
		c.mac, err = openMAC(c.master, sealed)
	}
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for _, kind := range []struct {
		n      int
		insert string
		args   func(n int) []any
	}{
		{owners, insertUser + `VALUES ($1, $2, '', 'reader writer', false, 1, 0, $3, $3)`,
			func(n int) []any { return []any{idOf("user", n), fmt.Sprint("user-", n), time.Now().UnixMicro()} }},
		{tableRows, strings.Replace(insertSession, "(id,", "(rowid, id,", 1) +
			fmt.Sprintf(`VALUES ($1, $2, $3, 1, '["internal","billing"]', $4, $4, 1, 0, %[1]d, 0, 0, 0, %[1]d)`, never()),
			func(n int) []any {
				return []any{store.SessionRow(sessionID(n)), sessionID(n), idOf("user", n%owners), time.Now().UnixMicro()}
			}},
	} {
		stmt, err := tx.Prepare(kind.insert)
		if err != nil {
			return err
		}
		for n := range kind.n {
			if _, err := stmt.Exec(kind.args(n)...); err != nil {
				return fmt.Errorf("filling the database: %w", err)
			}
		}
		stmt.Close()
	}
	return tx.Commit()
}

// poolSizes holds the numbers of connections that are tried for the updates.
var poolSizes = []int{1, 2, 4, 8, 16, 32}

// postgresRefresh compares refreshes on PostgreSQL with their parts.
func postgresRefresh(b *bench) error {
	postgres, err := pgtest.StartDurable(settings...)
	if err != nil {
		return err
	}
	defer postgres.Close()
	uri, err := postgres.Database()
	if err != nil {
		return err
	}
	other, err := postgres.Database() // a second database, for bench/limits
	if err != nil {
		return err
	}
	ctx := context.Background()
	if err := store.Migrate(ctx, uri); err != nil {
		return err
	}
	i, err := b.install("postgres-refresh", uri)
	if err != nil {
		return err
	}
	defer i.remove()
	if i.crowd.db, err = pgx.Connect(ctx, uri); err != nil {
		return err
	}
	defer i.crowd.db.Close(ctx)
	if err := errors.Join(i.crowd.readMAC(ctx), i.crowd.fill(ctx, owners, tableRows)); err != nil {
		return err
	}
	var backend int
	if err := i.crowd.db.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&backend); err != nil {
		return err
	}
	postmaster, err := parentOf(backend)
	if err != nil {
		return err
	}
	var updates []*part
	for _, size := range poolSizes {
		update, err := startPart(fmt.Sprintf("update-%d-connections", size), i.limits(), "postgres", other, fmt.Sprint(size))
		if err != nil {
			return err
		}
		update.database = postmaster
		updates = append(updates, update)
	}
	if err := settle(postgres, i.crowd); err != nil {
		return err
	}
	return b.refreshAgainst(i, updates)
}
