package token

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// object holds the members of a JSON object, still undecoded. Names are compared
// exactly; encoding/json's structs would read "ISS" as "iss".
//
// The methods text, optional, texts, textOrTexts, integer, time and actors decode a member.
// Each of these methods returns the zero value if the member is missing or has a wrong type,
// and keeps the name of the first bad member in the field bad. So a caller reads all members
// and checks bad once.
//
// The members are parts of one string, and stand in a list: for the dozen members of a token, a
// map and a copy of each text would take several times as long.
type object struct {
	members []member
	bad     string
}

// member is a member of a JSON object: the name, and the JSON text of the value.
type member struct{ name, value string }

// maxMembers bounds the members of an object. Tokens have a dozen members. Each look-up goes
// through the list of members, so without a bound a forged header with a thousand members would
// cost a millisecond.
const maxMembers = 64

// usualMembers is the capacity of the room for the members of an object: the dozen members of a
// usual token fit without growth. The capacity must be a constant, so that the room of a header
// stays on the stack.
const usualMembers = 12

// decodeObject decodes a base64url part with a single JSON object in UTF-8. decodeObject
// refuses a repeated name, and uses room, as [newObject] does.
func decodeObject(part string, room []member) (o object, ok bool) {
	data, err := segments.DecodeSegment(part)
	// Valid also refuses bytes after the first value.
	if err != nil || !utf8.Valid(data) || !json.Valid(data) {
		return object{}, false
	}
	return newObject(string(data), room)
}

// newObject reads the members of a JSON object. data must have passed json.Valid. newObject
// refuses more than maxMembers members, and a repeated name: a JSON reader takes the first or the
// last value of a repeated name, so two readers might see two different tokens (RFC 7515 section
// 4, RFC 7519 section 4). In nested objects repeated names pass, except in the objects of the
// claim act, which [object.actors] reads by newObject too.
//
// newObject appends the members to room, an empty slice: room on the caller's stack saves an
// allocation.
func newObject(data string, room []member) (o object, ok bool) {
	s := scanner{data}
	if !s.take('{') {
		return object{}, false
	}
	o.members = room
	for !s.take('}') {
		name, ok := text(s.value())
		if !ok || o.has(name) || len(o.members) == maxMembers {
			return object{}, false
		}
		s.take(':')
		o.members = append(o.members, member{name, s.value()})
		s.take(',')
	}
	return o, true
}

// value returns the JSON text of a member; empty if the member is missing.
func (o *object) value(name string) string {
	for i := range o.members {
		if o.members[i].name == name {
			return o.members[i].value
		}
	}
	return ""
}

func (o *object) has(name string) bool { return o.value(name) != "" }

func (o *object) refuse(name string) {
	if o.bad == "" {
		o.bad = name
	}
}

func (o *object) text(name string) string {
	s, ok := text(o.value(name))
	if !ok {
		o.refuse(name)
	}
	return s
}

// optional returns the empty string if the member is missing, and refuses an empty string.
func (o *object) optional(name string) string {
	if !o.has(name) {
		return ""
	}
	s := o.text(name)
	if s == "" {
		o.refuse(name)
	}
	return s
}

// actors reads the actors of the member, from the outside in (RFC 8693 section 4.1); nil if
// the member is missing. Each actor has exactly the members sub, username and ver, and act
// around an earlier actor: an unknown member might name another actor, as iss would.
// If there are more than MaxActors actors, actors reads MaxActors+1, and [Claims.malformed]
// refuses the claim.
func (o *object) actors(name string) (list []Actor) {
	for at, member := *o, name; at.has(member) && len(list) <= MaxActors; member = "act" {
		act, ok := newObject(at.value(member), nil)
		if !ok {
			o.refuse(name)
			return nil
		}
		a := Actor{Subject: act.text("sub"), Username: act.text("username"), Version: act.integer("ver")}
		known := 3
		if act.has("act") {
			known++
		}
		if act.bad != "" || len(act.members) != known {
			o.refuse(name)
			return nil
		}
		list, at = append(list, a), act
	}
	return list
}

func (o *object) texts(name string) []string {
	s := scanner{o.value(name)}
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

// textOrTexts reads a string or a list of strings: the claim aud can have either form
// (RFC 7519 section 4.1.3).
func (o *object) textOrTexts(name string) []string {
	if strings.HasPrefix(o.value(name), `"`) {
		return []string{o.text(name)}
	}
	return o.texts(name)
}

// integer reads digits with an optional minus sign. A fraction or an exponent is
// refused, because JSON readers round such numbers differently.
func (o *object) integer(name string) int64 {
	n, err := strconv.ParseInt(o.value(name), 10, 64)
	if err != nil {
		o.refuse(name)
	}
	return n
}

// time reads a NumericDate (RFC 7519 section 2), in whole seconds since 1970.
func (o *object) time(name string) time.Time {
	return time.Unix(o.integer(name), 0).UTC()
}

// text decodes a JSON string, and returns false for every other value.
// json.Unmarshal alone would decode null as the empty string.
func text(value string) (string, bool) {
	if len(value) < 2 || value[0] != '"' {
		return "", false
	}
	if strings.IndexByte(value, '\\') < 0 {
		return value[1 : len(value)-1], true
	}
	var s string
	err := json.Unmarshal([]byte(value), &s)
	return s, err == nil
}

// scanner cuts JSON text into values. The text must have passed json.Valid.
//
// A json.Decoder would check the text again and allocate for every JSON token;
// with a Decoder, Parse was a third slower than golang-jwt.
type scanner struct{ rest string }

// take skips white space. If c comes next, take also skips c and returns true.
func (s *scanner) take(c byte) bool {
	for len(s.rest) > 0 && strings.IndexByte(" \t\r\n", s.rest[0]) >= 0 { // strings.TrimLeft is slower
		s.rest = s.rest[1:]
	}
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// value returns the JSON text of the next value. At the end of the text, value
// returns no bytes; the function text refuses an empty value, so a caller's loop
// ends.
func (s *scanner) value() string {
	s.take(' ') // skips all white space before the value
	n := valueLength(s.rest)
	value := s.rest[:n]
	s.rest = s.rest[n:]
	return value
}

// valueLength returns the length of the value at the start of data, in bytes. A number
// or word ends before a comma, a bracket or white space. An object or array ends with
// the matching bracket, and a string with the closing quote.
func valueLength(data string) int {
	depth := 0
	for i := 0; i < len(data); i++ {
		c := data[i]
		if depth == 0 && strings.IndexByte(",]} \t\r\n", c) >= 0 {
			return i
		}
		switch c {
		case '"':
			i += stringLength(data[i:]) - 1
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		default:
			continue
		}
		if depth == 0 {
			return i + 1
		}
	}
	return len(data)
}

// stringLength returns the length of the string at the start of data, in bytes, both
// quotes included.
func stringLength(data string) int {
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
