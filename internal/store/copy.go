package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Copied says what Copy has done.
type Copied struct {
	To     string // without a password
	Tables []CopiedTable
	// Earlier says that the rows had come with an earlier copy, which was
	// interrupted before it could say so.
	Earlier bool
}

// CopiedTable is a table's name, and how many rows were copied.
type CopiedTable struct {
	Name string
	Rows int64
}

// Copy moves an embedded database to an empty PostgreSQL database with its schema,
// while servers have it open. They lose nothing that they have acknowledged: what
// they write is refused, as ErrUnavailable, from the copy's beginning on and for
// good. An error that matches ErrEngine says that the URIs are not of that kind.
//
// In order:
//
//  1. The target is locked, and must be empty.
//  2. The source's write lock is taken, so that it stays as it is read.
//  3. Everything goes into the target, and a mark that it is incomplete, and is
//     committed. Nobody works on a database with that mark.
//  4. The source is fenced: its tables get other names, so that no program of
//     whatever version reads or writes them any more.
//  5. The mark is taken away.
//
// Who dies before the commit of 4 leaves the source as it was, and the next copy
// starts over. Who dies after it leaves a copy that is whole, and the next one
// takes the mark away. So at any moment at most one of the two is worked on.
func Copy(ctx context.Context, from, to string) (*Copied, error) {
	c, err := openCopying(ctx, from, to)
	if err != nil {
		return nil, err
	}
	defer c.close()
	for _, step := range c.steps() {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return &c.copied, nil
}

// copying is a copy that is under way.
type copying struct {
	id     string
	tables []string
	db     *sql.DB // the source's
	source *conn
	into   *pgDB // the target's
	target *pgxpool.Conn
	copied Copied
}

func openCopying(ctx context.Context, from, to string) (*copying, error) {
	if scheme, _, _ := strings.Cut(to, ":"); !isPostgres(scheme) {
		return nil, fmt.Errorf("the database to copy to: %w: it must be postgres://…", ErrEngine)
	}
	path, err := existing(from)
	if err != nil {
		return nil, fmt.Errorf("the database to copy: %w", err)
	}
	c := &copying{}
	if err = c.openSource(ctx, path); err == nil {
		err = c.openTarget(ctx, to)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *copying) openSource(ctx context.Context, path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening database %s: %w", path, err)
		}
	}()
	if c.db, err = sql.Open("sqlite", dsn(path)); err != nil {
		return err
	}
	if err := ours(ctx, c.db); err != nil {
		return err
	}
	if to, id := movedAway(ctx, c.db); to != "" {
		c.id, c.copied.Earlier = id, true
		return nil
	}
	c.id = rand.Text()
	if err := migrateSQLite(ctx, c.db); err != nil {
		return err
	}
	if c.source, err = connect(ctx, c.db); err != nil {
		return err
	}
	if c.source.turn, err = openTurnstile(path); err != nil {
		return err
	}
	c.tables, err = c.list(`SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'goose_db_version' ORDER BY name`)
	return err
}

func (c *copying) openTarget(ctx context.Context, uri string) (err error) {
	if c.into, err = connectPostgres(ctx, uri); err != nil {
		return err
	}
	config := c.into.pool.Config().ConnConfig
	c.copied.To = (&url.URL{
		Scheme: "postgres", User: url.User(config.User), Path: "/" + config.Database,
		Host: net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))),
	}).String()
	c.target, err = c.into.pool.Acquire(ctx)
	return err
}

// close takes back what was not committed.
func (c *copying) close() {
	if c.target != nil {
		c.target.Release() // a connection with an open transaction is closed
	}
	if c.into != nil {
		c.into.closeOnce()
	}
	if c.source != nil {
		_ = c.source.control("ROLLBACK") // fails where nothing is open
		c.source.close()
	}
	if c.db != nil {
		c.db.Close()
	}
}

func (c *copying) steps() []func(context.Context) error {
	if c.copied.Earlier {
		return []func(context.Context) error{c.finish}
	}
	return []func(context.Context) error{c.receive, c.lock, c.transfer, c.commit, c.rename, c.fence, c.finish}
}

// receive locks the target, in a transaction that stays open, and refuses it
// where it holds anything but a copy that was interrupted.
func (c *copying) receive(ctx context.Context) error {
	// A copy that a crash of PostgreSQL takes back, when the source is fenced,
	// would be everything lost: so the commit is waited for whatever is usual.
	for _, statement := range []string{
		`BEGIN`, `SET LOCAL lock_timeout = '5s'`, `SET LOCAL statement_timeout = 0`, `SET LOCAL idle_in_transaction_session_timeout = 0`,
		`SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'`,
		fmt.Sprintf(`SELECT pg_advisory_xact_lock(%d)`, int64(exclusiveLock)), // a server that starts now waits
		`LOCK TABLE ` + strings.Join(c.tables, ", ") + ` IN SHARE ROW EXCLUSIVE MODE`,
	} {
		if _, err := c.target.Exec(ctx, statement); err != nil {
			return fmt.Errorf("locking the database to copy to: %w", err)
		}
	}
	incomplete, err := c.setting(ctx, copyIncomplete)
	if err != nil {
		return err
	}
	for _, table := range c.tables {
		if err := c.clear(ctx, table, incomplete != ""); err != nil {
			return err
		}
	}
	return nil
}

