package user

import (
	"fmt"
	"slices"
	"unicode"
)

// joined lists the scripts that a name is allowed to hold together: the scripts of Japanese, of
// Chinese and of Korean, each with Latin (UTS 39 section 5.2, "Highly Restrictive").
var joined = [][]string{
	{"Latin", "Han", "Hiragana", "Katakana"},
	{"Latin", "Han", "Bopomofo"},
	{"Latin", "Han", "Hangul"},
}

// checkScripts refuses a name with letters of several scripts, such as "аdmin" with a Cyrillic
// "а". Without checkScripts, a name of mixed scripts could look like any other name. Two names
// of one script can still look alike; docs/security.md says what a name proves. checkScripts
// checks new names alone: a user with an older name logs in as before.
//
// The scripts are the tables of package unicode. The tables have no Script_Extensions:
// checkScripts allows a character of several scripts together with every script.
//
// Errors: ErrMalformed.
func (n Name) checkScripts() error {
	var scripts []string
	for _, r := range string(n) {
		if s := script(r); s != "" && !slices.Contains(scripts, s) {
			scripts = append(scripts, s)
		}
	}
	fits := func(together []string) bool {
		return !slices.ContainsFunc(scripts, func(s string) bool { return !slices.Contains(together, s) })
	}
	if len(scripts) > 1 && !slices.ContainsFunc(joined, fits) {
		slices.Sort(scripts)
		return fmt.Errorf("%w: mixes letters of the scripts %v (UTS 39)", ErrMalformed, scripts)
	}
	return nil
}

// script returns the name of a character's script, or "" for a character of several
// scripts: a digit, a sign, a combining accent.
func script(r rune) string {
	switch {
	case unicode.Is(unicode.Latin, r): // Latin first, since most letters are Latin and the search goes through 160 tables
		return "Latin"
	case unicode.In(r, unicode.Common, unicode.Inherited):
		return ""
	}
	for name, table := range unicode.Scripts {
		if unicode.Is(table, r) {
			return name
		}
	}
	return "unknown"
}
