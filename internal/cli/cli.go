// Package cli is the command line: commands, their flags, and printed text. Package settings
// reads the flags, and the other packages of this program do the work.
//
// No password, token or key is an argument, since other users of the machine can read
// arguments. A secret is read from the terminal without echo, or from standard input.
// Results go to standard output, and everything else to standard error, so that scripts
// can use the output. No text that is printed can move the cursor of a terminal or change
// the order of letters, and no error repeats an argument that may be a secret.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"syscall"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/refusal"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/settings"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/version"
)

// A command that fails ends with one of these exit statuses. exitUnreached means that the change
// is made, and that the time of --wait-for was over before every verifier had reported the change.
// A script can repeat a command after exitError, and must not repeat the command after exitUsage.
// exitInterrupted is 128 plus the number of SIGINT, as in a shell.
const (
	exitError       = 1
	exitUsage       = settings.ExitUsage
	exitUnreached   = 3
	exitInterrupted = 130
)

// Terminal holds the input and the outputs of a command. Tests replace the input and both
// outputs.
type Terminal struct {
	In  *os.File // a file, since a password is typed without echo at a terminal, and only a file can be a terminal
	Out io.Writer
	Err io.Writer

	exit func(int) // replaces os.Exit in tests: see [settings.Program]
}

// root holds all commands. Every flag has an environment variable WATCHWORD_….
type root struct {
	Serve       serveCmd       `cmd:"" help:"Run the server."`
	Migrate     migrateCmd     `cmd:"" help:"Bring the database's schema up to date."`
	Backup      backupCmd      `cmd:"" help:"Write a copy of a SQLite database into a new file, also while a server runs."`
	Datastore   datastoreCmd   `cmd:"" help:"Move the database, or prepare a restored one."`
	User        userCmd        `cmd:"" help:"Administer users, on a running server or in the database."`
	Service     serviceCmd     `cmd:"" help:"Administer service accounts, on a running server or in the database."`
	Issuer      issuerCmd      `cmd:"" help:"Administer trusted issuers, on a running server or in the database."`
	Session     sessionCmd     `cmd:"" help:"Administer sessions, on a running server or in the database."`
	Key         keyCmd         `cmd:"" help:"Administer signing keys, on a running server or in the database."`
	Watchers    watchersCmd    `cmd:"" help:"List the verifiers that watch the servers, at every replica."`
	Audit       auditCmd       `cmd:"" help:"Show the security record, the newest first, of a running server or in the database."`
	Login       loginCmd       `cmd:"" help:"Log in at a running server; keeps the tokens for the other commands."`
	Verify      verifyCmd      `cmd:"" help:"Ask a running server about an access token: on standard input, or of the kept login."`
	Logout      logoutCmd      `cmd:"" help:"End the session of a refresh token on standard input, or the kept sessions."`
	Explain     explainCmd     `cmd:"" help:"Say what the token on standard input is, and why it would or would not pass."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask a running server for its health; exit status 0 or 1."`
	Completion  completionCmd  `cmd:"" help:"Print a script that completes commands and flags in a shell."`
	VersionCmd  versionCmd     `cmd:"" name:"version" help:"Print the version."`
	Complete    completeCmd    `cmd:"" hidden:""`
	Settings    configCmd      `cmd:"" name:"config" help:"Check the settings of a server."`

	settings.EveryCommand
}

// serveRoot holds the command serve alone: to read the tags of every flag in [root] takes a third
// of the time that a server needs to start.
type serveRoot struct {
	Serve serveCmd `cmd:"" help:"Run the server."`

	settings.EveryCommand
}

// newSettings returns a [settings.Settings] for a command line with these arguments, and the
// struct for the flags of `watchword serve`. The caller of newSettings must read the arguments.
func newSettings(args []string, t Terminal) (*settings.Settings, *serveFlags, error) {
	all, alone := &root{}, &serveRoot{}
	commands, serve := any(all), &all.Serve.serveFlags
	if len(args) > 0 && args[0] == "serve" {
		commands, serve = alone, &alone.Serve.serveFlags
	}
	set, err := settings.New(settings.Program{
		Name: "watchword", Description: "Authentication for internal microservices over gRPC.", Version: version.String(),
		Commands: commands, Out: t.Out, Err: t.Err, Exit: t.exit,
		KeysOf: "serve", TakeAll: []string{"serve", "config check"}, Shared: shared,
	})
	return set, serve, err
}

// shared lists the flags of other commands than `watchword serve` that the file of --config can
// set: the flags that mean the same for the other command as for `watchword serve`.
var shared = []string{"datastore-uri", "master-key-file", "min-password-length", "password-list"}

// Main runs a command and returns the exit status: 0, 1 on a failure, 2 on wrong usage, 3 if the
// time of --wait-for is over and some verifiers have not reported the change, 130 if the input
// ended at the prompt for a password or a signal came during a read of input. SIGINT and
// SIGTERM end a command before its time and in order: a server lets calls in flight finish, and
// a transaction commits or leaves nothing. A second signal ends the process at once. Main
// prints an error in one line, which names the flag or the command to use.
func Main(args []string, t Terminal) int {
	line := new(workLine)
	t.Out, t.Err = escaping{t.Out, line}, escaping{t.Err, line}
	ctx := caller.WithSource(context.Background(), caller.CommandLine) // the security record shows CommandLine as the source of the command's calls
	set, _, err := newSettings(args, t)
	if err != nil {
		fmt.Fprintln(t.Err, "watchword:", err)
		return exitError
	}
	run := func(ctx context.Context) error { return runCommand(ctx, set, t) }
	return set.Main(ctx, args, run, func(err error) (string, int) { return explainError(err), statusOf(err) })
}

