// Package token owns the bytes of an access token: its claims, their strict
// parsing, and signing, by golang-jwt's signing methods. A token is a JWS in
// compact form (RFC 7515 section 7.1) after the JWT profile for access tokens
// (RFC 9068), held to the best current practices of RFC 8725.
//
// It knows no policy and no clock. Parse says that a token is well formed and
// was signed by the key that it names; whether its issuer, audience, expiry and
// session are good enough is for the caller to judge. There is no way to look
// into a token without checking its signature.
//
// Everything here may be used from several goroutines at once.
package token

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
)

// Type is the header's typ, which keeps other JWTs that the same keys might
// ever sign from passing as access tokens (RFC 9068 section 2.1).
const Type = "at+jwt"

// MaxLength is the longest token, in bytes. Parse looks at its length before
// anything else, so what a stranger's bytes can cost is bounded; Sign makes none
// that is longer. It is what common servers allow for all of a request's headers.
const MaxLength = 8192

// ErrInvalid is what every error of Parse matches by errors.Is. The text beside
// it names the check that failed and repeats nothing of the token.
var ErrInvalid = errors.New("token: invalid")

const (
	// endOfTime is the first second that a token's times cannot name: a
	// protobuf Timestamp, in which they travel on, ends with the year 9999.
	endOfTime = 253402300800
	// maxVersion is the largest integer that every JSON reader takes exactly
	// (RFC 7493 section 2.2).
	maxVersion = 1<<53 - 1
)

// Claims are what an access token says (RFC 9068 section 2.2). All are required;
// Roles alone may be empty.
type Claims struct {
	Issuer    string // iss
	Subject   string // sub, the user's id
	ID        string // jti
	SessionID string // sid
	Username  string // username
	Audience  []string
	Roles     []string
	IssuedAt  time.Time // iat, in whole seconds
	ExpiresAt time.Time // exp, in whole seconds, after IssuedAt
	Version   int64     // ver, the user's token version
}

// wireClaims gives the claims the shape in which golang-jwt writes them.
type wireClaims struct {
	jwt.RegisteredClaims
	SessionID string   `json:"sid"`
	Username  string   `json:"username"`
	Roles     []string `json:"roles"`
	Version   int64    `json:"ver"`
}

// Sign makes the access token that says c. Fractions of a second are cut off.
// What it signs, Parse accepts: claims that Parse would refuse are an error, as
// is a token that would be longer than MaxLength.
func Sign(key *SigningKey, c *Claims) (string, error) {
	if key == nil || key.secret == nil || c == nil {
		return "", errors.New("token: signing needs a key and claims")
	}
	if name := c.malformed(); name != "" {
		return "", fmt.Errorf("token: signing: claim %s is missing or malformed", name)
	}
	public := key.secret.public
	t := jwt.NewWithClaims(public.alg.method(), c.wire())
	t.Header["typ"] = Type
	t.Header["kid"] = public.kid
	raw, err := t.SignedString(key.secret.private)
	if err != nil {
		return "", fmt.Errorf("token: signing with key %s: %w", public.kid, err)
	}
	if len(raw) > MaxLength {
		return "", fmt.Errorf("token: signing: %d bytes are more than %d", len(raw), MaxLength)
	}
	return raw, nil
}

func (c *Claims) wire() wireClaims {
	return wireClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    c.Issuer,
			Subject:   c.Subject,
			Audience:  c.Audience,
			ExpiresAt: jwt.NewNumericDate(c.ExpiresAt),
			IssuedAt:  jwt.NewNumericDate(c.IssuedAt),
			ID:        c.ID,
		},
		SessionID: c.SessionID,
		Username:  c.Username,
		// Never nil, which would be written as null.
		Roles:   append([]string{}, c.Roles...),
		Version: c.Version,
	}
}

// malformed returns the name of a claim whose value no token may have, or
// nothing if all are good. Sign and Parse share it, so they cannot disagree.
func (c *Claims) malformed() string {
	iat, exp := c.IssuedAt.Unix(), c.ExpiresAt.Unix()
	switch {
	case !goodText(c.Issuer):
		return "iss"
	case !goodText(c.Subject):
		return "sub"
	case !goodText(c.ID):
		return "jti"
	case !goodText(c.SessionID):
		return "sid"
	case !goodText(c.Username):
		return "username"
	case len(c.Audience) == 0 || !goodTexts(c.Audience):
		return "aud"
	case !goodTexts(c.Roles):
		return "roles"
	case iat <= 0 || iat >= endOfTime:
		return "iat"
	// A life that ends before it begins is no policy's to allow, and a caller
	// who bounds lifetimes from above alone would let it pass.
	case exp <= iat || exp >= endOfTime:
		return "exp"
	case c.Version < 0 || c.Version > maxVersion:
		return "ver"
	}
	return ""
}

// goodText refuses the empty string, and the replacement character besides
// invalid UTF-8: JSON decoding puts it where bytes or half a surrogate pair were
// lost, so two different texts would become one (RFC 8259 section 8.2).
func goodText(s string) bool {
	return s != "" && !strings.ContainsRune(s, utf8.RuneError)
}

func goodTexts(list []string) bool {
	for _, s := range list {
		if !goodText(s) {
			return false
		}
	}
	return true
}
