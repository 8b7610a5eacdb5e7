package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// copyTarget is the PostgreSQL database that a [Copy] fills. One transaction on conn
// lasts from [copyTarget.lock] to [copyTarget.commit].
type copyTarget struct {
	db   *pgDB
	conn *pgxpool.Conn
}

func openCopyTarget(ctx context.Context, uri string) (*copyTarget, error) {
	db, err := openPostgres(ctx, uri, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		db.closeOnce()
		return nil, err
	}
	return &copyTarget{db: db, conn: conn}, nil
}

func (t *copyTarget) close() {
	t.conn.Release() // closes the connection if a transaction is open
	t.db.closeOnce()
}

func (t *copyTarget) name() string { return t.db.address() }

// publicURI returns a URI without its passwords. A server can be started with the result, if
// the password is given in another way: publicURI keeps the parameters, such as sslrootcert,
// and adds the user, host, port and database that come from the environment variables of
// PostgreSQL, such as PGHOST.
func publicURI(uri string, config *pgx.ConnConfig) string {
	u, err := url.Parse(uri)
	if err != nil { // such as a URI with two hosts, of which the second has no port
		u = &url.URL{Scheme: "postgres"}
	}
	query := u.Query()
	query.Del("password")
	query.Del("sslpassword")
	if u.User = nil; !query.Has("user") {
		u.User = url.User(config.User)
	}
	if u.Host == "" && !query.Has("host") && !query.Has("service") {
		query.Set("host", config.Host) // may be the folder of a socket
		query.Set("port", strconv.Itoa(int(config.Port)))
	}
	if strings.Trim(u.Path, "/") == "" && !query.Has("dbname") && !query.Has("service") {
		u.Path = "/" + config.Database
	}
	u.RawQuery = query.Encode()
	return u.String()
}

// lock begins the copy's transaction, locks the tables of the target, and deletes the rows that
// a migration or an interrupted copy has left. lock refuses a target with any other row.
func (t *copyTarget) lock(ctx context.Context, tables []string) error {
	// With synchronous_commit = off, a crash of PostgreSQL might undo the commit of the
	// copy after the source was fenced. Then both databases would be lost.
	for _, statement := range []string{
		`BEGIN`, `SET LOCAL lock_timeout = '5s'`, `SET LOCAL statement_timeout = 0`, `SET LOCAL idle_in_transaction_session_timeout = 0`,
		`SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'`,
		lockExclusive, // makes a server that starts on the target wait
		`LOCK TABLE ` + strings.Join(tables, ", ") + ` IN SHARE ROW EXCLUSIVE MODE`,
	} {
		if _, err := t.conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("locking the database to copy to: %w", err)
		}
	}
	incomplete, err := pgSetting(ctx, t.conn, copyIncomplete)
	if err != nil {
		return err
	}
	for _, table := range tables {
		if err := t.clear(ctx, table, incomplete != ""); err != nil {
			return err
		}
	}
	return nil
}

// clear empties a table of the target. If leftovers is true, an interrupted copy has filled
// the tables of the target, and clear deletes every row. If leftovers is false, clear deletes
// only the single row of the table named head (the number of the newest event), which a
// migration has inserted.
//
// Errors: one that names the table, if leftovers is false and a table other than head has
// rows.
func (t *copyTarget) clear(ctx context.Context, table string, leftovers bool) error {
	switch {
	case table == "head" || table == "settings" && leftovers:
		_, err := t.conn.Exec(ctx, `DELETE `+fromTable(table))
		return err
	case leftovers:
		_, err := t.conn.Exec(ctx, `TRUNCATE `+table)
		return err
	}
	var used bool
	if err := t.conn.QueryRow(ctx, `SELECT EXISTS (SELECT 1 `+fromTable(table)+`)`).Scan(&used); err != nil {
		return err
	}
	if used {
		return fmt.Errorf("the database to copy to is in use: its table %s has rows. Nothing was changed; name an empty database", table)
	}
	return nil
}

// receive inserts rows into a table of the target, and returns the number of rows.
func (t *copyTarget) receive(ctx context.Context, table string, rows *copyRows) (int64, error) {
	columns, err := rows.Columns()
	if err != nil {
		return 0, err
	}
	return t.conn.CopyFrom(ctx, pgx.Identifier{table}, columns, rows)
}

// raiseNumbers makes the target number new records of the security record from behind the
// highest copied number on.
func (t *copyTarget) raiseNumbers(ctx context.Context) error {
	_, err := t.conn.Exec(ctx, `SELECT setval('audit_numbers', GREATEST(1, (SELECT max(seq) FROM audit), (SELECT max(seq) FROM audit_marks)))`)
	return err
}

// mark sets copyIncomplete and copyID in the target.
func (t *copyTarget) mark(ctx context.Context, id string) error {
	_, err := t.conn.Exec(ctx, `INSERT INTO settings (name, value) VALUES ($1, $3), ($2, $3)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, copyID, copyIncomplete, id)
	return err
}

func (t *copyTarget) commit(ctx context.Context) error {
	err := confirmed(t.conn.Conn().PgConn(), func() error {
		_, err := t.conn.Exec(ctx, `COMMIT`)
		return err
	})
	if err != nil {
		return fmt.Errorf("committing the copy (the database copied from is unchanged; run this command again): %w", err)
	}
	return nil
}

// finish deletes copyIncomplete, so that the target is usable from now on.
func (t *copyTarget) finish(ctx context.Context) error {
	if _, err := t.conn.Exec(ctx, `DELETE FROM settings WHERE name = $1`, copyIncomplete); err != nil {
		return fmt.Errorf("finishing the copy (run this command again): %w", err)
	}
	// ANALYZE gives PostgreSQL the statistics for fast plans from the first query on.
	// PostgreSQL would run ANALYZE by itself some time later. An error is ignored: the
	// copy is complete.
	_, _ = t.conn.Exec(ctx, `SET statement_timeout = 0`)
	_, _ = t.conn.Exec(ctx, `ANALYZE`)
	return nil
}

// pgSetting reads a setting outside of a [Tx]. pgSetting returns "" for a setting that
// was never set.
func pgSetting(ctx context.Context, conn *pgxpool.Conn, name string) (value string, err error) {
	err = conn.QueryRow(ctx, `SELECT value FROM settings WHERE name = $1`, name).Scan(&value)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return value, err
}
