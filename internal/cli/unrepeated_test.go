package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/settings"
)

// commandLines returns the words of every command, with a right value for each argument,
// and the flags of the command.
func commandLines(t *testing.T) map[string][]*kong.Flag {
	t.Helper()
	lines := map[string][]*kong.Flag{}
	var walk func(node *kong.Node, words []string)
	walk = func(node *kong.Node, words []string) {
		line := words
		for range node.Positional {
			line = append(slices.Clone(line), "word")
		}
		lines[strings.Join(line, " ")] = slices.Concat(node.AllFlags(true)...)
		for _, child := range node.Children {
			walk(child, append(slices.Clone(words), child.Name))
		}
	}
	walk(model(t).Node, nil)
	if len(lines) < 20 {
		t.Fatalf("%d commands", len(lines))
	}
	return lines
}

// model returns the commands and flags, as kong reads the tags.
func model(t *testing.T) *kong.Application {
	t.Helper()
	k, err := kong.New(&root{}, kong.DefaultEnvars("WATCHWORD"), kong.Vars{"version": ""})
	if err != nil {
		t.Fatal(err)
	}
	return k.Model
}

// Every command has a method that run can call.
func TestEveryCommandRuns(t *testing.T) {
	for _, leaf := range model(t).Leaves(false) {
		pointer := leaf.Target.Addr().Interface()
		_, plain := pointer.(command)
		_, withSettings := pointer.(settingsCommand)
		if plain == withSettings {
			t.Errorf("%s: Run: %v, RunBy: %v", leaf.Path(), plain, withSettings)
		}
	}
}

// silent returns settings without output and exits.
func silent(t *testing.T) *settings.Settings {
	t.Helper()
	s, _, err := newSettings(nil, Terminal{Out: io.Discard, Err: io.Discard, exit: func(int) {}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// parseError parses a command line, and returns the text that Main would show; empty if
// the command line is right.
func parseError(s *settings.Settings, args []string) string {
	if err := s.Read(args); err != nil {
		return err.Error()
	}
	return ""
}

// A password in any wrong place, or as the value of any flag, is not in the error: the
// text stays the same for another password.
func TestWrongUsageRepeatsNothing(t *testing.T) {
	secrets := []string{"S3same-Horse", "--S3same-Horse", "-S3same", "S3same,Horse\x1b[31m", "--horse=s3same"}
	set, seen := silent(t), map[string]int{} // a new parser for each of 3,000 lines takes a minute
	check := func(args ...string) {
		t.Helper()
		text := parseError(set, args)
		if lower := strings.ToLower(text); strings.Contains(lower, "s3") || strings.Contains(lower, "same-") || strings.Contains(lower, "horse") {
			t.Errorf("watchword %q shows %q", args, text)
		}
		kind, _, _ := strings.Cut(text, "(")
		seen[kind]++
	}
	for line, flags := range commandLines(t) {
		for _, secret := range secrets {
			words := strings.Fields(line)
			for at := range len(words) + 1 {
				check(slices.Insert(slices.Clone(words), at, secret)...)
			}
			if strings.HasPrefix(secret, "-S3") || strings.HasPrefix(secret, "--S3") {
				continue // as the value of a flag, this secret is treated like the others
			}
			for _, flag := range flags {
				check(append(slices.Clone(words), "--"+flag.Name+"="+secret)...)
				check(append(slices.Clone(words), "--"+flag.Name, secret)...)
			}
			check(append(slices.Clone(words), "--xaddr="+secret)...)
		}
	}
	if len(seen) < 8 || seen["unexpected argument "] == 0 || seen["unknown flag "] == 0 {
		t.Errorf("the command lines caused only the errors %v", seen)
	}
}

// The value of a variable is not in the error either, but the variable's name is.
func TestWrongVariableIsNotRepeated(t *testing.T) {
	for name, flag := range map[string]string{"WATCHWORD_ACCESS_TTL": "--access-ttl", "WATCHWORD_INSECURE": "--insecure", "WATCHWORD_DRAIN_TIMEOUT": "--drain-timeout"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, "S3cret")
			text := parseError(silent(t), []string{"serve"})
			if strings.Contains(strings.ToLower(text), "s3cret") || !strings.Contains(text, name) || !strings.Contains(text, flag) {
				t.Errorf("%q, want the flag and the variable without its value", text)
			}
		})
	}
}

