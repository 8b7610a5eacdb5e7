// Package extauthz answers Envoy's question whether to let a request through
// (envoy.service.auth.v3.Authorization/Check), by the access token of the request.
//
// A verifier of package authn holds the trust bundle in memory, so a question needs no call to the
// Watchword server. The rule of a route comes from the configuration of Envoy alone, and a request
// that cannot be decided is denied. The service behind Envoy learns the caller by headers that no
// client can set.
package extauthz

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/watchword-auth/watchword/internal/settings"
	"github.com/watchword-auth/watchword/internal/version"
)

const (
	name = "watchword-ext-authz"
	// exitError is the exit status after a failure.
	exitError = 1
)

// commands holds the commands of the program. Every flag has an environment variable
// WATCHWORD_EXT_AUTHZ_….
type commands struct {
	Serve serveCmd `cmd:"" help:"Answer Envoy's questions."`

	settings.EveryCommand
}

type serveCmd struct{ Config }

// run serves until ctx ends.
func (c *serveCmd) run(ctx context.Context, log io.Writer) error {
	if err := c.check(); err != nil {
		return usageError{err}
	}
	return serve(ctx, c.Config, c.Logger(log, c.Level()))
}

// usageError means wrong usage: exit status [settings.ExitUsage].
type usageError struct{ error }

// Main runs a command until the command ends or SIGINT or SIGTERM comes, and returns the exit
// status: 0, exitError on a failure, [settings.ExitUsage] on wrong usage.
func Main(args []string, out, err io.Writer) int {
	set, fault := settings.New(settings.Program{
		Name: name, Description: "Answers Envoy's ext_authz by Watchword's access tokens.", Version: version.String(),
		Commands: new(commands), Out: out, Err: err, KeysOf: "serve", TakeAll: []string{"serve"},
	})
	if fault != nil {
		fmt.Fprintf(err, "%s: %v\n", name, fault)
		return exitError
	}
	run := func(ctx context.Context) error { return set.Command().(*serveCmd).run(ctx, err) }
	return set.Main(context.Background(), args, run, func(fault error) (string, int) {
		if errors.As(fault, new(usageError)) {
			return fault.Error(), settings.ExitUsage
		}
		return fault.Error(), exitError
	})
}
