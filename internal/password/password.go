// Package password holds the rules for the form of passwords and for new passwords, and hashes
// and compares passwords. The rules and the hashes together determine what a guess costs an
// attacker.
//
// A [Password] comes from [Parse] alone. No exported method returns the secret text, and
// [Turn.Compare] alone compares a Password with a hash. The bounded [Pool] computes every hash,
// even the hash for an unknown user, so a flood of logins cannot use up the machine.
//
// The package works in memory alone, and in the goroutines of the callers: callers such as
// package login read and write the database, and write the log.
package password

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// MaxLength bounds a password's length before normalization, in bytes. Every real
// passphrase is much shorter. The bound limits the work for a hostile request.
const MaxLength = 1024

// ErrMalformed means that no user is allowed to have the string as a password: the string is
// empty, longer than [MaxLength], not UTF-8, or contains characters that the PRECIS profile
// refuses. Match ErrMalformed with errors.Is.
var ErrMalformed = errors.New("malformed password")

// redacted replaces a Password in every output.
const redacted = "[redacted]"

// Password holds a normalized password, and keeps the text secret.
//
// Every format prints "[redacted]". The zero value is empty: [Policy] and [Pool] refuse the
// zero value. A Password never changes, so goroutines can share a Password.
type Password struct {
	// A field of this type makes == between Passwords a compile error, because == would compare
	// without [Turn.Compare].
	_ [0]func()
	// secret is a pointer, because fmt calls no methods on a Password in an unexported field of
	// another struct: there fmt prints a pointer as an address, and would print a string as
	// text.
	secret *string
}

// Parse normalizes s by the PRECIS profile OpaqueString (RFC 8265, section 4.2). Keyboards can
// send composed or decomposed accents and different kinds of space; Parse returns the same
// Password for each. Parse keeps upper and lower case, and the width of characters. Parse does
// not check the strength: see [Policy.Check].
//
// Errors: ErrMalformed, with a text that names the position of a refused character and
// repeats no part of s.
func Parse(s string) (Password, error) {
	switch {
	case s == "":
		return Password{}, fmt.Errorf("%w: the text is empty", ErrMalformed)
	case len(s) > MaxLength:
		return Password{}, fmt.Errorf("%w: the text is longer than %d bytes", ErrMalformed, MaxLength)
	case !utf8.ValidString(s):
		// The profile would map every broken byte to U+FFFD, and so give
		// different passwords the same normal form.
		return Password{}, errNotUTF8(s)
	}
	normal, err := precis.OpaqueString.String(s)
	if err != nil {
		return Password{}, errRefused(s)
	}
	return Password{secret: &normal}, nil
}

// reveal returns the normalized text, or the empty string for the zero Password.
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
