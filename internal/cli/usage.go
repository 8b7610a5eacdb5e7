package cli

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	// misplaced matches kong's errors that begin with these words and then repeat an
	// argument.
	misplaced = regexp.MustCompile(`^(unexpected argument|unknown flag) `)
	// candidates matches the end of such an error: names of commands or flags.
	candidates = regexp.MustCompile(`, did you mean (?:one of )?"[a-z-]+"(?:, "[a-z-]+")*\?$`)
)

// wrongUsage returns the text for kong's error about an argument of the command line, by the
// number of the argument; 0 if unknown. An argument may be a password in the wrong place, and
// terminals and CI keep what they show. So the text repeats no argument and no value:
// wrongUsage names the flag that has the wrong value, or the number of the wrong argument.
func wrongUsage(err error, number, of int) string {
	text := err.Error()
	if words := misplaced.FindString(text); words != "" {
		place := ""
		if number > 0 {
			place = fmt.Sprintf("(argument %d of %d) ", number, of)
		}
		text = words + place + "is not shown, because it may be a secret" + candidates.FindString(text)
		if words == "unknown flag " {
			text += "; put -- before an argument that begins with -, such as an id"
		}
		return text
	}
	rule, got, valued := strings.Cut(text, " but got ")
	flag, _, _ := strings.Cut(rule, ":")
	switch {
	case !valued: // names flags and commands alone; TestWrongUsageRepeatsNothing
	case strings.Contains(got, "(<EOL>)"): // the flag is the last argument
		return flag + ": the value is missing"
	case strings.Contains(got, " flag); perhaps try "): // the next argument begins with "-"
		return flag + ": the value is missing; if the value begins with -, such as an id, write " + flag + "=VALUE"
	}
	return rule
}
