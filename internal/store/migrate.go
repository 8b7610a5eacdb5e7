package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// migrations holds the SQL files of the migrations of both engines. A file named *_postgres.sql
// is for PostgreSQL alone, and a file named *_sqlite.sql for SQLite alone. docs/migrations.md
// tells how to write a migration.
//
//go:embed migrations/*.sql
var migrations embed.FS

// Two settings name the oldest program that can work with the schema. A migration that
// removes something needed by older programs sets both (docs/migrations.md).
const (
	// schemaFloor is the number of the newest migration that the program must have.
	schemaFloor = "schema_floor"
	// schemaRelease is the version of Watchword with the migration of schemaFloor, for error
	// messages, such as v1.4.0. The setting is missing while schemaFloor is older than every
	// release.
	schemaRelease = "schema_floor_release"
)

// schema holds what a database says of its own schema.
type schema struct {
	version        int64  // the number of the newest migration that the database has
	floor, release string // the values of schemaFloor and schemaRelease; empty if missing
}

// judge compares the schema of a database with known, the newest migration of this program.
// Errors: ErrOldSchema if the database is older; ErrSchema if the database is newer and
// schema_floor is above known.
func (s schema) judge(known int64) error {
	if s.version < known {
		return fmt.Errorf("%w: version %d is older than this program's %d", ErrOldSchema, s.version, known)
	}
	if s.version == known {
		return nil
	}
	lowest, err := strconv.ParseInt(s.floor, 10, 64)
	if err == nil && lowest <= known {
		return nil
	}
	needs := ""
	if s.release != "" {
		needs = fmt.Sprintf(" (%.40q is the oldest that can)", s.release)
	}
	return fmt.Errorf("%w: version %d is newer than this program's %d, which cannot work with it%s", ErrSchema, s.version, known, needs)
}

// migrateSQLite brings an embedded database's schema up to date. Errors: a *MovedError;
// ErrSchema if the schema is too new for this program.
func migrateSQLite(ctx context.Context, db *sql.DB) error {
	if to, _ := movedAway(ctx, db); to != "" {
		return &MovedError{To: to} // a migration would not find the renamed tables
	}
	provider, err := newProvider(goose.DialectSQLite3, db)
	if err != nil {
		return err
	}
	current, known, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("reading schema version: %w", err)
	}
	if current >= known {
		return schema{current, earlySetting(ctx, db, schemaFloor), earlySetting(ctx, db, schemaRelease)}.judge(known)
	}
	return applyMigrations(ctx, provider)
}

func newProvider(dialect goose.Dialect, db *sql.DB, options ...goose.ProviderOption) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	others, err := fs.Glob(files, "*"+suffixOfOthers(dialect == goose.DialectPostgres))
	if err != nil {
		return nil, err
	}
	options = append(options, goose.WithExcludeNames(others))
	provider, err := goose.NewProvider(dialect, db, files, append(options, goose.WithDisableGlobalRegistry(true))...)
	if err != nil {
		return nil, fmt.Errorf("reading migrations: %w", err)
	}
	return provider, nil
}

// suffixOfOthers returns the end of the file names of the migrations that are for the other
// engine alone.
func suffixOfOthers(postgres bool) string {
	if postgres {
		return "_sqlite.sql"
	}
	return "_postgres.sql"
}

// applyMigrations applies the migrations that the database lacks. Errors: ErrRights.
func applyMigrations(ctx context.Context, provider *goose.Provider) error {
	_, err := provider.Up(ctx)
	switch {
	case err == nil, errors.Is(err, goose.ErrAlreadyApplied):
		return nil
	case sqlState(err) == insufficientPrivilege:
		err = fmt.Errorf("%w: %w", ErrRights, err)
	}
	return fmt.Errorf("migrating schema: %w", err)
}

// The lock of the migrations is a row of the table goose_lock, which belongs to the migration
// tool goose. A migrating process renews the lock. A process that was killed loses the lock
// after migrateLease by PostgreSQL's clock.
const (
	migrateLease     = 15 * time.Second
	migrateHeartbeat = 3 * time.Second // a fifth of migrateLease: the lock survives some failed renewals
	// migrateWait bounds how long a process waits for the lock, with one attempt a
	// second: a migration in another process may rewrite a large table.
	migrateWait = 10 * time.Minute
	// sayAfter is the number of failed attempts, one a second, after which migrateLock calls
	// waiting.
	sayAfter = 3
)

