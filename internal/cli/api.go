package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"

	"google.golang.org/grpc"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/settings"
)

// api holds the flags of the commands that are clients of the API for administration. With
// --addr, a running server serves the API, and the command uses the tokens of `watchword
// login --audience watchword`. Without --addr, the API is served in this process on the
// database, so an operator can help when no server runs and when no admin can log in.
type api struct {
	place
	TokenStdin bool `help:"Read the access token for the running server from standard input, alone or in the JSON of login."`

	username string // the user of the kept login, on a running server; empty with --token-stdin
}

// place holds the flags that say where a command works: on a running server or on a database.
type place struct {
	Addr string `help:"Address of the gRPC API of a running server. Default: no server, but the database."`
	connection
	datastore

	onServer bool // the command works on a running server; AfterApply decides
}

// ofServer names the flags that only a command on a running server can take; ofDatabase names
// the flags that only a command on a database can take.
var (
	ofServer   = []string{"ca-file", "server-name", "plaintext", "plaintext-to-other-hosts", "token-stdin"}
	ofDatabase = []string{"datastore-uri", "master-key-file", "min-password-length", "password-list", "refresh-ttl", "session-ttl"}
)

// AfterApply decides whether the command works on the running server or on the database: a flag
// on the command line has precedence over an environment variable. If the settings name both a
// server and a database, the command ends with an error and changes nothing. Package
// settings calls AfterApply after Validate; an error of AfterApply is wrong usage.
func (a *place) AfterApply(set *settings.Settings) error {
	a.onServer = a.Addr != "" && !set.Given("datastore-uri") || set.Given("addr")
	if a.onServer && !set.Given("addr") && os.Getenv("WATCHWORD_DATASTORE_URI") != "" {
		return errors.New("the variables WATCHWORD_ADDR and WATCHWORD_DATASTORE_URI are both set: " +
			"give --addr for the running server, or --datastore-uri for the database")
	}
	wrong, why := ofServer, "is for a running server: name the server by --addr"
	if a.onServer {
		wrong, why = ofDatabase, "is for a database, and --addr names a running server: leave one of them out"
	}
	for _, name := range wrong {
		if set.Given(name) {
			return fmt.Errorf("--%s %s", name, why)
		}
	}
	return nil
}

// with connects to the API, on a running server or on a database, and calls do with the
// connection.
func (a *api) with(ctx context.Context, t Terminal, do func(context.Context, grpc.ClientConnInterface) error) error {
	return a.withLocal(ctx, t, server.LocalConfig{}, do)
}

// withLocal does what [api.with] does, with settings for the case that the API works on a
// database.
func (a *api) withLocal(ctx context.Context, t Terminal, local server.LocalConfig, do func(context.Context, grpc.ClientConnInterface) error) error {
	if a.onServer {
		return a.withServer(ctx, t, do)
	}
	return a.withDatabase(ctx, t, local, do)
}

// withDatabase does the part of [api.withLocal] for a database: serves the API in this process.
func (d datastore) withDatabase(ctx context.Context, t Terminal, local server.LocalConfig, do func(context.Context, grpc.ClientConnInterface) error) error {
	local.DatastoreURI, local.Operator = d.DatastoreURI, operator()
	local.Warn = func(text string) { fmt.Fprintln(t.Err, text) }
	defer t.progress()()
	l, err := server.OpenLocal(ctx, local)
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, l.Conn()), l.Close())
}

// withServer does the part of [api.with] for a running server.
func (a *api) withServer(ctx context.Context, t Terminal, do func(context.Context, grpc.ClientConnInterface) error) error {
	r := remote{a.Addr, a.connection}
	var tokens tokens
	if a.TokenStdin {
		token, err := t.readToken(ctx, (*watchwordv1.TokenPair).GetAccessToken)
		if err != nil {
			return err
		}
		tokens = fixedToken(token)
	} else {
		kept, err := r.kept(true)
		if err != nil {
			return err
		}
		tokens, a.username = kept, kept.Username
	}
	defer t.progress()()
	return r.with(ctx, do, bearing(tokens)...)
}

// operator returns the name of the user of the operating system that runs this process, for the
// security record.
func operator() string {
	u, err := user.Current()
	if err != nil {
		return fmt.Sprintf("uid %d", os.Getuid())
	}
	return u.Username
}

// about adds to the error of a call a name from the arguments of the command, such as a
// username.
type about struct {
	error
	name string
}

func (e about) Error() string { return e.error.Error() + ": " + e.name }
func (e about) Unwrap() error { return e.error }

// findUser returns the user with a name. Errors: USER_NOT_FOUND, with the name in the text, if
// no user has the name.
func findUser(ctx context.Context, conn grpc.ClientConnInterface, name string) (*watchwordv1.User, error) {
	resp, err := watchwordv1.NewUserServiceClient(conn).GetUser(ctx, &watchwordv1.GetUserRequest{
		Key: &watchwordv1.GetUserRequest_Username{Username: name},
	})
	if refusal.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_USER_NOT_FOUND {
		err = about{err, strings.ToValidUTF8(name, "")}
	}
	return resp.GetUser(), err
}

// pageSize is the number of rows that a command reads in one call.
const pageSize = 500

// pages calls read for each page of a list (paged as AIP-158 describes). read gets the token of
// a page and returns the token of the next page.
func pages(read func(token string) (next string, err error)) error {
	for token := ""; ; {
		next, err := read(token)
		if err != nil || next == "" {
			return err
		}
		if next == token { // the proxy or the server has a fault: the list would never end
			return errors.New("the server answers with the same page again")
		}
		token = next
	}
}
