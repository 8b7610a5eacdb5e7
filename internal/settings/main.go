package settings

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// ExitUsage is the exit status after a wrong command line.
const ExitUsage = 2

// Main reads a command line and calls run. SIGINT and SIGTERM end run's context, and a second
// signal ends the process at once. Main writes what is wrong to Program.Err, and returns the exit
// status: 0, [ExitUsage] for a wrong command line, and what judge returns for an error of run.
// judge also returns the text of the error.
func (s *Settings) Main(ctx context.Context, args []string, run func(context.Context) error, judge func(error) (text string, status int)) (status int) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // restores what a signal does by default
	say := func(text string) { fmt.Fprintf(s.program.Err, "%s: %s\n", s.program.Name, text) }
	for _, line := range s.Misspelled(os.Environ()) {
		say(line)
	}
	if err := s.Read(args); err != nil {
		say(fmt.Sprintf("%v\nTry: %s --help", err, s.program.Name))
		return ExitUsage
	}
	if err := run(ctx); err != nil {
		text, status := judge(err)
		say(text)
		return status
	}
	return 0
}

// Log holds the flags of a program that serves, about the program's log.
type Log struct {
	LogFormat string `default:"text" enum:"text,json" help:"Form of the log lines: text or json."`
	LogLevel  string `default:"info" enum:"debug,info,warn,error" help:"Lowest level to log."`
}

// Level returns the lowest level to log.
func (l Log) Level() (level slog.Level) {
	_ = level.UnmarshalText([]byte(l.LogLevel)) // the flag allows no wrong level
	return level
}

// Logger returns a logger that writes lines of at least a level.
func (l Log) Logger(to io.Writer, least slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: least}
	if l.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(to, options))
	}
	return slog.New(slog.NewTextHandler(to, options))
}
