package cli

import (
	"fmt"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// ignoreEmpty makes an empty environment variable count as not set: compose files and
// shells set an empty variable where they mean none. kong would read the empty text as the
// value of the flag.
func ignoreEmpty(k *kong.Kong) error {
	for _, flag := range allFlags(k.Model.Node) {
		empty := func(name string) bool {
			value, set := os.LookupEnv(name)
			return set && value == ""
		}
		flag.Envs = slices.DeleteFunc(slices.Clone(flag.Envs), empty)
		flag.Value.Tag.Envs = slices.DeleteFunc(slices.Clone(flag.Value.Tag.Envs), empty)
	}
	return nil
}

// misspelled returns a line for each environment variable with nearly the name of a variable
// of this program. A misspelled variable is a warning and no error: other programs set
// variables with this prefix, such as Kubernetes for a service named watchword.
func misspelled(k *kong.Kong, environment []string) (lines []string) {
	var known []string
	for _, flag := range allFlags(k.Model.Node) {
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
			if distance(strings.ToUpper(name), candidate) <= 2 {
				lines = append(lines, fmt.Sprintf("the environment variable %s sets nothing; did you mean %s?", name, candidate))
				break
			}
		}
	}
	return lines
}

// allFlags returns the flags of a command and of all commands below.
func allFlags(node *kong.Node) []*kong.Flag {
	flags := slices.Clone(node.Flags)
	for _, child := range node.Children {
		flags = append(flags, allFlags(child)...)
	}
	return flags
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

// durations reads a flag of type [time.Duration]. Beside the units of
// [time.ParseDuration], durations accepts days, as in 30d and 1d12h.
func durations(ctx *kong.DecodeContext, target reflect.Value) error {
	var text string
	if err := ctx.Scan.PopValueInto("duration", &text); err != nil {
		return err
	}
	d, err := parseDuration(text)
	if err != nil {
		return fmt.Errorf("expected a duration such as 90s, 12h or 30d but got %q", text) // wrongUsage shows the part before "but got"
	}
	target.Set(reflect.ValueOf(d))
	return nil
}

// parseDuration is [time.ParseDuration] with whole days of 24 hours before the other units.
func parseDuration(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	digits, rest, found := strings.Cut(text, "d")
	if !found {
		return time.ParseDuration(text)
	}
	days, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || days > math.MaxInt64/uint64(day) {
		return 0, strconv.ErrRange
	}
	d := time.Duration(days) * day
	if rest == "" {
		return d, nil
	}
	more, err := time.ParseDuration(rest)
	if err != nil || more < 0 || d+more < 0 {
		return 0, strconv.ErrRange
	}
	return d + more, nil
}
