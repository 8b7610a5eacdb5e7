package cli

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

var update = flag.Bool("update", false, "write the tables of docs/configuration.md anew")

// tables matches the tables of flags in docs/configuration.md. The comment before a table names
// the commands.
var tables = regexp.MustCompile(`(?m)^<!-- flags of: (.*) -->\n\| flag \| variable \| default \| meaning \|\n\| --- .*\n((?:\|.*\n)*)`)

// TestConfigurationPage compares the tables of docs/configuration.md with the flags of the
// commands: name, variable and default are made from the code. The meaning of a flag is
// written in the page; a new flag gets the text of --help. `make configuration-page` writes
// the tables.
func TestConfigurationPage(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "configuration.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	model := model(t)
	missing := map[string]bool{}
	for _, command := range model.Children {
		missing[command.Name] = len(flagsBelow(command)) > 0
	}
	// written are the flags that the tables of a command have: a command may have two tables.
	written := map[string]string{}
	for _, match := range tables.FindAllStringSubmatch(string(page), -1) {
		for name := range strings.SplitSeq(match[1], ", ") {
			written[name] += match[2]
		}
	}
	made := tables.ReplaceAllStringFunc(string(page), func(table string) string {
		match := tables.FindStringSubmatch(table)
		var flags []*kong.Flag
		for name := range strings.SplitSeq(match[1], ", ") {
			at := slices.IndexFunc(model.Children, func(n *kong.Node) bool { return n.Name == name })
			if at < 0 {
				t.Errorf("docs/configuration.md: there is no command %s", name)
				continue
			}
			delete(missing, name)
			if name == "serve" {
				flags = append(flags, model.Flags...)
			}
			for _, f := range flagsBelow(model.Children[at]) {
				row := "| `--" + f.Name + "` |"
				if strings.Contains(match[2], row) || !strings.Contains(written[name], row) {
					flags = append(flags, f)
				}
			}
		}
		return strings.TrimSuffix(table, match[2]) + rows(flags, match[2])
	})
	for name, has := range missing {
		if !has {
			continue
		}
		t.Errorf("docs/configuration.md has no table with the flags of %s: add the command to a comment <!-- flags of: … -->", name)
	}
	if *update {
		if err := os.WriteFile(path, []byte(made), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if made != string(page) {
		t.Errorf("docs/configuration.md is not what the flags are: run make configuration-page")
	}
}

// flagsBelow returns the flags of a command and of all commands below.
func flagsBelow(node *kong.Node) []*kong.Flag {
	flags := slices.Clone(node.Flags)
	for _, child := range node.Children {
		flags = append(flags, flagsBelow(child)...)
	}
	return flags
}

// rows returns the rows of the flags, in the order of the rows that the table has. A flag of
// several commands has one row, with the default of the first command.
func rows(flags []*kong.Flag, table string) string {
	written := map[string][]string{} // the default and the meaning of each flag
	var order []string
	for line := range strings.Lines(table) {
		cells := strings.SplitN(strings.Trim(strings.TrimSpace(line), "|"), " | ", 4)
		if len(cells) == 4 {
			name := strings.Trim(cells[0], " `-")
			written[name], order = cells[2:], append(order, name)
		}
	}
	byName := map[string]string{}
	for _, f := range flags {
		if f.Name == "help" || f.Name == "version" || byName[f.Name] != "" {
			continue
		}
		row, known := written[f.Name]
		if !known {
			row, order = []string{"none", strings.ReplaceAll(f.Help, "|", `\|`) + " "}, append(order, f.Name)
		}
		if !known && f.IsBool() {
			row[0] = "no"
		}
		if f.HasDefault && f.Default != "" {
			row[0] = "`" + f.Default + "`"
		}
		byName[f.Name] = fmt.Sprintf("| `--%s` | `%s` | %s | %s|\n", f.Name, strings.Join(f.Envs, "`, `"), row[0], row[1])
	}
	var text strings.Builder
	for _, name := range order {
		text.WriteString(byName[name]) // empty for a flag that is gone
	}
	return text.String()
}
