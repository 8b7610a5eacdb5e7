// Package password owns everything about the cost of a guess: what a password
// is, which ones are refused, how one is hashed and how one is compared.
//
// There is one way in. A [Password] comes from [Parse] alone, shows its content
// to nobody, and cannot be compared except by [Pool.Compare]. Every hash, also
// the one that an unknown user costs, goes through the [Pool], whose bounds
// keep a flood of logins from taking the machine.
//
// The package keeps nothing: no users, no rows, no transaction. It starts no
// goroutine of its own and logs nothing.
package password

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// MaxLength is the most bytes a password may have as it is sent. It is far
// above any passphrase, and bounds what a stranger can make us normalize.
const MaxLength = 1024

// ErrMalformed says that a string cannot be a password at all, whoever's: it is
// empty, longer than [MaxLength], not UTF-8, or has characters that the PRECIS
// profile refuses. Match it with errors.Is.
var ErrMalformed = errors.New("malformed password")

// redacted is what a Password shows in place of itself.
const redacted = "[redacted]"

// Password is a password as a user typed it, normalized, and still secret.
//
// It prints as "[redacted]" in every format. The zero value is no password: it
// breaks the policy, and a Pool refuses it as [ErrMalformed]. A Password never
// changes, so goroutines may share it.
type Password struct {
	// Makes == a compile error: it would compare around the pool.
	_ [0]func()
	// A pointer, because fmt calls no methods on unexported fields of other
	// structs: there it prints an address, where it would print a string.
	secret *string
}

// Parse normalizes s by the PRECIS profile OpaqueString (RFC 8265, section
// 4.2): the same password typed on another keyboard, with composed or
// decomposed accents or another kind of space, is the same Password. Case and
// width are kept. Parse says nothing about strength, see [Password.CheckPolicy].
//
// The error matches [ErrMalformed] and contains nothing of s.
func Parse(s string) (Password, error) {
	switch {
	case s == "":
		return Password{}, fmt.Errorf("%w: it is empty", ErrMalformed)
	case len(s) > MaxLength:
		return Password{}, fmt.Errorf("%w: it is longer than %d bytes", ErrMalformed, MaxLength)
	case !utf8.ValidString(s):
		// Checked here: the profile would map broken bytes to U+FFFD, and so
		// make different passwords one.
		return Password{}, fmt.Errorf("%w: it is not UTF-8", ErrMalformed)
	}
	normal, err := precis.OpaqueString.String(s)
	if err != nil {
		return Password{}, fmt.Errorf("%w: it has characters that are not allowed", ErrMalformed)
	}
	return Password{secret: &normal}, nil
}

// reveal gives the normalized text, empty for the zero Password.
func (p Password) reveal() string {
	if p.secret == nil {
		return ""
	}
	return *p.secret
}

// String returns "[redacted]".
func (Password) String() string { return redacted }

// Format writes "[redacted]" for every verb and flag of package fmt.
func (Password) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText returns "[redacted]", for JSON, XML and other text encodings.
func (Password) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue returns "[redacted]", for log/slog.
func (Password) LogValue() slog.Value { return slog.StringValue(redacted) }
