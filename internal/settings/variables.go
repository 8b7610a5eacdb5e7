package settings

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// variableOf returns the name of the environment variable that sets a flag; empty if no
// variable of the flag is set. An empty variable counts as not set: compose files and shells
// set an empty variable to mean that there is no value.
func variableOf(flag *kong.Flag) string {
	for _, name := range flag.Envs {
		if os.Getenv(name) != "" {
			return name
		}
	}
	return ""
}

// Misspelled returns a line for each environment variable with nearly the name of a variable
// of the program. A misspelled variable is a warning and no error: other programs set
// variables with this prefix, such as Kubernetes for a service named watchword.
func (s *Settings) Misspelled(environment []string) (lines []string) {
	var known []string
	for _, flag := range allFlags(s.parser.Model.Node) {
		known = append(known, flag.Envs...)
	}
	slices.Sort(known)
	known = slices.Compact(known) // many commands have the same flag
	for _, variable := range environment {
		name, value, _ := strings.Cut(variable, "=")
		if value == "" || slices.Contains(known, name) || len(name) > 64 {
			continue
		}
		for _, candidate := range known {
			longer := len(name) - len(candidate)
			if -2 <= longer && longer <= 2 && distance(strings.ToUpper(name), candidate) <= 2 {
				lines = append(lines, fmt.Sprintf("the environment variable %s sets nothing; did you mean %s?", name, candidate))
				break
			}
		}
	}
	return lines
}

// distance returns the number of letters to insert, remove or replace until a is b (the
// distance of Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
