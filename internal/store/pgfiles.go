package store

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// credentials gives new connections of a pool the credentials that the files hold now: since
// the start of the process, an operator may have replaced the password file, the service file
// or the certificate. Open connections continue.
//
// Every setting other than the credentials stays as at the start, although a service file may
// also name a host and a database. Otherwise one pool could hold connections to two databases,
// and committed writes would be split between the two.
type credentials struct {
	uri    string
	logger *slog.Logger
	target string // the servers and the database at the start, as [targetOf] returns them

	mu     sync.Mutex
	latest *pgx.ConnConfig // the latest configuration with the servers and the database of target
	other  string          // the target of the files if different from target; otherwise empty
}

// targetOf returns the servers and the database of a configuration.
func targetOf(c *pgx.ConnConfig) string {
	servers := []string{fmt.Sprintf("%s:%d", c.Host, c.Port)}
	for _, f := range c.Fallbacks { // one server may have two entries, with TLS and without
		if server := fmt.Sprintf("%s:%d", f.Host, f.Port); !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	return strings.Join(servers, ",") + "/" + c.Database
}

// readAgain changes the configuration of a new connection to the credentials in the files. If
// the files name another database, readAgain uses the latest credentials for the database of
// the start, and logs an ERROR once. Errors: those of [parseURI].
func (r *credentials) readAgain(ctx context.Context, c *pgx.ConnConfig) error {
	config, err := parseURI(r.uri)
	if err != nil {
		return err
	}
	read := config.ConnConfig
	r.mu.Lock()
	defer r.mu.Unlock()
	switch target := targetOf(read); target {
	case r.target:
		r.latest, r.other = read, ""
	case r.other: // readAgain has logged the other target before
	default:
		r.other = target
		r.logger.ErrorContext(ctx, "the service file names another database than at the start: this process continues with "+
			"the database of the start. To use the other database, stop every server, and start the servers again",
			"start", r.target, "now", target)
	}
	from := r.latest.Copy()
	c.User, c.Password = from.User, from.Password
	c.TLSConfig, c.Fallbacks = from.TLSConfig, from.Fallbacks
	c.SSLNegotiation, c.SSLCertMode = from.SSLNegotiation, from.SSLCertMode
	c.ChannelBinding, c.RequireAuth = from.ChannelBinding, from.RequireAuth
	return nil
}
