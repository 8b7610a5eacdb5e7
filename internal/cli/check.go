package cli

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/watchword-auth/watchword/internal/durable"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/settings"
	"github.com/watchword-auth/watchword/internal/store"
)

// serveFlags holds the flags of `watchword serve`; `watchword config check` takes the same
// flags.
type serveFlags struct {
	server.Config
	settings.Log
}

type configCmd struct {
	Check configCheckCmd `cmd:"" help:"Check the flags, the variables, the file of --config and the files that they name, as serve would; print the settings."`
}

type configCheckCmd struct{ serveFlags }

// RunBy prints the settings in the form of a file for --config, with the origin of each setting.
// RunBy opens no database and listens on no address. The password of a database URI is left out.
func (c *configCheckCmd) RunBy(_ context.Context, set *settings.Settings, t Terminal) error {
	if err := c.CheckFiles(); err != nil {
		var faults []error
		for line := range strings.SplitSeq(err.Error(), "\n") {
			faults = append(faults, usageError{errors.New(line + set.From(line))})
		}
		return errors.Join(faults...)
	}
	return set.Write(t.Out, func(flag string, value any) any {
		if flag == "datastore-uri" {
			value, _ = store.CheckURI(c.DatastoreURI)
		}
		return value
	})
}

// reload reads the settings of a running server again: the file of --config may have changed.
// reload sets the level of the log from the new settings. reload logs what it has read, and
// names the changed settings that take effect only after a restart.
func reload(ctx context.Context, t Terminal, set *settings.Settings, level *slog.LevelVar, logger *slog.Logger) {
	again, serve, err := newSettings(set.Args(), t)
	if err == nil {
		err = again.Read(set.Args())
	}
	if err != nil {
		logger.ErrorContext(ctx, "the settings cannot be read again; what was read before stays in use", "error", err)
		return
	}
	setLevel := func() { level.Set(serve.Level()) }
	if logger.Enabled(ctx, slog.LevelInfo) {
		defer setLevel() // at the end of reload, so that a new level such as warn does not drop the log line below
	} else {
		setLevel()
	}
	attrs := []any{"log_level", serve.LogLevel}
	if again.File() != "" {
		attrs = append(attrs, "config", again.File())
	}
	var changed []string
	for _, flag := range set.Changed(again) {
		if flag != "log-level" {
			changed = append(changed, "--"+flag)
		}
	}
	if len(changed) > 0 {
		attrs = append(attrs, "restart_needed_for", changed)
	}
	logger.InfoContext(ctx, "the settings are read again", attrs...)
}

// warnOfReaders logs a warning if other users are allowed to read the file of --config, and the
// file holds the password of the database.
func (c *serveCmd) warnOfReaders(ctx context.Context, set *settings.Settings, logger *slog.Logger) {
	if !set.InFile("datastore-uri") {
		return
	}
	exposure := durable.Exposure(set.File())
	if public, err := store.CheckURI(c.DatastoreURI); exposure != "" && err == nil && public != c.DatastoreURI {
		logger.WarnContext(ctx, "other users can use a file with secrets: "+exposure, "file", set.File())
	}
}
