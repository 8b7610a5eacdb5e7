package user

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"golang.org/x/text/secure/precis"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/token"
)

// MaxNameLength is the largest length of a username, in bytes. ParseName checks the length
// before any other work on the name.
const MaxNameLength = 256

// maxRoles is the largest number of roles of a user. An access token with this number of roles
// stays below 8 KiB, even if every other claim is as long as allowed.
const maxRoles = 32

// maxAudiences is the largest number of audiences in each list of a service account: Audiences
// and DelegatesTo.
const maxAudiences = 32

// ErrMalformed means that a username, a role or an audience breaks a rule. An error that wraps
// ErrMalformed names the rule.
var ErrMalformed = errors.New("malformed")

// Name holds a username in its folded form (PRECIS UsernameCaseMapped, RFC 8265):
// "Alice" and "alice" are the same Name. Watchword compares and shows names in the folded form.
type Name string

// ParseName returns a username in its folded form.
//
// Errors: ErrMalformed.
func ParseName(s string) (Name, error) {
	if s == "" {
		return "", fmt.Errorf("%w: empty", ErrMalformed)
	}
	folded := s
	if len(s) <= MaxNameLength { // checked first, since the folding of a long text is much work
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
	return sortedSet(names, maxRoles, "roles")
}

// sortedSet returns names sorted and without duplicates. Errors: ErrMalformed for more names
// than most; the text of the error calls the names by the word in what, such as "roles".
func sortedSet(names []string, most int, what string) ([]string, error) {
	set := slices.Clone(names)
	slices.Sort(set)
	set = slices.Compact(set)
	if len(set) > most {
		return nil, fmt.Errorf("%w: more than %d %s", ErrMalformed, most, what)
	}
	return set, nil
}

// maxAudienceLength is the largest length of an audience, in bytes. The regular expression
// audience does not check the length: with a bound, the regular expression would take 0.3 MiB.
const maxAudienceLength = 256

// audience matches the name of a service in tokens. The name can be a URI. No character of the
// name needs an escape in JSON: the statement of the ordinary refresh (store.Spend) searches
// the name as text in a column with a JSON array.
var audience = regexp.MustCompile(`^[A-Za-z0-9._~:/?#@!$*+=-]+$`)

// AudienceForm is a text for error messages that tells the form of an audience.
var AudienceForm = fmt.Sprintf("%s, with at most %d characters", audience, maxAudienceLength)

// IsAudience reports whether name has the form of an audience.
func IsAudience(name string) bool {
	return len(name) <= maxAudienceLength && audience.MatchString(name)
}

// Audiences holds sorted audiences without duplicates.
type Audiences []string

// ParseAudiences checks and sorts the audiences of a service account. ParseAudiences refuses
// the audience of administration: a service that could forward a token for administration would
// administer in the name of every admin that calls the service.
//
// Errors: ErrMalformed.
func ParseAudiences(names []string) (Audiences, error) {
	for _, name := range names {
		if !IsAudience(name) {
			return nil, fmt.Errorf("%w: an audience is %s", ErrMalformed, AudienceForm)
		}
		if name == caller.AdminAudience {
			return nil, fmt.Errorf("%w: tokens for %s are for the server itself alone", ErrMalformed, name)
		}
	}
	return sortedSet(names, maxAudiences, "audiences")
}
