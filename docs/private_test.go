package docs_test

import (
	"regexp"
	"strings"
	"testing"
)

// exposures match commands that show a secret to other users of the machine: in the
// arguments of a process, or in a file that the shell makes for all to read.
var exposures = map[string]*regexp.Regexp{
	"a token among the arguments":              regexp.MustCompile(`-H\s+"[^"]*\$|[Bb]earer (eyJ|\$\()|[Bb]earer '?"\$`),
	"a request with a secret as an argument":   regexp.MustCompile(`\s(-d|--data|--data-raw)[ =]['"]?\{.*(password|token)`),
	"a password as an argument":                regexp.MustCompile(`--(password|token|secret)[ =]`),
	"a database password among the arguments":  regexp.MustCompile(`^[^=]*\swatchword .*postgres://[^\s/@]*:[^\s@]*@|^\s*(\S*/)?watchword .*postgres://[^\s/@]*:[^\s@]*@`),
	"an output with secrets in a file for all": regexp.MustCompile(`watchword (login|serve)\b[^|\n]*[^2&]>\s*["\w/.$]`),
}

// private matches what makes new files readable by their owner alone.
var private = regexp.MustCompile(`umask 0?77|mktemp -d`)

// exposed returns what a block of commands shows to others; empty if nothing.
func exposed(block string) (found []string) {
	joined := strings.ReplaceAll(block, "\\\n", " ")
	closed := false
	for line := range strings.Lines(joined) {
		closed = closed || private.MatchString(line)
		for what, pattern := range exposures {
			if pattern.MatchString(line) && !(closed && strings.HasPrefix(what, "an output")) {
				found = append(found, what+": "+strings.TrimSpace(line))
			}
		}
	}
	return found
}

// commandBlocks returns the indented blocks and the fenced blocks of a document.
func commandBlocks(text string) []string {
	found := append(blocks(text, "bash"), blocks(text, "sh")...)
	indented := regexp.MustCompile(`(?m)(?:^ {4,}\S.*\n?)+`)
	return append(found, indented.FindAllString(text, -1)...)
}

// Readers copy commands as they stand in the documents, so no command may show a secret to other
// users of the machine.
func TestCommandsInDocumentsKeepSecretsPrivate(t *testing.T) {
	commands := 0
	for _, path := range documents(t) {
		for _, block := range commandBlocks(read(t, path)) {
			commands++
			for _, what := range exposed(block) {
				t.Errorf("%s: %s", path, what)
			}
		}
	}
	if commands < 30 {
		t.Errorf("found only %d blocks of commands", commands)
	}
	for _, bad := range []string{
		"watchword login alice --plaintext > tokens.json",
		"    watchword login alice \\\n      --plaintext >tokens.json",
		".bin/watchword serve >out.log",
		"grpcurl -plaintext -H \"authorization: Bearer $access\" $addr m",
		"curl -H 'authorization: Bearer eyJhbGciOi' http://notes",
		"grpcurl -d '{\"username\": \"alice\", \"password\": \"correct horse\"}' $addr m",
		"watchword user create bob --password=hunter2",
		"watchword migrate --datastore-uri postgres://watchword:hunter2@db/watchword",
		"watchword datastore copy sqlite:w.db postgres://watchword:hunter2@db/watchword",
	} {
		if len(exposed(bad)) == 0 {
			t.Errorf("not found: %s", bad)
		}
	}
	for _, good := range []string{
		"umask 077\nwatchword login alice > tokens.json", "watchword serve 2>log", "rpc m '{}' -H 'authorization: Bearer ${access}'",
		"watchword user create bob --password-stdin", "watchword migrate --datastore-uri postgres://watchword@db/watchword",
		"export WATCHWORD_DATASTORE_URI='postgres://watchword@db/watchword?sslmode=verify-full'", "watchword login alice | watchword verify",
	} {
		if found := exposed(good); len(found) > 0 {
			t.Errorf("found in %q: %v", good, found)
		}
	}
}
