package extauthz

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// accessOf reads the access rule of a route. extensions are the context_extensions, which Envoy
// takes from the configuration of the route: no client can set an extension. Without extensions,
// the rule asks for a valid token.
//
// Errors: an error for an unknown key and for an unknown value, since the operator may have meant
// a stricter rule; errors about the values of roles and audience come from AuthorizeByRule.
func accessOf(extensions map[string]string) (*watchwordv1.Access, error) {
	access := new(watchwordv1.Access)
	for _, key := range slices.Sorted(maps.Keys(extensions)) {
		value := extensions[key]
		switch {
		case key == "public" && value == "true":
			access.Public = true
		case key == "public" && value == "false":
		case key == "delegated" && value == "refuse":
			access.Delegated = watchwordv1.Access_REFUSE
		case key == "delegated" && value == "allow":
		case key == "roles":
			access.Roles = list(value)
		case key == "audience":
			access.Audience = list(value)
		case key == "public":
			return nil, fmt.Errorf("context_extensions: public must be true or false")
		case key == "delegated":
			return nil, fmt.Errorf("context_extensions: delegated must be refuse or allow")
		default:
			return nil, fmt.Errorf("context_extensions: unknown key %q: the keys are audience, delegated, public and roles", key)
		}
	}
	return access, nil
}

// list splits a value at commas. An empty value gives one empty name, which no rule allows:
// otherwise a list that was lost by mistake would admit every caller with a valid token.
func list(value string) []string {
	names := strings.Split(value, ",")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	return names
}
