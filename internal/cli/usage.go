package cli

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/alecthomas/kong"
)

var (
	// misplaced matches kong's errors that begin with these words and then repeat an
	// argument.
	misplaced = regexp.MustCompile(`^(unexpected argument|unknown flag) `)
	// candidates matches the end of such an error: names of commands or flags.
	candidates = regexp.MustCompile(`, did you mean (?:one of )?"[a-z-]+"(?:, "[a-z-]+")*\?$`)
	// variable matches the name of the environment variable that holds a malformed
	// value.
	variable = regexp.MustCompile(`\(from envar (WATCHWORD_[A-Z_]+)=`)
)

// wrongUsage returns the text for kong's error about the arguments in args. An argument
// may be a password in the wrong place, and terminals and CI keep what they show. So
// the text repeats no argument and no value: wrongUsage names the flag that has the
// wrong value, or counts the arguments up to the wrong one.
func wrongUsage(err error, args []string) string {
	text := err.Error()
	if words := misplaced.FindString(text); words != "" {
		text = words + position(err, args) + "is not shown, because it may be a secret" + candidates.FindString(text)
		if words == "unknown flag " {
			text += "; put -- before an argument that begins with -, such as an id"
		}
		return text
	}
	rule, got, valued := strings.Cut(text, " but got ")
	switch {
	case !valued:
		return text // names flags and commands alone; TestWrongUsageRepeatsNothing
	case strings.Contains(got, "(<EOL>)"): // the flag is the last argument
		flag, _, _ := strings.Cut(rule, ":")
		return flag + ": the value is missing"
	case strings.Contains(got, " flag); perhaps try "): // the next argument begins with "-"
		flag, _, _ := strings.Cut(rule, ":")
		return flag + ": the value is missing; if the value begins with -, such as an id, write " + flag + "=VALUE"
	}
	if from := variable.FindStringSubmatch(got); from != nil {
		rule += ", in the environment variable " + from[1]
	}
	return rule
}

// position returns the place of the first argument that kong did not accept, as
// "(argument 3 of 4) ".
func position(err error, args []string) string {
	var parse *kong.ParseError
	if !errors.As(err, &parse) || parse.Context == nil || len(parse.Context.Path) == 0 {
		return ""
	}
	path := parse.Context.Path
	left := len(path[len(path)-1].Remainder())
	return fmt.Sprintf("(argument %d of %d) ", len(args)-left+1, len(args))
}
