package password

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// NIST SP 800-63B-4, section 3.1.1.2, demands these numbers of characters of a new password,
// counted in code points after normalization: 15 if the password is the only factor, and never
// fewer than 8.
const (
	DefaultMinLength = 15
	LeastMinLength   = 8
)

// ErrTooWeak means that a new password breaks the policy. The text of a wrapping error
// names the broken rule for people, and repeats no part of the password.
var ErrTooWeak = errors.New("password too weak")

// Policy holds the rules for new passwords. The rules follow NIST SP 800-63B-4: a least length,
// and no password that an attacker guesses first. Policy has no rule about kinds of characters
// (digits, signs), because such a rule leads people to "Password1!".
//
// The zero Policy asks for DefaultMinLength characters, and has no list. Goroutines can share a
// Policy.
type Policy struct {
	MinLength int   // the fewest characters; zero: DefaultMinLength; a lower value than LeastMinLength: LeastMinLength
	List      *List // further passwords to refuse; nil: none
}

// leastLength returns the fewest characters of a new password.
func (p Policy) leastLength() int {
	if p.MinLength == 0 {
		return DefaultMinLength
	}
	return max(p.MinLength, LeastMinLength)
}

// Check checks a new password for the user username. Check computes no hash.
//
// Call Check only for new passwords: after the rules have changed, a user must still be able to
// log in with an old password.
//
// Errors: ErrTooWeak if pw breaks a rule.
func (p Policy) Check(pw Password, username string) error {
	text, least := pw.reveal(), p.leastLength()
	switch {
	case utf8.RuneCountInString(text) < least:
		return fmt.Errorf("%w: the password has fewer than %d characters", ErrTooWeak, least)
	case isName(text, username):
		return fmt.Errorf("%w: the password equals the user name", ErrTooWeak)
	case repeats(text, least):
		return fmt.Errorf("%w: the password repeats a part of fewer than %d characters", ErrTooWeak, least)
	case isFewParts(text, username):
		return fmt.Errorf("%w: the password consists of at most four parts that attackers try first: "+
			"a common word, the user name, the name of the service, neighboring keys, a sequence, or a repetition", ErrTooWeak)
	case p.List.contains(text):
		return fmt.Errorf("%w: the password is in the server's list of common passwords", ErrTooWeak)
	}
	return nil
}

// isName reports whether text equals a user name, by the PRECIS profile for user names (RFC
// 8265, section 3.3) or without the profile. The second comparison catches a name that the
// profile refuses.
func isName(text, username string) bool {
	return strings.EqualFold(text, username) || precis.UsernameCaseMapped.Compare(text, username)
}

// Generate returns a password of 125 random bits for a person to read and type: five
// groups of five lower-case letters and digits. Only the digits 2 to 7 occur, so
// readers cannot confuse 0 with o, or 1 with l.
func Generate() string {
	letters := strings.ToLower(rand.Text()) // base32: five bits in each character
	groups := make([]string, 5)
	for i := range groups {
		groups[i] = letters[5*i : 5*i+5]
	}
	return strings.Join(groups, "-")
}
