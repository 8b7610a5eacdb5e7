package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// copySource is the embedded database of a [Copy]. The connection holds the write lock
// from lock to commit.
type copySource struct {
	db     *sql.DB
	conn   *sqliteConn // nil if the database was moved before
	tables []string
	// movedTo and copyID tell of an earlier copy that fenced this database.
	movedTo, copyID string
}

func openCopySource(ctx context.Context, path string) (*copySource, error) {
	db, err := sql.Open("sqlite", sqliteURI(path))
	if err != nil {
		return nil, err
	}
	s := &copySource{db: db}
	if err := s.connect(ctx, path); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *copySource) connect(ctx context.Context, path string) (err error) {
	if err := wantOurs(ctx, s.db); err != nil {
		return err
	}
	if s.movedTo, s.copyID = movedAway(ctx, s.db); s.movedTo != "" {
		return nil
	}
	if err := migrateSQLite(ctx, s.db); err != nil {
		return err
	}
	if s.conn, err = connectSQLiteWriter(ctx, s.db, path); err != nil {
		return err
	}
	s.tables, err = s.list(`SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'goose_db_version' ORDER BY name`)
	return err
}

func (s *copySource) close() {
	if s.conn != nil {
		s.conn.rollback()
		s.conn.close()
	}
	s.db.Close()
}

// lock keeps out writers until commit or close. Errors: a *MovedError if another copy
// fenced the source during the wait.
func (s *copySource) lock(ctx context.Context) error {
	if err := s.conn.begin(); err != nil {
		return fmt.Errorf("locking the database to copy: %w", err)
	}
	if to, _ := movedAway(ctx, s.db); to != "" {
		return &MovedError{To: to}
	}
	return nil
}

func (s *copySource) columns(table string) ([]string, error) {
	return s.list(`SELECT name FROM pragma_table_info('` + table + `')`)
}

// rows calls give with the values of every row, in PostgreSQL's types. The setting
// schemaFloor is left out: each engine has its own.
func (s *copySource) rows(table string, columns []string, give func([]any) error) error {
	booleans, err := s.list(`SELECT name FROM pragma_table_info('` + table + `') WHERE type = 'BOOLEAN'`)
	if err != nil {
		return err
	}
	query := `SELECT ` + strings.Join(columns, ", ") + ` FROM ` + table
	if table == "settings" {
		query += ` WHERE name <> '` + schemaFloor + `'`
	}
	return sqliteTx{sqliteConn: s.conn}.query(func(r row) error {
		values, err := scanAny(r, len(columns))
		if err != nil {
			return err
		}
		for _, name := range booleans { // SQLite stores numbers
			i := slices.Index(columns, name)
			values[i] = values[i] != int64(0)
		}
		return give(values)
	}, "", query)
}

func scanAny(r row, n int) ([]any, error) {
	values, into := make([]any, n), make([]any, n)
	for i := range values {
		into[i] = &values[i]
	}
	err := r.Scan(into...)
	for i, v := range values {
		if b, ok := v.([]byte); ok && b == nil { // the driver's empty bytes, not NULL
			values[i] = []byte{}
		}
	}
	return values, err
}

// fence renames all tables but two: settings tells where the database went, and the
// migrations' own table tells that the schema exists.
func (s *copySource) fence(to, id string) error {
	for _, table := range s.tables {
		if table == "settings" {
			continue
		}
		if _, err := s.conn.c.ExecContext(context.Background(), `ALTER TABLE `+table+` RENAME TO moved_`+table); err != nil {
			return fmt.Errorf("fencing the source: %w", err)
		}
	}
	tx := newSQLiteTx(s.conn)
	return errors.Join(tx.SetSetting(movedTo, to), tx.SetSetting(copyID, id))
}

func (s *copySource) commit() error {
	if err := s.conn.control("COMMIT"); err != nil {
		return fmt.Errorf("fencing the source: %w", err)
	}
	return nil
}

// list returns the only column of a query.
func (s *copySource) list(query string) (values []string, err error) {
	err = sqliteTx{sqliteConn: s.conn}.query(func(r row) error {
		var value string
		err := r.Scan(&value)
		values = append(values, value)
		return err
	}, "", query)
	return values, err
}
