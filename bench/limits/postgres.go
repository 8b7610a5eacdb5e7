package main

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// postgresUpdates makes a table, unless the table exists, and returns a function that updates
// one row. pgx prepares the statement at the first call on each connection.
func postgresUpdates(uri, connections string) (func() error, error) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, uri+"&pool_max_conns="+connections)
	if err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, strings.Replace(create, "TABLE", "TABLE IF NOT EXISTS", 1)); err != nil {
		return nil, err
	}
	var filled bool
	if err := pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM item)").Scan(&filled); err != nil {
		return nil, err
	}
	if !filled {
		if err := fillPostgres(ctx, pool); err != nil {
			return nil, err
		}
	}
	return func() error {
		var owner string
		var n int64
		return pool.QueryRow(ctx, update, randomRow(), time.Now().UnixMicro()).Scan(&owner, &n)
	}, nil
}

func fillPostgres(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pool.CopyFrom(ctx, pgx.Identifier{"item"}, []string{"id", "owner", "filler", "n", "at"},
		pgx.CopyFromSlice(rows, func(n int) ([]any, error) {
			return []any{rowID(n), "owner-0123456789", filler, 0, 0}, nil
		}))
	if err == nil {
		_, err = pool.Exec(ctx, "VACUUM ANALYZE item")
	}
	return err
}
