package store

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The pool: how many connections a replica has, how a connection is made, and when an
// idle connection is checked before use.

const (
	// poolSize is the number of connections of one replica, unless the URI sets
	// pool_max_conns. Refreshes share transactions on two connections and logins wait
	// for their hashes, so more connections gain little: docs/benchmarks.md has the
	// figures. Ten replicas stay below PostgreSQL's default bound of 100.
	poolSize = 8
	// idlePing is how long an idle connection is used without a check.
	idlePing = time.Second
)

// errPostgresURI leaves out the driver's error, which may repeat the URI.
var errPostgresURI = errors.New("a postgres:// URI that cannot be used: see to its form, its parameters, " +
	"and the files and variables (sslrootcert, service, PG…) that count besides")

// pgConfig parses a URI. Errors: errPostgresURI.
func pgConfig(uri string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(uri)
	if err != nil {
		return nil, errPostgresURI
	}
	if !strings.Contains(uri, "pool_max_conns=") {
		config.MaxConns = poolSize
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
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, pgBounds) // for statements outside of a transaction of ours
		return err
	}
	c.DialFunc = dial
	return config, nil
}

// dial opens connections with TCP keepalive: after the other machine has vanished
// silently, a connection ends within about ten seconds.
var dial = (&net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
}).DialContext

// checkedConn is the key of a context in which every idle connection is checked before
// use: one connection has died, so all idle connections may have.
type checkedConn struct{}

func shouldPing(ctx context.Context, c pgxpool.ShouldPingParams) bool {
	return ctx.Value(checkedConn{}) != nil || c.IdleDuration > idlePing
}
