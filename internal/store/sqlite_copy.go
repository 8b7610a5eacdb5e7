package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The source of a [Copy]. The copy uses the writer's connection, from copyLock to
// copyCommit or close in one transaction; no other call of the Store may write.

// copyLock locks out writers of all processes. Errors: a *MovedError if another copy
// fenced the source during the wait.
func (s *sqliteDB) copyLock(ctx context.Context) error {
	if err := s.writer.conn.begin(); err != nil {
		return fmt.Errorf("locking the database to copy: %w", err)
	}
	if to, _ := movedAway(ctx, s.db); to != "" {
		return &MovedError{To: to}
	}
	return nil
}

// tables returns the names of all tables but those of SQLite and of the migrations.
func (s *sqliteDB) tables() ([]string, error) {
	return s.list(`SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'goose_db_version' ORDER BY name`)
}

func (s *sqliteDB) columns(table string) ([]string, error) {
	return s.list(`SELECT name FROM pragma_table_info('` + table + `')`)
}

// list returns the only column of a query.
func (s *sqliteDB) list(query string) (values []string, err error) {
	err = sqliteTx{sqliteConn: s.writer.conn}.query(func(r row) error {
		var value string
		err := r.Scan(&value)
		values = append(values, value)
		return err
	}, "", query)
	return values, err
}

// rows calls give with the values of every row, in PostgreSQL's types. The setting
// schemaFloor is left out: each engine has its own.
func (s *sqliteDB) rows(table string, columns []string, give func([]any) error) error {
	booleans, err := s.list(`SELECT name FROM pragma_table_info('` + table + `') WHERE type = 'BOOLEAN'`)
	if err != nil {
		return err
	}
	query := `SELECT ` + strings.Join(columns, ", ") + ` FROM ` + table
	if table == "settings" {
		query += ` WHERE name <> '` + schemaFloor + `'`
	}
	return sqliteTx{sqliteConn: s.writer.conn}.query(func(r row) error {
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
func (s *sqliteDB) fence(tables []string, to, id string) error {
	tx := newSQLiteTx(s.writer.conn)
	for _, table := range tables {
		if table != "settings" {
			if _, err := tx.exec(`ALTER TABLE ` + table + ` RENAME TO moved_` + table); err != nil {
				return fmt.Errorf("fencing the source: %w", err)
			}
		}
	}
	return errors.Join(tx.SetSetting(movedTo, to), tx.SetSetting(copyID, id))
}

// copyClose rolls back whatever was not committed, and closes the database.
func (s *sqliteDB) copyClose() {
	s.writer.conn.rollback()
	_ = s.close()
}

func (s *sqliteDB) copyCommit(context.Context) error {
	if err := s.writer.conn.control("COMMIT"); err != nil {
		return fmt.Errorf("fencing the source: %w", err)
	}
	return nil
}
