package federation

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/watchword-auth/watchword/internal/store"
)

var (
	// ErrInvalid means that the assertion is not a valid token of a trusted issuer for this
	// server.
	ErrInvalid = errors.New("not a valid assertion of a trusted issuer for this server")
	// ErrUnbound means that for a valid assertion no binding, or several bindings with equally
	// many claims, name an account.
	ErrUnbound = errors.New("no single binding names a service account for the assertion")
)

// refused is an [ErrInvalid] or an [ErrUnbound] with the reason, for the security record. The
// reason is a fixed text: an attacker may have written the assertion.
type refused struct {
	error
	issuer string // the name of the issuer; empty for an assertion of an unknown issuer
	why    string
}

func (e refused) Unwrap() error { return e.error }

// detail returns the reason for the security record, after the name of a known issuer.
func (e refused) detail() string {
	if e.issuer == "" {
		return e.why
	}
	return "issuer " + e.issuer + ": " + e.why
}

const (
	// leeway is how far the clock of an issuer is allowed to be ahead of the database's clock.
	leeway = time.Minute
	// endOfTime bounds the times in an assertion, in seconds since 1970: the first second of
	// the year 10000.
	endOfTime = 253402300800
	// maxExact bounds the numbers that a binding can ask for: JSON readers agree on integers up
	// to 2⁵³-1 (RFC 7493 section 2.2).
	maxExact = 1<<53 - 1
)

// assertion holds the claims of a foreign token with a right signature.
type assertion struct {
	*checked
	by                         *trusted
	subject                    string
	issued, notBefore, expires time.Time // notBefore is zero without the claim nbf
}

// judge checks the claims that need no clock (RFC 7523 section 3 and its revision
// draft-ietf-oauth-rfc7523bis). audience is the issuer of this server: an assertion with
// another audience, or with a second audience, was made for another server too, and the other
// server could present the assertion to this server.
//
// Errors: ErrInvalid.
func judge(c *checked, by *trusted, audience string) (*assertion, error) {
	a, claims := &assertion{checked: c, by: by}, c.claims
	a.subject, _ = claims["sub"].(string)
	var okIat, okExp, okNbf bool
	a.issued, okIat = numericDate(claims["iat"])
	a.expires, okExp = numericDate(claims["exp"])
	if _, has := claims["nbf"]; has {
		a.notBefore, okNbf = numericDate(claims["nbf"])
	} else {
		okNbf = true
	}
	switch {
	case !isText(a.subject):
		return nil, a.invalid("sub is missing or malformed")
	case !isAudience(claims["aud"], audience):
		return nil, a.invalid("aud is not exactly the issuer of this server")
	case !okIat || !okExp || !okNbf:
		return nil, a.invalid("iat or exp is missing, or a time is malformed")
	case !a.expires.After(a.issued):
		return nil, a.invalid("exp is not after iat")
	case a.expires.Sub(a.issued) > by.row.MaxLifetime:
		return nil, a.invalid("lives longer than max_lifetime")
	}
	return a, nil
}

// checkTime compares the times with the database's clock. The clock of an issuer is allowed to
// be ahead by leeway. The claim exp has no leeway: whatever the clocks are, no assertion is
// accepted for longer than the issuer said.
//
// Errors: ErrInvalid.
func (a *assertion) checkTime(now time.Time) error {
	switch ahead := now.Add(leeway); {
	case !now.Before(a.expires):
		return a.invalid("has expired")
	case a.issued.After(ahead):
		return a.invalid("iat is in the future")
	case a.notBefore.After(ahead):
		return a.invalid("nbf is in the future")
	}
	return nil
}

func (a *assertion) invalid(why string) error { return refused{ErrInvalid, a.by.row.Name, why} }
func (a *assertion) unbound(why string) error { return refused{ErrUnbound, a.by.row.Name, why} }

// isAudience reports whether aud is exactly one audience: a string, or an array with one
// string.
func isAudience(aud any, want string) bool {
	if list, ok := aud.([]any); ok && len(list) == 1 {
		aud = list[0]
	}
	return aud == want
}

// numericDate reads a NumericDate (RFC 7519 section 2), which may have a fraction.
func numericDate(value any) (time.Time, bool) {
	number, ok := value.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	seconds, err := number.Float64()
	if err != nil || seconds <= 0 || seconds >= endOfTime {
		return time.Time{}, false
	}
	return time.UnixMicro(int64(seconds * 1e6)).UTC(), true
}

// isText reports whether a claim can be compared: a decoded JSON string has U+FFFD in place of
// half a surrogate pair, so that two different texts would be read as the same text (RFC 8259
// section 8.2).
func isText(s string) bool {
	return s != "" && store.IsText(s) && !strings.ContainsRune(s, utf8.RuneError)
}

// choose returns the account that the bindings name for the assertion: of the bindings that
// match, the binding with the most claims names the account.
//
// Errors: ErrUnbound.
func (a *assertion) choose(bindings []*store.BoundUser) (*store.User, error) {
	var best *store.BoundUser
	tie := false
	for _, b := range bindings {
		if !a.matches(b.Claims) {
			continue
		}
		switch {
		case best == nil || len(b.Claims) > len(best.Claims):
			best, tie = b, false
		case len(b.Claims) == len(best.Claims):
			tie = true
		}
	}
	switch {
	case len(bindings) > maxOfSubject:
		return nil, a.unbound("the subject has too many bindings")
	case best == nil:
		return nil, a.unbound("no binding matches")
	case tie:
		return nil, a.unbound("several bindings match equally well")
	}
	return &best.User, nil
}

// matches reports whether the assertion has every claim of a binding, with exactly the bound
// value.
func (a *assertion) matches(bound []store.BoundClaim) bool {
	return !slices.ContainsFunc(bound, func(c store.BoundClaim) bool { return !isValue(find(a.claims, c.Path), c.Value) })
}

// find returns the value at a path in the claims; nil if the claims have no such path.
func find(claims map[string]any, path []string) any {
	var value any = claims
	for _, name := range path {
		object, _ := value.(map[string]any) // a nil map has no members
		value = object[name]
	}
	return value
}

// isValue reports whether a claim has the value of a binding. An array or an object never
// has the value of a binding.
func isValue(claim, want any) bool {
	switch claim := claim.(type) {
	case string:
		return claim == want && (claim == "" || isText(claim))
	case bool:
		return claim == want
	case json.Number:
		number, err := claim.Float64()
		return err == nil && number >= -maxExact && number <= maxExact && number == want
	}
	return false
}
