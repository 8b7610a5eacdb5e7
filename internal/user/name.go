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

// maxRoles bounds a user's roles, so that an access token stays below its
// largest size whatever else it carries.
const maxRoles = 32

// ErrMalformed says that a name, a role or an id breaks a rule.
var ErrMalformed = errors.New("malformed")

// Name is a username in its folded form (PRECIS UsernameCaseMapped, RFC 8265),
// in which names are compared and shown.
type Name string

// ParseName folds a username. Its error matches ErrMalformed.
func ParseName(s string) (Name, error) {
	if s == "" {
		return "", fmt.Errorf("%w: empty", ErrMalformed)
	}
	if len(s) > MaxNameLength {
		return "", fmt.Errorf("%w: longer than %d bytes", ErrMalformed, MaxNameLength)
	}
	folded, err := precis.UsernameCaseMapped.String(s)
	if err != nil || folded == "" {
		return "", fmt.Errorf("%w: holds a character that a username must not have (RFC 8265)", ErrMalformed)
	}
	if len(folded) > MaxNameLength {
		return "", fmt.Errorf("%w: longer than %d bytes", ErrMalformed, MaxNameLength)
	}
	return Name(folded), nil
}

// Roles are sorted, and each is there once.
type Roles []string

var role = regexp.MustCompile(`^[a-z][a-z0-9._:-]{0,63}$`)

// ParseRoles checks role names. Its error matches ErrMalformed.
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
