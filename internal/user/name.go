package user

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"golang.org/x/text/secure/precis"
)

// MaxNameLength bounds a username, in bytes, before any work on it.
const MaxNameLength = 256

// maxRoles bounds a user's roles, so that an access token stays below its largest
// size with every other claim at its bound.
const maxRoles = 32

// ErrMalformed reports a name or a role that breaks a rule.
var ErrMalformed = errors.New("malformed")

// Name holds a username in its folded form (PRECIS UsernameCaseMapped, RFC 8265). Names
// are compared and shown in this form.
type Name string

// ParseName folds a username.
//
// Errors: ErrMalformed.
func ParseName(s string) (Name, error) {
	if s == "" {
		return "", fmt.Errorf("%w: empty", ErrMalformed)
	}
	folded := s
	if len(s) <= MaxNameLength { // before the work of folding
		var err error
		if folded, err = precis.UsernameCaseMapped.String(s); err != nil || folded == "" {
			return "", fmt.Errorf("%w: holds a character that a username must not have (RFC 8265)", ErrMalformed)
		}
	}
	if len(folded) > MaxNameLength {
		return "", fmt.Errorf("%w: longer than %d bytes", ErrMalformed, MaxNameLength)
	}
	return Name(folded), nil
}

// Roles holds sorted role names without duplicates.
type Roles []string

var role = regexp.MustCompile(`^[a-z][a-z0-9._:-]{0,63}$`)

// ParseRoles checks and sorts role names.
//
// Errors: ErrMalformed.
func ParseRoles(names []string) (Roles, error) {
	for _, name := range names {
		if !role.MatchString(name) {
			return nil, fmt.Errorf("%w: a role is [a-z][a-z0-9._:-]{0,63}", ErrMalformed)
		}
	}
	roles := slices.Clone(names)
	slices.Sort(roles)
	roles = slices.Compact(roles)
	if len(roles) > maxRoles {
		return nil, fmt.Errorf("%w: more than %d roles", ErrMalformed, maxRoles)
	}
	return roles, nil
}
