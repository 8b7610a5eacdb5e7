package store

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// This file configures the pool of connections to PostgreSQL: how many connections a replica
// has, how a connection is made, and when an idle connection is checked before use.

const (
	// poolSize is the number of connections of one replica, unless the URI sets pool_max_conns.
	// Refreshes share transactions on two connections, and a login spends most of its time on
	// the password hash, so more connections gain little: docs/benchmarks.md has the figures.
	// Ten replicas stay below PostgreSQL's default bound of 100 connections.
	poolSize = 8
	// idlePing bounds how long a connection may have been idle and still be used
	// without a check.
	idlePing = time.Second
)

// pgConfig returns the configuration of a pool. Errors: those of [parseURI].
func pgConfig(uri string, logger *slog.Logger) (*pgxpool.Config, error) {
	config, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(uri, "pool_max_conns=") {
		config.MaxConns = poolSize
	}
	if !strings.Contains(uri, "pool_max_conn_lifetime=") {
		config.MaxConnLifetime = 0 // while a connection that ended by its age was replaced, another program could take the last free connection of PostgreSQL
	}
	config.ShouldPing = shouldPing
	c := config.ConnConfig
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTime
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "watchword"
	}
	c.OnNotice = noteWarning
	c.Tracer = pgTracer{}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, pgBounds) // bounds the statements that run outside of a transaction of [pgTx]
		return err
	}
	c.DialFunc = dial
	files := &credentials{uri: uri, logger: logger, target: targetOf(c), latest: c.Copy()}
	config.BeforeConnect = files.readAgain
	return config, nil
}

// dial opens connections with TCP keepalive. If the other machine disappears silently,
// the connection ends within about ten seconds.
var dial = (&net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
}).DialContext

// checkedConn is the key of a context in which every idle connection is checked before
// use. A retry sets the key: one connection has failed, so all idle connections may be
// dead.
type checkedConn struct{}

func shouldPing(ctx context.Context, c pgxpool.ShouldPingParams) bool {
	return ctx.Value(checkedConn{}) != nil || c.IdleDuration > idlePing
}
