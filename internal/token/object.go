package token

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"
)

// object is a JSON object whose members are still to be read: name to value, as
// it was written. Names are compared exactly, where encoding/json's structs would
// take "ISS" for "iss".
//
// The methods named after a type return the member of that type. One that is
// missing or of another type gives a zero value, and the first such is kept in
// bad.
type object struct {
	members map[string][]byte
	bad     string
}

// decodeObject decodes a base64url part that holds one JSON object in UTF-8 and
// nothing more. It refuses a name that occurs twice: JSON leaves open which of the
// two counts, so two readers might see two different tokens (RFC 7515 section 4,
// RFC 7519 section 4). Nested objects aren't searched; nothing here reads any.
func decodeObject(part string) (*object, bool) {
	data, err := segments.DecodeSegment(part)
	// Valid also refuses whatever follows the first value.
	if err != nil || !utf8.Valid(data) || !json.Valid(data) {
		return nil, false
	}
	s := scanner{data}
	if !s.take('{') {
		return nil, false
	}
	members := make(map[string][]byte, 10)
	for !s.take('}') {
		name, ok := text(s.value())
		if _, twice := members[name]; !ok || twice {
			return nil, false
		}
		s.take(':')
		members[name] = s.value()
		s.take(',')
	}
	return &object{members: members}, true
}

func (o *object) has(name string) bool {
	_, ok := o.members[name]
	return ok
}

func (o *object) refuse(name string) {
	if o.bad == "" {
		o.bad = name
	}
}

func (o *object) text(name string) string {
	s, ok := text(o.members[name])
	if !ok {
		o.refuse(name)
	}
	return s
}

func (o *object) texts(name string) []string {
	s := scanner{o.members[name]}
	if !s.take('[') {
		o.refuse(name)
		return nil
	}
	list := []string{}
	for !s.take(']') {
		element, ok := text(s.value())
		if !ok {
			o.refuse(name)
			return nil
		}
		list = append(list, element)
		s.take(',')
	}
	return list
}

// textOrTexts reads what RFC 7519 section 4.1.3 allows for an audience.
func (o *object) textOrTexts(name string) []string {
	if raw := o.members[name]; len(raw) > 0 && raw[0] == '"' {
		return []string{o.text(name)}
	}
	return o.texts(name)
}

// integer takes an integer that is written as one: neither a fraction nor an
// exponent, which readers round in ways of their own.
func (o *object) integer(name string) int64 {
	n, err := strconv.ParseInt(string(o.members[name]), 10, 64)
	if err != nil {
		o.refuse(name)
	}
	return n
}

// time reads a NumericDate (RFC 7519 section 2) in whole seconds.
func (o *object) time(name string) time.Time {
	return time.Unix(o.integer(name), 0).UTC()
}

// text reads a value that is a string. A null is none, where encoding/json would
// make it an empty one.
func text(value []byte) (string, bool) {
	if len(value) < 2 || value[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return string(value[1 : len(value)-1]), true
	}
	var s string
	err := json.Unmarshal(value, &s)
	return s, err == nil
}

// scanner cuts JSON that is known to be valid into its values. A json.Decoder
// can do so too, and made reading a token a third slower than golang-jwt, as it
// checks all over again and allocates for every token of the text.
type scanner struct{ rest []byte }

// take skips white space, and c if that is what follows.
func (s *scanner) take(c byte) bool {
	for len(s.rest) > 0 {
		switch first := s.rest[0]; first {
		case ' ', '\t', '\r', '\n':
			s.rest = s.rest[1:]
		default:
			if first != c {
				return false
			}
			s.rest = s.rest[1:]
			return true
		}
	}
	return false
}

// value returns the next value as it is written. At the end it is empty, which no
// reader of a type takes, so a loop over values ends in any case.
func (s *scanner) value() []byte {
	s.take(' ') // which it skips, so that the value comes first
	n := valueLength(s.rest)
	value := s.rest[:n]
	s.rest = s.rest[n:]
	return value
}

// valueLength counts the bytes of the value that data begins with. Outside of
// brackets, a string ends by itself and a number or word before the next mark.
func valueLength(data []byte) int {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			i += stringLength(data[i:]) - 1
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			if depth < 0 {
				return i
			}
			if depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return len(data)
}

// stringLength counts the bytes of a string with its quotes.
func stringLength(data []byte) int {
	for i := 1; i < len(data); i++ {
		switch data[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(data)
}
