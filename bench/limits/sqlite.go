package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

const (
	create = `CREATE TABLE item (id TEXT PRIMARY KEY, owner TEXT NOT NULL, filler TEXT NOT NULL, n BIGINT NOT NULL, at BIGINT NOT NULL)`
	update = `UPDATE item SET n = n + 1, at = $2 WHERE id = $1 RETURNING owner, n`
)

// sqliteUpdates makes a table, and returns a function that updates one row.
func sqliteUpdates(file string) (func() error, error) {
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	if err := fillSQLite(ctx, conn); err != nil {
		return nil, err
	}
	stmt, err := conn.PrepareContext(ctx, update)
	if err != nil {
		return nil, err
	}
	queue := make(chan chan error, 1024)
	go func() {
		for first := range queue {
			commit(conn, stmt, gather(first, queue))
		}
	}()
	return func() error {
		done := make(chan error, 1)
		queue <- done
		return <-done
	}, nil
}

func fillSQLite(ctx context.Context, conn *sql.Conn) error {
	for _, statement := range []string{create, "PRAGMA cache_size = -400000", "BEGIN"} {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	insert, err := conn.PrepareContext(ctx, "INSERT INTO item VALUES ($1, 'owner-0123456789', $2, 0, 0)")
	if err != nil {
		return err
	}
	defer insert.Close()
	for n := range rows {
		if _, err := insert.Exec(rowID(n), filler); err != nil {
			return err
		}
	}
	for _, statement := range []string{"COMMIT", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA cache_size = -2000"} { // -2000 is SQLite's default
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// gather returns first and all callers that wait now.
func gather(first chan error, queue chan chan error) []chan error {
	callers := []chan error{first}
	for {
		select {
		case next := <-queue:
			callers = append(callers, next)
		default:
			return callers
		}
	}
}

// commit updates a row for each caller, all in one commit, and answers the callers.
func commit(conn *sql.Conn, stmt *sql.Stmt, callers []chan error) {
	ctx := context.Background()
	_, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE")
	for range callers {
		var owner string
		var n int64
		if err == nil {
			err = stmt.QueryRow(randomRow(), time.Now().UnixMicro()).Scan(&owner, &n)
		}
	}
	if err == nil {
		_, err = conn.ExecContext(ctx, "COMMIT")
	}
	if err != nil {
		log.Fatal(fmt.Errorf("updating a row: %w", err))
	}
	for _, done := range callers {
		done <- nil
	}
}
