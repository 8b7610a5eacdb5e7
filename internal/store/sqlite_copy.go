package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// The methods below serve the source of a [Copy]: the embedded database that is copied. From
// copyLock to copyCommit or copyClose, the copy holds one transaction on the writer's
// connection. Until the transaction ends, no other call of the Store is allowed to write.

// copyLock locks the source against the writers of all processes. Errors: a *MovedError
// if another copy fenced the source while copyLock waited.
func (s *sqliteDB) copyLock(ctx context.Context) error {
	if err := s.writer.conn.begin(); err != nil {
		return fmt.Errorf("locking the database to copy: %w", err)
	}
	if to, _ := movedAway(ctx, s.db); to != "" {
		return &MovedError{To: to}
	}
	return nil
}

// tables returns the names of all tables, except the tables of SQLite and of the
// migration tool.
func (s *sqliteDB) tables() ([]string, error) {
	return queryColumn[string](newSQLiteTx(s.writer.conn),
		`SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'goose_db_version' ORDER BY name`)
}

// rows reads all rows of a table. SELECT * is right here: the target takes the column
// names from the rows, so both schemas need only the same columns, in any order. The
// caller must close the rows.
func (s *sqliteDB) rows(table string) (*copyRows, error) {
	rows, err := s.writer.conn.c.QueryContext(context.Background(), `SELECT * `+fromTable(table))
	if err != nil {
		return nil, err
	}
	types, err := rows.ColumnTypes()
	return &copyRows{rows, types}, err
}

// copyRows gives the rows of a table to [copyTarget.receive], one row at a time.
type copyRows struct {
	*sql.Rows
	types []*sql.ColumnType
}

// Values returns the values of the current row, in PostgreSQL's types.
func (r *copyRows) Values() ([]any, error) {
	values, into := make([]any, len(r.types)), make([]any, len(r.types))
	for i := range values {
		into[i] = &values[i]
	}
	err := r.Scan(into...)
	for i, v := range values {
		if r.types[i].DatabaseTypeName() == "BOOLEAN" { // SQLite stores a boolean as 0 or 1
			values[i] = v != int64(0)
		}
		if b, ok := v.([]byte); ok && b == nil { // the driver returns nil for empty bytes, and PostgreSQL would store NULL
			values[i] = []byte{}
		}
	}
	return values, err
}

// fence renames all tables except two. The table settings holds the URI of the new
// database, and the migration tool's table shows that the schema exists.
func (s *sqliteDB) fence(tables []string, to, id string) error {
	tx := newSQLiteTx(s.writer.conn)
	for _, table := range tables {
		if table != "settings" {
			if err := tx.exec(`ALTER TABLE ` + table + ` RENAME TO moved_` + table); err != nil {
				return fmt.Errorf("renaming the tables of the copied database: %w", err)
			}
		}
	}
	return errors.Join(tx.SetSetting(movedTo, to), tx.SetSetting(copyID, id))
}

// copyClose rolls back the copy's transaction, if the transaction is still open, and closes the
// database.
func (s *sqliteDB) copyClose() {
	s.writer.conn.rollback()
	_ = s.close()
}

func (s *sqliteDB) copyCommit(context.Context) error {
	if err := s.writer.conn.control("COMMIT"); err != nil {
		return fmt.Errorf("committing in the copied database: %w", err)
	}
	return nil
}
