package user

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/text/secure/precis"

	"github.com/watchword-auth/watchword/internal/token"
)

// MaxNameLength bounds a username, in bytes, before any work on the name.
const MaxNameLength = 256

// maxRoles bounds a user's roles, so that an access token stays below 8 KiB with every
// other claim at its bound.
const maxRoles = 32

// ErrMalformed means that a username or a role breaks a rule. The wrapping error names
// the rule.
var ErrMalformed = errors.New("malformed")

// Name holds a username in its folded form (PRECIS UsernameCaseMapped, RFC 8265):
// "Alice" and "alice" are the same Name. Names are compared and shown in this form.
type Name string

// ParseName returns a username in its folded form.
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

// ParseRoles checks and sorts role names.
//
// Errors: ErrMalformed.
func ParseRoles(names []string) (Roles, error) {
	for _, name := range names {
		if !token.IsRole(name) {
			return nil, fmt.Errorf("%w: a role is %s", ErrMalformed, token.RoleForm)
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
