package settings_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-auth/watchword/internal/settings"
)

// commands are those of a small program.
type commands struct {
	Serve serveCmd `cmd:""`
	List  listCmd  `cmd:""`

	settings.EveryCommand
}

type serveCmd struct {
	Life     time.Duration `default:"5m"`
	Most     int           `default:"10"`
	Least    int           `default:"1"`
	Level    string        `default:"info" enum:"info,debug"`
	Names    []string      `default:"a"`
	Database string        `default:"here"`
}

func (c *serveCmd) Validate() error {
	if c.Least > c.Most {
		return errors.New("--least: must not be more than --most")
	}
	return nil
}

type listCmd struct {
	Life     time.Duration `default:"5m"`
	Database string        `default:"here"`
	ID       string        `arg:""`
}

// read reads a command line with a file of --config; without a file if the text is empty.
func read(t *testing.T, file string, args ...string) (*commands, *settings.Settings, error) {
	t.Helper()
	c := &commands{}
	set, err := settings.New(settings.Program{Name: "tool", Commands: c, KeysOf: "serve", TakeAll: []string{"serve"}, Shared: []string{"database"}})
	if err != nil {
		t.Fatal(err)
	}
	if file != "" {
		t.Chdir(t.TempDir())
		if err := os.WriteFile("file", []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TOOL_CONFIG", "file")
	}
	return c, set, set.Read(args)
}

// The settings know where each value comes from (the command line, a variable or the file), and
// can print a file with all values in use.
func TestPlaces(t *testing.T) {
	t.Setenv("TOOL_MOST", "20")
	t.Setenv("TOOL_LEVEL", "") // counts as not set
	file := "level: debug\nmost: 30\nlife: 1d\nnames: [b, 'c,d']\n"
	c, set, err := read(t, file, "serve", "--life=2d", "--database", "-")
	if err != nil {
		t.Fatal(err)
	}
	if set.File() != "file" || !set.Given("life") || set.Given("most") || !set.InFile("level") || set.InFile("life") || set.InFile("most") {
		t.Errorf("life is given: %v, most is given: %v, and in the file are level: %v, life: %v, most: %v",
			set.Given("life"), set.Given("most"), set.InFile("level"), set.InFile("life"), set.InFile("most"))
	}
	if got, want := set.From("--level and --most, not --life or --least"), " (from file, line 1; --most from the environment variable TOOL_MOST)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var out bytes.Buffer
	hide := func(flag string, value any) any {
		if flag == "database" {
			return "hidden"
		}
		return value
	}
	if err := set.Write(&out, hide); err != nil {
		t.Fatal(err)
	}
	want := `life: 48h0m0s       # the command line
most: 20            # the environment variable TOOL_MOST
least: 1            # default
level: "debug"      # file, line 1
names: ["b", "c,d"]  # file, line 4
database: "hidden"  # the command line
`
	if strings.ReplaceAll(out.String(), " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	again, later, err := read(t, out.String(), "serve", "--most=20")
	if err != nil || again.Serve.Life != c.Serve.Life || strings.Join(set.Changed(later), " ") != "config database" {
		t.Errorf("the written file is read as %+v, %v; changed are %q", again.Serve, err, set.Changed(later))
	}
}

// A command takes the shared keys alone.
func TestSharedKeys(t *testing.T) {
	c, set, err := read(t, "life: 1d\ndatabase: there\n", "list", "--", "-x")
	if err != nil {
		t.Fatal(err)
	}
	if set.Command() != &c.List || c.List.ID != "-x" || c.List.Database != "there" || c.List.Life != 5*time.Minute {
		t.Errorf("%+v", c.List)
	}
}

// All faults are in one error, whatever is wrong with the arguments.
func TestEveryFault(t *testing.T) {
	t.Setenv("TOOL_MOST", "S3cret")
	file := "names: [S3cret]\nS3cret: 1\nlife: S3cret\n"
	const (
		inFile     = "file, line 2: unknown key: the keys are the names of the flags of `tool serve`, without --\n"
		inValues   = "--life: expected a duration such as 90s, 12h or 30d (from file, line 3)\n--most: expected a valid 64 bit int (from the environment variable TOOL_MOST)"
		unknown    = " is not shown, because it may be a secret; put -- before an argument that begins with -, such as an id\n"
		unexpected = " is not shown, because it may be a secret\n"
	)
	for line, want := range map[string]string{
		"serve": inFile + inValues,
		"serve --S3cret=1 --other S3cret --level": "unknown flag (argument 2 of 5)" + unknown + "unknown flag (argument 3 of 5)" + unknown + "--level: the value is missing\n" + inFile + inValues,
		"serve S3cret":                        "unexpected argument (argument 2 of 2)" + unexpected + inFile + inValues,
		"serve --S3cret S3cret more":          "unknown flag (argument 2 of 4)" + unknown + inFile + inValues,
		"serve --least=S3cret --level=S3cret": "--least: expected a valid 64 bit int\n--level must be one of \"info\",\"debug\"\n" + inFile + inValues,
		"serve --level --least=11 --life=S3 --most=9": "--level: the value is missing; if the value begins with -, such as an id, write --level=VALUE\n" +
			"--life: expected a duration such as 90s, 12h or 30d\n" + inFile + "--least: must not be more than --most",
	} {
		_, _, err := read(t, file, strings.Fields(line)...)
		if err == nil || err.Error() != want {
			t.Errorf("tool %s:\n%v\nwant\n%s", line, err, want)
		}
	}
}

// A file on the command line counts before the variable, and is named with its folder.
func TestFileOnTheCommandLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(path, []byte("most: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	relative, err := filepath.Rel(here, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TOOL_CONFIG", "no-such-file")
	c, set, err := read(t, "", "serve", "--config="+relative)
	if err != nil || c.Serve.Most != 7 || set.File() != path || set.From("--most") != " (from "+path+", line 1)" {
		t.Errorf("%+v from %q, %v", c.Serve, set.File(), err)
	}
}

// --help shows the variable of each flag, also of one that is set to the empty text. A command
// line with a fault shows no help.
func TestHelp(t *testing.T) {
	t.Setenv("TOOL_LIFE", "")
	var out bytes.Buffer
	exits := 0
	set, err := settings.New(settings.Program{Name: "tool", Commands: &commands{}, Out: &out, Exit: func(int) { exits++ }, KeysOf: "serve"})
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Read([]string{"serve", "--level=loud", "--help"}); err == nil || out.Len() > 0 || exits > 0 {
		t.Errorf("with a fault: %v, %d exits, and\n%s", err, exits, out.String())
	}
	if err := set.Read([]string{"serve", "--help"}); err != nil || exits != 1 || !strings.Contains(out.String(), "$TOOL_LIFE") {
		t.Errorf("%v, %d exits, and\n%s", err, exits, out.String())
	}
}