func TestEscape(t *testing.T) {
	for text, want := range map[string]string{
		"plain, ren\u00e9, \u05d0\u05dc, \u674e, …": "plain, ren\u00e9, \u05d0\u05dc, \u674e, …",
		"\x1b[2J\x07\r":                 `\u001b[2J\u0007\u000d`,
		"\u009b31m":                     `\u009b31m`, // C1: CSI in one character
		"\x9b31m":                       `\x9b31m`,   // the same byte, not UTF-8
		"\u202ecod.exe\u2066\u200f":     `\u202ecod.exe\u2066\u200f`,
		"a\u200bb\u2028c\ufeff\u00a0":   `a\u200bb\u2028c\ufeff\u00a0`,
		"\U000e0041\U0010ffff":          `\udb40\udc41\udbff\udfff`,
		"\ufffd":                        "\ufffd",
		"two\nlines\tand a tab":         "two\nlines\tand a tab",
		"a \\ and \\u001b as they were": `a \ and \u001b as they were`,
	} {
		if got := escape(text, "\n\t"); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	if got := escape("a\nb\tc", ""); got != `a\u000ab\u0009c` {
		t.Errorf("in a cell: %q", got)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestEscapingReportsErrors(t *testing.T) {
	if n, err := (escaping{to: failing{}}).Write([]byte("text")); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	if !reflect.DeepEqual(joined(errors.Join(io.EOF)), []error{io.EOF}) {
		t.Error("a single joined error is not split")
	}
}

// A signal ends a command that waits for standard input, without a prompt too.
func TestASignalEndsAReadOfInput(t *testing.T) {
	for name, read := range map[string]func(context.Context, Terminal) (string, error){
		"a password": func(ctx context.Context, t Terminal) (string, error) { return t.readPassword(ctx, true, true) },
		"a token": func(ctx context.Context, t Terminal) (string, error) {
			return t.readToken(ctx, (*watchwordv1.TokenPair).GetAccessToken)
		},
	} {
		in, keyboard, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ctx, signal := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := read(ctx, Terminal{In: in})
			ended <- err
		}()
		signal()
		select {
		case err := <-ended:
			if !errors.Is(err, errInterrupted) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: the read goes on", name)
		}
		keyboard.Close() // ends the goroutine that reads
	}
}

// The keys that edit a line work at the prompt for a password. Every other byte is part of
// the password, or of the error about the password.
func TestReadTyped(t *testing.T) {
	for typed, want := range map[string]string{
		"a password\r": "a password", "a password\nmore": "a password", "\r": "",
		"wrong\x15right\r": "right", "wrong\x17right\r": "right", "caf\u00e9\x7fe\x08\u00e9\r": "caf\u00e9", "\x7fa\r": "a", "a\x04b\r": "ab", "a\tb\r": "a\tb", "\xff\r": "\xff",
	} {
		if got, err := readTyped(strings.NewReader(typed)); err != nil || got != want {
			t.Errorf("%q is read as %q, %v, want %q", typed, got, err, want)
		}
	}
	for typed, want := range map[string]error{"a\x03": errInterrupted, "a\x1c": errInterrupted, "\x04": io.EOF, "": io.EOF, "a": io.EOF} {
		if got, err := readTyped(strings.NewReader(typed)); !errors.Is(err, want) || got != "" {
			t.Errorf("%q is read as %q, %v, want %v", typed, got, err, want)
		}
	}
	if _, err := readTyped(strings.NewReader(strings.Repeat("a", maxSecret+1))); err == nil {
		t.Error("a line without end is read")
	}
}

// A signal ends a wait for input that has begun.
func TestASignalEndsAWaitThatHasBegun(t *testing.T) {
	ctx, signal := context.WithCancel(t.Context())
	hold := make(chan struct{})
	ended := make(chan error)
	go func() {
		_, err := await(ctx, func() (string, error) { signal(); <-hold; return "", nil })
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, errInterrupted) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the wait goes on")
	}
	close(hold)
}
