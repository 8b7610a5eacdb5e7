package token

import "strings"

// scanner checks JSON text (RFC 8259) and cuts the text into values, in one pass. The text must be
// UTF-8. Each method begins at the start of rest, and moves rest behind what the method has read.
// After a method has returned false for malformed text, the scanner must not be used.
//
// json.Valid and a json.Decoder would read the text twice, and a Decoder allocates for each bracket,
// name and value.
type scanner struct{ rest string }

// take skips white space. If c comes next, take also skips c and returns true.
func (s *scanner) take(c byte) bool {
	i := 0
	for i < len(s.rest) && isSpace(s.rest[i]) {
		i++
	}
	s.rest = s.rest[i:]
	if s.rest == "" || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// peek skips white space, and reports whether c comes next.
func (s *scanner) peek(c byte) bool {
	s.take(' ')
	return s.rest != "" && s.rest[0] == c
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

// ended reports whether nothing but white space is left.
func (s *scanner) ended() bool {
	s.take(' ') // skips all white space
	return s.rest == ""
}

// list reads an object or an array: the bracket open, any number of elements with commas between
// them, and the bracket end. The function element reads a member or an element, and returns false
// for malformed text.
func (s *scanner) list(open, end byte, element func() bool) bool {
	if !s.take(open) {
		return false
	}
	if s.take(end) {
		return true
	}
	for element() {
		if !s.take(',') {
			return s.take(end)
		}
	}
	return false
}

// member reads a member of an object. depth bounds the value, as in [scanner.value].
func (s *scanner) member(depth int) (m member, ok bool) {
	if m.name, ok = s.name(); ok {
		m.value, ok = s.value(depth)
	}
	return m, ok
}

// name reads the name of a member, and the colon.
func (s *scanner) name() (string, bool) {
	quoted, _ := s.value(0)
	name, ok := text(quoted)
	return name, ok && s.take(':')
}

// value reads a value, and returns the JSON text of the value. depth bounds how deep objects and
// arrays can be nested; 0: the value is no object and no array.
func (s *scanner) value(depth int) (json string, ok bool) {
	s.take(' ') // skips all white space before the value
	if s.rest == "" {
		return "", false
	}
	from := s.rest
	switch c := from[0]; {
	case c == '"':
		ok = s.quoted()
	case c == '{' && depth > 0:
		ok = s.list('{', '}', func() bool {
			_, ok := s.member(depth - 1)
			return ok
		})
	case c == '[' && depth > 0:
		ok = s.list('[', ']', func() bool {
			_, ok := s.value(depth - 1)
			return ok
		})
	case c == '-' || isDigit(c):
		ok = s.number()
	default:
		ok = s.word("true") || s.word("false") || s.word("null")
	}
	return from[:len(from)-len(s.rest)], ok
}

func (s *scanner) word(word string) (ok bool) {
	s.rest, ok = strings.CutPrefix(s.rest, word)
	return ok
}

// quoted reads a string, which begins with a quote (section 7).
func (s *scanner) quoted() bool {
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return true
		case c == '\\':
			n := escapeLength(s.rest[i:])
			if n == 0 {
				return false
			}
			i += n - 1
		case c < ' ':
			return false
		}
	}
	return false
}

// escapeLength returns the length of the escape sequence at the start of text; 0 for a malformed
// sequence.
func escapeLength(text string) int {
	const short, long = len(`\n`), len(`\u0000`)
	switch {
	case len(text) >= short && strings.IndexByte(`"\/bfnrt`, text[1]) >= 0:
		return short
	case len(text) >= long && text[1] == 'u' && strings.Trim(text[short:long], "0123456789abcdefABCDEF") == "":
		return long
	}
	return 0
}

// number reads a number (section 6).
func (s *scanner) number() bool {
	s.word("-")
	if s.rest != "" && s.rest[0] == '0' {
		s.rest = s.rest[1:] // after a leading zero, no other digit follows
	} else if !s.digits() {
		return false
	}
	if s.word(".") && !s.digits() {
		return false
	}
	if s.word("e") || s.word("E") {
		_ = s.word("+") || s.word("-")
		return s.digits()
	}
	return true
}

// digits reads one digit or more.
func (s *scanner) digits() bool {
	i := 0
	for i < len(s.rest) && isDigit(s.rest[i]) {
		i++
	}
	s.rest = s.rest[i:]
	return i > 0
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
