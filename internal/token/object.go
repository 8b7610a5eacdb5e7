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

// maxDepth bounds how deep objects and arrays can be nested. The claims of Kubernetes have a
// depth of 3.
const maxDepth = 16

// decodeObject decodes a base64url part with a single JSON object in UTF-8. decodeObject
// refuses a repeated name, and uses room, as [newObject] does.
func decodeObject(part string, room []member) (o object, ok bool) {
	var usual [512]byte // the decoded part of a usual token fits, and stays on the stack
	data, err := segments.AppendDecode(usual[:0], []byte(part))
	if err != nil || !utf8.Valid(data) {
		return object{}, false
	}
	return newObject(string(data), room)
}

// newObject reads the members of a JSON object. data must be UTF-8. newObject refuses malformed
// JSON, objects and arrays nested deeper than maxDepth, more than maxMembers members, and a
// repeated name: a JSON reader takes the first or the last value of a repeated name, so two
// readers might see two different tokens (RFC 7515 section 4, RFC 7519 section 4). In nested
// objects repeated names pass, except in the objects of the claim act, which [object.actors]
// reads by newObject too.
//
// newObject appends the members to room, an empty slice: room on the caller's stack saves an
// allocation.
func newObject(data string, room []member) (o object, ok bool) {
	s := scanner{data}
	o.members = room
	ok = s.list('{', '}', func() bool {
		m, ok := s.member(maxDepth - 1)
		if !ok || o.has(m.name) || len(o.members) == maxMembers {
			return false
		}
		o.members = append(o.members, m)
		return true
	})
	return o, ok && s.ended()
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
	s, list := scanner{o.value(name)}, []string{}
	ok := s.list('[', ']', func() bool {
		value, _ := s.value(0)
		element, ok := text(value)
		list = append(list, element)
		return ok
	})
	if !ok {
		o.refuse(name)
		return nil
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

// text decodes a JSON string that a scanner has cut, and returns false for every other value.
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