// command is a command that needs its own flags and arguments alone.
type command interface {
	Run(context.Context, Terminal) error
}

// settingsCommand is a command that also needs to know where the values of its flags come from.
type settingsCommand interface {
	RunBy(context.Context, *settings.Settings, Terminal) error
}

// runCommand runs the command that set has read. A test checks that each command is a command or a
// settingsCommand.
func runCommand(ctx context.Context, set *settings.Settings, t Terminal) error {
	if c, ok := set.Command().(settingsCommand); ok {
		return c.RunBy(ctx, set, t)
	}
	return set.Command().(command).Run(ctx, t)
}

// statusOf returns the exit status for an error of a command.
func statusOf(err error) int {
	switch {
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.As(err, new(unreached)):
		return exitUnreached
	case errors.As(err, new(usageError)), refusal.Reason(err) == watchwordv1.ErrorReason_ERROR_REASON_INVALID_REQUEST:
		return exitUsage
	}
	return exitError
}

// usageError means wrong usage of a command that package settings cannot detect: exit status 2.
type usageError struct{ error }

// serveCmd runs the server. The flags are the fields of [server.Config].
type serveCmd struct{ serveFlags }

// RunBy serves until SIGINT or SIGTERM. At SIGHUP the server reads its files and the level of
// the log again; Windows sends no SIGHUP. The log goes to standard error; standard output is
// for the password of the first admin.
func (c *serveCmd) RunBy(ctx context.Context, set *settings.Settings, t Terminal) error {
	extra := collectRarely()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // before the server starts: without a handler, a SIGHUP would end the process
	defer signal.Stop(hangup)
	level := new(slog.LevelVar)
	level.Set(c.Level())
	logger := c.Logger(t.Err, level)
	c.warnOfReaders(ctx, set, logger)
	s, err := server.New(ctx, c.Config, logger, func(password string) error {
		discarded, err := t.showPassword(password)
		switch {
		case discarded:
			logger.WarnContext(ctx, "standard output is the null device: the password of the first user, admin, is shown nowhere; "+
				"set a password by `watchword user set-password admin`")
		case err == nil:
			logger.InfoContext(ctx, "the password of the first user, admin, is on standard output, and is shown only now")
		}
		return err
	})
	if err != nil {
		return err
	}
	if debug.SetMemoryLimit(-1) == math.MaxInt64 { // the variable GOMEMLIMIT is not set
		debug.SetMemoryLimit(s.MemoryGoal() + extra)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // the command does not wait for the end of this goroutine: a network drive with the file of --config can hang
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				reload(ctx, t, set, level, logger)
				s.Reload(ctx)
			}
		}
	}()
	if err := errors.Join(s.Run(ctx), s.Close()); err != nil {
		return err
	}
	logger.InfoContext(ctx, "stopped")
	return nil
}

// datastore holds the flag that names the database (--datastore-uri), for every command that
// opens a database. The default is the default of `watchword serve`, so a command that starts
// in the working directory of the server finds the server's database.
type datastore struct {
	DatastoreURI string `name:"datastore-uri" default:"sqlite:watchword.db" help:"Database: sqlite:FILE or postgres://… (give a password in the variable, PGPASSWORD or PGPASSFILE)."`
}

// with opens the database, which must exist, calls do, and closes the database. with also
// returns the error of Close, which can tell that the last write failed.
func (d datastore) with(ctx context.Context, do func(*store.Store) error) error {
	s, err := store.OpenExisting(ctx, d.DatastoreURI)
	if err != nil {
		return err
	}
	return errors.Join(do(s), s.Close())
}

type migrateCmd struct {
	datastore
	Finish bool `help:"Afterwards exclude earlier versions of Watchword, which do not know service accounts. Use this when every server is of this version: there is no way back to an earlier version."`
}

// Run brings the schema up to date, and makes a missing SQLite database. On SQLite every
// command that opens the database brings the schema up to date, except backup; on
// PostgreSQL only `watchword migrate` does, so that the operator decides when the schema
// changes.
func (c *migrateCmd) Run(ctx context.Context, t Terminal) error {
	defer t.progress()()
	err := store.Migrate(ctx, c.DatastoreURI, store.WhileWaiting(func() {
		fmt.Fprintln(t.Err, "another process migrates this database, or was killed: waiting until that process ends, or for 15 seconds after its end")
	}))
	if err != nil {
		return err
	}
	fmt.Fprintln(t.Err, "the schema is up to date")
	if c.Finish {
		if err := store.Finish(ctx, c.DatastoreURI, releaseOrNone()); err != nil {
			return err
		}
		fmt.Fprintln(t.Err, "earlier versions of Watchword cannot use the database any more")
	}
	return nil
}

// releaseOrNone returns the version of this program, such as v1.2.0; "" if the program was
// built from a commit between two released versions.
func releaseOrNone() string {
	v := version.String()
	if released, _ := regexp.MatchString(`^v\d+\.\d+\.\d+$`, v); released {
		return v
	}
	return ""
}
