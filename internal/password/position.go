package password

import (
	"fmt"
	"slices"
	"sort"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/norm"
)

// inContext holds the characters that the PRECIS profile OpaqueString allows only beside
// certain other characters (RFC 5892, appendix A): joiners, points and marks, and the Arabic
// digits, of which a text may have one kind.
var inContext = []rune("\u200c\u200d\u00b7\u0375\u05f3\u05f4\u30fb" +
	"\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668\u0669" +
	"\u06f0\u06f1\u06f2\u06f3\u06f4\u06f5\u06f6\u06f7\u06f8\u06f9")

// errNotUTF8 returns the error for a text that is not UTF-8.
func errNotUTF8(s string) error {
	position := 0
	for i, r := range s {
		position++
		if _, size := utf8.DecodeRuneInString(s[i:]); r == utf8.RuneError && size == 1 {
			break
		}
	}
	return fmt.Errorf("%w: character %d is not UTF-8", ErrMalformed, position)
}

// errRefused returns the error for a text that the PRECIS profile OpaqueString refuses, with
// the position of a refused character. The position counts the characters as people see them: a
// letter and its accent are one character. The text of the error repeats no character.
func errRefused(s string) error {
	text := []rune(norm.NFC.String(s))
	allowed := precis.OpaqueString.Allowed()
	never := func(r rune) bool { return !allowed.Contains(r) && !slices.Contains(inContext, r) }
	if at := slices.IndexFunc(text, never); at >= 0 {
		return fmt.Errorf("%w: character %d is not allowed: %s", ErrMalformed, at+1, kindOf(text[at]))
	}
	var places []int // the indexes of the characters in text that need certain neighbors
	for i, r := range text {
		if slices.Contains(inContext, r) {
			places = append(places, i)
		}
	}
	// With "a" in place of all later characters of inContext, the profile refuses the text
	// exactly if one of the earlier characters of inContext lacks its neighbors.
	first := sort.Search(len(places), func(n int) bool {
		start := slices.Clone(text)
		for _, later := range places[n+1:] {
			start[later] = 'a'
		}
		_, err := precis.OpaqueString.String(string(start))
		return err != nil
	})
	if first == len(places) {
		return fmt.Errorf("%w: the text has forbidden characters", ErrMalformed)
	}
	return fmt.Errorf("%w: character %d is not allowed beside its neighbors", ErrMalformed, places[first]+1)
}

// kindOf describes, for an error, why a character is refused.
func kindOf(r rune) string {
	switch {
	case unicode.IsControl(r):
		return "a control character"
	case unicode.Is(unicode.Cf, r), unicode.Is(unicode.Variation_Selector, r), unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r):
		return "an invisible character"
	case unicode.Is(unicode.Co, r):
		return "a character for private use"
	case !unicode.IsGraphic(r):
		return "not assigned in Unicode, or newer than this server"
	}
	return "not for passwords (RFC 8264, section 9)"
}
