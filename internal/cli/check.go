package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/alecthomas/kong"

	"github.com/watchword-auth/watchword/internal/durable"
	"github.com/watchword-auth/watchword/internal/server"
	"github.com/watchword-auth/watchword/internal/store"
)

// serveFlags are the flags of `watchword serve`, which `watchword config check` takes too.
type serveFlags struct {
	server.Config
	LogFormat string `default:"text" enum:"text,json" help:"Form of the log lines: text or json."`
	LogLevel  string `default:"info" enum:"debug,info,warn,error" help:"Lowest level to log."`
}

type configCmd struct {
	Check configCheckCmd `cmd:"" help:"Check the flags, the variables, the file of --config and the files that they name, as serve would; print the settings."`
}

type configCheckCmd struct{ serveFlags }

// Run prints the settings as a file of --config, with the origin of each setting. Run opens no
// database and no address. The password of a database URI is left out.
func (c *configCheckCmd) Run(s *settings, t Terminal) error {
	if err := c.CheckFiles(); err != nil {
		var faults []error
		for line := range strings.SplitSeq(err.Error(), "\n") {
			faults = append(faults, usageError{errors.New(line + s.fromAll(flagName.FindAllStringSubmatch(line, -1)))})
		}
		return errors.Join(faults...)
	}
	w := tabwriter.NewWriter(t.Out, 0, 0, 2, ' ', 0)
	for _, line := range s.effective(s.flags) {
		fmt.Fprintf(w, "%s: %s\t# %s\n", line.name, line.value, line.origin)
	}
	return w.Flush()
}

// effective holds the value in use of a flag of serve.
type effective struct{ name, value, origin string }

// effective returns the values of the flags that the file of --config may set. A flag without
// a value is left out.
func (s *settings) effective(flags []*kong.Flag) (all []effective) {
	for _, flag := range flags {
		origin, set := s.origins[flag.Name]
		if !set {
			origin = "default"
		}
		if flag.Name == "config" || flag.Name == "help" || flag.Name == "version" || !set && flag.Target.IsZero() && !flag.HasDefault {
			continue
		}
		value := flag.Target.Interface()
		if flag.Name == "datastore-uri" {
			value, _ = store.CheckURI(flag.Target.String())
		}
		all = append(all, effective{flag.Name, yaml(value), origin})
	}
	return all
}

// yaml returns a value of a flag in YAML.
func yaml(value any) string {
	switch v := value.(type) {
	case string:
		return strconv.Quote(v)
	case []string:
		quoted := make([]string, len(v))
		for i, one := range v {
			quoted[i] = strconv.Quote(one)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	return fmt.Sprint(value)
}

// reloaded reads the settings of a running server again: the file of --config may have changed.
// reloaded sets the level of the log. The log says what was read, and names the changed settings
// that count after a restart alone.
func (s *settings) reloaded(ctx context.Context, t Terminal, level *slog.LevelVar, logger *slog.Logger) {
	again, err := newSettings(ctx, t, s.args)
	if err == nil {
		_, err = again.read(s.args)
	}
	if err != nil {
		logger.ErrorContext(ctx, "the settings cannot be read again; what was read before stays in use", "error", err)
		return
	}
	set := func() { _ = level.UnmarshalText([]byte(again.serve.LogLevel)) } // the flag allows no wrong level
	if logger.Enabled(ctx, slog.LevelInfo) {
		defer set() // so that the line below is in the log
	} else {
		set()
	}
	attrs := []any{"log_level", again.serve.LogLevel}
	if again.file != "" {
		attrs = append(attrs, "config", again.file)
	}
	var changed []string
	for i, flag := range again.flags {
		if flag.Name != "log-level" && !reflect.DeepEqual(flag.Target.Interface(), s.flags[i].Target.Interface()) {
			changed = append(changed, "--"+flag.Name)
		}
	}
	if len(changed) > 0 {
		attrs = append(attrs, "restart_needed_for", changed)
	}
	logger.InfoContext(ctx, "the settings are read again", attrs...)
}

// warnOfReaders warns about a file of --config with the password of the database, if other
// users may read the file.
func (s *settings) warnOfReaders(ctx context.Context, logger *slog.Logger) {
	exposure := durable.Exposure(s.file)
	if s.file == "" || exposure == "" || s.values["datastore-uri"] == "" {
		return
	}
	if public, err := store.CheckURI(s.values["datastore-uri"]); err == nil && public != s.values["datastore-uri"] {
		logger.WarnContext(ctx, "other users can use a file with secrets: "+exposure, "file", s.file)
	}
}
