package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// Migrations are one set of SQL for both engines, but for what only PostgreSQL
// has, in a folder of its own. docs/migrations.md says how to write one.
//
//go:embed migrations
var migrations embed.FS

// sources are the files of an engine's migrations.
func sources(postgres bool) (fs.FS, error) {
	common, err := fs.Sub(migrations, "migrations")
	if err != nil || !postgres {
		return flat{common}, err
	}
	own, err := fs.Sub(migrations, "migrations/postgres")
	return flat{common, own}, err
}

// flat is the files of several folders as if they were in one.
type flat []fs.FS

// Open opens the first file of that name.
func (f flat) Open(name string) (fs.File, error) {
	for _, folder := range f {
		if file, err := folder.Open(name); err == nil {
			return file, nil
		}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// Glob lists the files of all folders.
func (f flat) Glob(pattern string) (names []string, err error) {
	for _, folder := range f {
		found, err := fs.Glob(folder, pattern)
		if err != nil {
			return nil, err
		}
		names = append(names, found...)
	}
	return names, nil
}

// newest is the version that the program's migrations lead to.
func newest(postgres bool) (int64, error) {
	files, err := sources(postgres)
	if err != nil {
		return 0, err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return 0, err
	}
	var version int64
	for _, name := range names {
		number, _, _ := strings.Cut(name, "_")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("migration %s has no number: %w", name, err)
		}
		version = max(version, n)
	}
	return version, nil
}

// schemaFloor is the setting that holds the lowest version whose programs can work
// with the schema as it is. A migration that takes away what they need raises it.
const schemaFloor = "schema_floor"

// judgeSchema says whether this program can work with a schema of a version.
func judgeSchema(current, known int64, floor string) error {
	if current <= known {
		return nil
	}
	lowest, err := strconv.ParseInt(floor, 10, 64)
	if err != nil || lowest > known {
		return fmt.Errorf("%w: version %d is newer than this program's %d, which cannot work with it; run a newer watchword", ErrSchema, current, known)
	}
	return nil
}

func migrateSQLite(ctx context.Context, db *sql.DB) error {
	if to, _ := movedAway(ctx, db); to != "" {
		return errMoved(to) // its tables are not there to be migrated
	}
	provider, err := newProvider(goose.DialectSQLite3, db)
	if err != nil {
		return err
	}
	current, known, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("reading schema version: %w", err)
	}
	if current > known {
		return judgeSchema(current, known, earlySetting(ctx, db, schemaFloor))
	}
	if current == known {
		return nil
	}
	return up(ctx, provider)
}

func newProvider(dialect goose.Dialect, db *sql.DB, options ...goose.ProviderOption) (*goose.Provider, error) {
	files, err := sources(dialect == goose.DialectPostgres)
	if err != nil {
		return nil, err
	}
	provider, err := goose.NewProvider(dialect, db, files, append(options, goose.WithDisableGlobalRegistry(true))...)
	if err != nil {
		return nil, fmt.Errorf("reading migrations: %w", err)
	}
	return provider, nil
}

func up(ctx context.Context, provider *goose.Provider) error {
	if _, err := provider.Up(ctx); err != nil && !errors.Is(err, goose.ErrAlreadyApplied) {
		return fmt.Errorf("migrating schema: %w", err)
	}
	return nil
}

// Migrate brings a database's schema up to date. On PostgreSQL any number may do
// so at once: one does, and the others wait for it. The lock is the session's, so
// a pooler that gives each transaction another connection must not be between.
func Migrate(ctx context.Context, uri string) error {
	scheme, _, _ := strings.Cut(uri, ":")
	if !isPostgres(scheme) {
		s, err := Open(ctx, uri) // which migrates an embedded database
		if err != nil {
			return err
		}
		return s.Close()
	}
	config, err := pgConfig(uri)
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*config.ConnConfig)
	defer db.Close()
	// Asking once a second, for ten minutes: a migration may rewrite a large table.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 600))
	if err != nil {
		return err
	}
	provider, err := newProvider(goose.DialectPostgres, db, goose.WithSessionLocker(locker))
	if err != nil {
		return err
	}
	return up(ctx, provider)
}

// checkPostgresSchema refuses to work on a schema that is older than this program,
// or newer than it can work with.
func checkPostgresSchema(ctx context.Context, p *pgDB) error {
	known, err := newest(true)
	if err != nil {
		return err
	}
	current, floor, err := postgresSchema(ctx, p)
	switch {
	case sqlState(err) == undefinedTable:
		return fmt.Errorf("%w: there is none yet; run: watchword migrate --datastore-uri …", ErrSchema)
	case err != nil:
		return err
	case current < known:
		return fmt.Errorf("%w: version %d is older than this program's %d; run: watchword migrate --datastore-uri …", ErrSchema, current, known)
	}
	return judgeSchema(current, known, floor)
}

func postgresSchema(ctx context.Context, p *pgDB) (current int64, floor string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return 0, "", unavailable(err)
	}
	defer conn.Release()
	err = conn.QueryRow(ctx, `SELECT COALESCE(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&current)
	if err != nil {
		return 0, "", unavailable(err)
	}
	err = conn.QueryRow(ctx, `SELECT value FROM settings WHERE name = $1`, schemaFloor).Scan(&floor)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, "", unavailable(err)
	}
	return current, floor, nil
}
