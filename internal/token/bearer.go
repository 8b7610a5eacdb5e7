package token

import "strings"

// Bearer returns the token in the values of the metadata `authorization` (RFC 6750
// section 2.1). ok is false unless there is exactly one value "Bearer TOKEN": of two
// values, two readers could take different ones. The case of the scheme does not
// matter (RFC 9110 section 11.1). The token is not checked.
func Bearer(values []string) (token string, ok bool) {
	if len(values) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	return token, ok && strings.EqualFold(scheme, "bearer")
}
