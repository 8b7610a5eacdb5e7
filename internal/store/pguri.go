package store

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// badURI is the error for a URI with a wrong part. part names the part in fixed words: no
// piece of a URI is shown, since any piece may belong to the password of a URI with a
// mistake.
func badURI(part string) error {
	return fmt.Errorf("the postgres:// URI of the database cannot be used: %s; "+
		"percent-encode the password, or use PGPASSWORD", part)
}

// parseURI parses a URI, and reads the environment variables and the files that PostgreSQL
// clients read. Errors: those of [badURI]. The driver takes everything up to the first "@" for
// user and password, so that the rest of a password with "@" would be the host, and later
// errors of the driver show the host. So parseURI refuses a URI in which "@" or "/" may belong
// to the password.
func parseURI(uri string) (*pgxpool.Config, error) {
	if err := checkURI(uri); err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(uri)
	if err == nil {
		return config, nil
	}
	base, query, _ := strings.Cut(uri, "?")
	if _, err := pgxpool.ParseConfig(base); err == nil {
		return nil, badURI(wrongParameter(base, strings.Split(query, "&")))
	}
	if _, err := pgxpool.ParseConfig("postgres://u@localhost/d"); err != nil {
		return nil, badURI("one of the environment variables that PostgreSQL clients read (PGSSLMODE, PGSERVICE, …), or a file that they name, is wrong")
	}
	return nil, badURI("the user, the host, the port or the database's name is wrong")
}

// checkURI checks the user, the hosts, the port and the database's name of a URI. The
// parameters after "?" are not checked.
func checkURI(uri string) error {
	_, rest, found := strings.Cut(uri, "://")
	before, _, hasAt := strings.Cut(rest, "@")
	switch {
	case !found:
		return badURI("such a URI begins with postgres:// or postgresql://")
	case strings.Count(rest, "@") > 1:
		return badURI(`the URI has more than one "@"`)
	case hasAt && strings.Contains(before, "/"):
		return badURI(`the URI has a "/" before the "@"`)
	}
	user := ""
	if hasAt {
		user, rest, _ = strings.Cut(rest, "@")
	}
	rest, _, _ = strings.Cut(rest, "?")
	hosts, database, _ := strings.Cut(rest, "/")
	for _, part := range []struct{ name, text string }{
		{"the user or the password", user}, {"the host or the port", hosts}, {"the database's name", database},
	} {
		if strings.Contains(part.text, " ") {
			return badURI(part.name + " has a space")
		}
		if !percentEncoded(part.text) {
			return badURI(part.name + ` has a "%" without two hexadecimal digits`)
		}
	}
	for host := range strings.SplitSeq(hosts, ",") {
		host = host[strings.LastIndexByte(host, ']')+1:] // what follows an IPv6 address in brackets
		if _, port, given := strings.Cut(host, ":"); given && port != "" {
			if _, err := strconv.ParseUint(port, 10, 16); err != nil {
				return badURI("the port is not a number")
			}
		}
	}
	return nil
}

// percentEncoded reports whether every "%" begins the code of a byte other than zero.
func percentEncoded(text string) bool {
	for _, after := range strings.Split(text, "%")[1:] {
		if len(after) < 2 {
			return false
		}
		if b, err := strconv.ParseUint(after[:2], 16, 8); err != nil || b == 0 {
			return false
		}
	}
	return true
}

// parameters are the names of parameters that errors may show. Any other name may be a piece
// of a password.
var parameters = []string{"channel_binding", "connect_timeout", "dbname", "default_query_exec_mode", "description_cache_capacity", "host", "max_protocol_version",
	"min_protocol_version", "passfile", "pool_health_check_period", "pool_max_conn_idle_time", "pool_max_conn_lifetime",
	"pool_max_conn_lifetime_jitter", "pool_max_conns", "pool_min_conns", "pool_min_idle_conns", "pool_ping_timeout", "port",
	"require_auth", "service", "servicefile", "sslcert", "sslcertmode", "sslkey", "sslmode", "sslnegotiation", "sslrootcert",
	"statement_cache_capacity", "target_session_attrs", "user"}

// wrongParameter returns an error text that names the parameter without which the URI would be
// right. If several parameters are wrong, the text names every known parameter of the URI.
func wrongParameter(base string, pairs []string) string {
	var known []string
	for i, pair := range pairs {
		name, _, hasValue := strings.Cut(pair, "=")
		if !hasValue {
			return `a parameter after the "?" has no "="`
		}
		if !slices.Contains(parameters, name) {
			name = ""
		}
		others := slices.Delete(slices.Clone(pairs), i, i+1)
		if _, err := pgxpool.ParseConfig(base + "?" + strings.Join(others, "&")); err == nil {
			if name == "" {
				return `a parameter after the "?" is wrong`
			}
			return "the parameter " + name + " is wrong, or a file that the parameter names"
		}
		if name != "" {
			known = append(known, name)
		}
	}
	return `several parameters after the "?" are wrong, or files that they name: look at ` + strings.Join(known, ", ")
}
