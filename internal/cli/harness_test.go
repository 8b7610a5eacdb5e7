package cli_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/cli"
	"github.com/watchword-auth/watchword/internal/store"
)

// TestMain clears the variables that would set flags, and keeps the tests out of the user's
// own settings.
func TestMain(m *testing.M) {
	home, err := os.MkdirTemp("", "watchword")
	if err != nil {
		panic(err)
	}
	os.Setenv("HOME", home)
	os.Setenv("XDG_CONFIG_HOME", home)
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "WATCHWORD_") || strings.HasPrefix(name, "OTEL_") {
			os.Unsetenv(name)
		}
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(status int) {
		os.RemoveAll(home)
		os.Exit(status)
	}))
}

// result holds the exit status and the output of a command.
type result struct {
	status   int
	out, err string
}

// most bounds the output of a command in a test. The largest, of a thousand records, has
// some hundred KiB.
const most = 8 << 20

// output keeps what a command prints, at most `most` bytes. A command that reads the same
// page of a list again and again prints without end, and would fill the machine's memory.
type output struct{ bytes.Buffer }

func (o *output) Write(p []byte) (int, error) {
	if o.Len()+len(p) > most {
		return 0, fmt.Errorf("the command printed more than %d bytes", most)
	}
	return o.Buffer.Write(p)
}

// WriteString hides the method of bytes.Buffer, which has no bound.
func (o *output) WriteString(s string) (int, error) { return o.Write([]byte(s)) }

// run runs a command with a text as standard input.
func run(t *testing.T, stdin string, args ...string) (r result) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stdin")
	if err := os.WriteFile(path, []byte(stdin), 0o600); err != nil {
		t.Fatal(err)
	}
	return runIn(t, path, args...)
}

// runIn runs a command with a file as standard input.
func runIn(t *testing.T, stdin string, args ...string) (r result) {
	t.Helper()
	in, err := os.Open(stdin)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out, errs output
	r.status = cli.Main(args, cli.Terminal{In: in, Out: &out, Err: &errs})
	r.out, r.err = out.String(), errs.String()
	return r
}

// done runs a command that must succeed, and returns its output.
func done(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	r := run(t, stdin, args...)
	if r.status != 0 {
		t.Fatalf("watchword %v: status %d: %s", args, r.status, r.err)
	}
	return r.out
}

// fails runs a command that must fail with a status, and say so on standard error alone.
func fails(t *testing.T, status int, says, stdin string, args ...string) {
	t.Helper()
	r := run(t, stdin, args...)
	if r.status != status || r.out != "" || !strings.HasPrefix(r.err, "watchword: ") || !strings.Contains(r.err, says) {
		t.Errorf("watchword %q: status %d with %q and %q, want %d and %q", args, r.status, r.out, r.err, status, says)
	}
}

// database returns the flag for a new database in a new folder.
func database(t *testing.T) string {
	t.Helper()
	uri := "sqlite:" + filepath.Join(t.TempDir(), "watchword.db")
	if err := store.Migrate(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	return "--datastore-uri=" + uri
}

// write changes the database of a flag.
func write(t *testing.T, flag string, fn func(tx *store.Tx) error) {
	t.Helper()
	s, err := store.Open(t.Context(), strings.TrimPrefix(flag, "--datastore-uri="))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// table splits a printed table into its lines and cells. Columns are two spaces apart or
// more.
func table(t *testing.T, text string) (rows [][]string) {
	t.Helper()
	for line := range strings.Lines(text) {
		var row []string
		for _, cell := range strings.Split(strings.TrimSuffix(line, "\n"), "  ") {
			if cell = strings.TrimSpace(cell); cell != "" {
				row = append(row, cell)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// recent reports whether a cell is a time of the last minute.
func recent(cell string) bool {
	at, err := time.Parse(time.RFC3339, cell)
	return err == nil && time.Since(at) < time.Minute
}
