package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// The source of a [Copy]. The copy uses the writer's connection, from copyLock to
// copyCommit or copyClose in one transaction; no other call of the Store may write.

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
	return queryColumn[string](newSQLiteTx(s.writer.conn),
		`SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'goose_db_version' ORDER BY name`)
}

// rows reads a table with all columns of the source's schema. The target gets the names of
// the columns from rows. The caller closes the rows.
func (s *sqliteDB) rows(table string) (*copyRows, error) {
	rows, err := s.writer.conn.c.QueryContext(context.Background(), `SELECT * `+fromTable(table))
	if err != nil {
		return nil, err
	}
	types, err := rows.ColumnTypes()
	return &copyRows{rows, types}, err
}

// copyRows are rows as [copyTarget.receive] takes them: pgx reads one row at a time.
type copyRows struct {
	*sql.Rows
	types []*sql.ColumnType
}

// Values returns the values of a row, in PostgreSQL's types.
func (r *copyRows) Values() ([]any, error) {
	values, into := make([]any, len(r.types)), make([]any, len(r.types))
	for i := range values {
		into[i] = &values[i]
	}
	err := r.Scan(into...)
	for i, v := range values {
		if r.types[i].DatabaseTypeName() == "BOOLEAN" { // SQLite stores a number
			values[i] = v != int64(0)
		}
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
			if err := tx.exec(`ALTER TABLE ` + table + ` RENAME TO moved_` + table); err != nil {
				return fmt.Errorf("fencing the source: %w", err)
			}
		}
	}
	return errors.Join(tx.SetSetting(movedTo, to), tx.SetSetting(copyID, id))
}

// copyClose rolls back an open transaction, and closes the database.
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