// migrateLock returns the lock of the migrations, and calls waiting once if another process
// keeps the lock for some seconds. An advisory lock of PostgreSQL would not do: any role that has
// the right to connect to the database could take the lock, and so block every migration.
func migrateLock(waiting func()) (lock.Locker, error) {
	attempts := 0
	return lock.NewPostgresTableLocker(
		lock.WithTableLeaseDuration(migrateLease), lock.WithTableHeartbeatInterval(migrateHeartbeat),
		lock.WithTableLockTimeout(time.Second, uint64(migrateWait/time.Second)), lock.WithTableUnlockTimeout(time.Second, 3),
		lock.WithTableLogger(slog.New(slog.DiscardHandler)), // an error that goose logs is returned, too
		// An error with a code of PostgreSQL, such as a missing right, stays until the operator
		// acts, so no retry helps. Any other error says that another process has the lock.
		lock.WithTableRetryPolicy(func(err error) bool {
			if attempts++; attempts == sayAfter && sqlState(err) == "" {
				waiting()
			}
			return sqlState(err) == ""
		}),
	)
}

// Migrate brings a database's schema up to date. On PostgreSQL any number of processes can call
// Migrate at once: one migrates, and the others wait. Errors: for SQLite those of [Open];
// ErrRights.
func Migrate(ctx context.Context, uri string, opts ...Option) error {
	if !isPostgres(uri) {
		s, err := Open(ctx, uri) // Open migrates an embedded database
		if err != nil {
			return err
		}
		return s.Close()
	}
	o := optionsOf(opts)
	config, err := pgConfig(uri, o.logger)
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*config.ConnConfig, stdlib.OptionBeforeConnect(config.BeforeConnect))
	defer db.Close()
	locker, err := migrateLock(o.waiting)
	if err != nil {
		return err
	}
	provider, err := newProvider(goose.DialectPostgres, db, goose.WithLocker(locker))
	if err != nil {
		return err
	}
	return applyMigrations(ctx, provider)
}

// newestMigration returns the version of the newest migration in this program. The names of
// the files begin with their versions.
func newestMigration(postgres bool) int64 {
	files, _ := fs.Glob(migrations, "migrations/*.sql") // the pattern is well-formed
	newest := int64(0)
	for _, file := range files {
		version, _, _ := strings.Cut(path.Base(file), "_")
		n, _ := strconv.ParseInt(version, 10, 64)
		if !strings.HasSuffix(file, suffixOfOthers(postgres)) {
			newest = max(newest, n)
		}
	}
	return newest
}

// schemaQuery is a query for a [schema].
const schemaQuery = `SELECT COALESCE(max(version_id), 0),
	COALESCE((SELECT value FROM settings WHERE name = '` + schemaFloor + `'), ''),
	COALESCE((SELECT value FROM settings WHERE name = '` + schemaRelease + `'), '')
	FROM goose_db_version WHERE is_applied`

// CheckSchema finds out whether this program can still work with the database: a migration
// or a [Copy] may have changed the database since [Open]. Errors: those of Open.
func (s *Store) CheckSchema(ctx context.Context) error {
	return s.Read(ctx, func(tx *Tx) error {
		if err := tx.Usable(); err != nil {
			return err
		}
		var found schema
		if err := tx.queryRow(into(&found.version, &found.floor, &found.release), schemaQuery); err != nil {
			return err
		}
		return found.judge(s.schema)
	})
}

// checkPostgresSchema refuses a schema that does not fit this program, and migrates
// nothing. Errors: ErrOldSchema; ErrSchema; ErrUnavailable.
func checkPostgresSchema(ctx context.Context, p *pgDB) error {
	ctx, cancel := context.WithTimeout(ctx, schemaTime)
	defer cancel()
	conn, err := p.acquire(ctx)
	if err != nil {
		return err
	}
	defer p.release(conn)
	var found schema
	err = conn.QueryRow(ctx, schemaQuery).Scan(&found.version, &found.floor, &found.release)
	switch {
	case sqlState(err) == undefinedTable:
		return fmt.Errorf("%w: there is none yet", ErrOldSchema)
	case err != nil:
		return unavailable(err)
	}
	return found.judge(newestMigration(true))
}