// clear empties a table of what a migration, or a copy that was interrupted, has
// left in it, and refuses to touch anything else.
func (c *copying) clear(ctx context.Context, table string, leftovers bool) error {
	kept := ``
	if table == "settings" {
		kept = ` WHERE name <> '` + schemaFloor + `'`
	}
	switch {
	case table == "head" || table == "settings" && leftovers:
		_, err := c.target.Exec(ctx, `DELETE FROM `+table+kept)
		return err
	case leftovers:
		_, err := c.target.Exec(ctx, `TRUNCATE `+table)
		return err
	}
	var used bool
	if err := c.target.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM `+table+kept+`)`).Scan(&used); err != nil {
		return err
	}
	if used {
		return fmt.Errorf("the database to copy to is in use: there are rows in its table %s. Nothing was changed; name an empty one", table)
	}
	return nil
}

// lock keeps the source's writers out until it is fenced, or left as it was.
func (c *copying) lock(ctx context.Context) error {
	if err := c.source.begin(); err != nil {
		return fmt.Errorf("locking the database to copy: %w", err)
	}
	if to, _ := movedAway(ctx, c.db); to != "" { // while we waited
		return errMoved(to)
	}
	return nil
}

func (c *copying) transfer(ctx context.Context) error {
	for _, table := range c.tables {
		rows, err := c.table(ctx, table)
		if err != nil {
			return fmt.Errorf("copying %s: %w", table, err)
		}
		c.copied.Tables = append(c.copied.Tables, CopiedTable{table, rows})
	}
	_, err := c.target.Exec(ctx, `INSERT INTO settings (name, value) VALUES ($1, $3), ($2, $3)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, copyID, copyIncomplete, c.id)
	return err
}

// copyChunk bounds what of a table is in memory, in rows of some 200 bytes.
const copyChunk = 5000

// table copies what a table holds, whatever its columns are.
func (c *copying) table(ctx context.Context, table string) (rows int64, err error) {
	columns, err := c.list(`SELECT name FROM pragma_table_info('` + table + `')`)
	if err != nil {
		return 0, err
	}
	booleans, err := c.list(`SELECT name FROM pragma_table_info('` + table + `') WHERE type = 'BOOLEAN'`)
	if err != nil {
		return 0, err
	}
	query := `SELECT ` + strings.Join(columns, ", ") + ` FROM ` + table
	if table == "settings" {
		query += ` WHERE name <> '` + schemaFloor + `'` // each engine has its own
	}
	var chunk [][]any
	flush := func() error {
		n, err := c.target.CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromRows(chunk))
		rows, chunk = rows+n, chunk[:0]
		return err
	}
	err = sqliteTx{conn: c.source}.query(func(r row) error {
		values, err := scanAny(r, len(columns))
		if err != nil {
			return err
		}
		for _, name := range booleans { // which SQLite keeps as numbers
			i := slices.Index(columns, name)
			values[i] = values[i] != int64(0)
		}
		if chunk = append(chunk, values); len(chunk) < copyChunk {
			return nil
		}
		return flush()
	}, "", query)
	if err == nil {
		err = flush()
	}
	return rows, err
}

func scanAny(r row, n int) ([]any, error) {
	values, into := make([]any, n), make([]any, n)
	for i := range values {
		into[i] = &values[i]
	}
	err := r.Scan(into...)
	for i, v := range values {
		if b, ok := v.([]byte); ok && b == nil { // the driver's empty one, which is no NULL
			values[i] = []byte{}
		}
	}
	return values, err
}

func (c *copying) commit(ctx context.Context) error {
	conn := c.target.Conn().PgConn()
	forgetWarnings(conn)
	_, err := c.target.Exec(ctx, `COMMIT`)
	if err == nil {
		err = replicated(conn)
	}
	if err != nil {
		return fmt.Errorf("committing the copy (the source is as it was; run this again): %w", err)
	}
	return nil
}

// rename puts all tables out of reach but the one that says where they went, and
// the one that says that the schema has been made.
func (c *copying) rename(context.Context) error {
	for _, table := range c.tables {
		if table == "settings" {
			continue
		}
		if _, err := c.source.c.ExecContext(context.Background(), `ALTER TABLE `+table+` RENAME TO moved_`+table); err != nil {
			return fmt.Errorf("fencing the source: %w", err)
		}
	}
	tx := newTx(c.source)
	return errors.Join(tx.SetSetting(movedTo, c.copied.To), tx.SetSetting(copyID, c.id))
}

func (c *copying) fence(context.Context) error {
	if err := c.source.control("COMMIT"); err != nil {
		return fmt.Errorf("fencing the source: %w", err)
	}
	return nil
}

// finish takes the mark away, if the copy in the target is the source's.
func (c *copying) finish(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // there is no way back
	id, err := c.setting(ctx, copyID)
	if err != nil {
		return err
	}
	if id != c.id {
		to, _ := movedAway(ctx, c.db)
		return errMoved(to)
	}
	if _, err := c.target.Exec(ctx, `DELETE FROM settings WHERE name = $1`, copyIncomplete); err != nil {
		return fmt.Errorf("finishing the copy (run this again): %w", err)
	}
	// So that the first queries are planned as the later ones. It is done by itself
	// too, a while later.
	_, _ = c.target.Exec(ctx, `SET statement_timeout = 0`)
	_, _ = c.target.Exec(ctx, `ANALYZE `+strings.Join(c.tables, ", "))
	return nil
}

func (c *copying) setting(ctx context.Context, name string) (value string, err error) {
	err = c.target.QueryRow(ctx, `SELECT value FROM settings WHERE name = $1`, name).Scan(&value)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return value, err
}

// list is a column of the source.
func (c *copying) list(query string) (values []string, err error) {
	err = sqliteTx{conn: c.source}.query(func(r row) error {
		values = slices.Grow(values, 1)
		values = append(values, "")
		return r.Scan(&values[len(values)-1])
	}, "", query)
	return values, err
}
