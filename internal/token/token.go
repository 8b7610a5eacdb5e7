// Package token owns the bytes of an access token: the claims, strict parsing, and
// signing by golang-jwt's signing methods. A token is a JWS in compact form
// (RFC 7515 section 7.1) after the JWT profile for access tokens (RFC 9068), with
// the best current practices of RFC 8725.
//
// The package knows no policy and no clock. [Parse] checks the form, and the
// signature by the key in the header's kid. The caller of Parse must check the
// issuer, the audience, the expiry and the session. The package exports no way to
// read a token without a check of the signature.
//
// All functions and methods are safe for concurrent use.
package token

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Type is the value of the header parameter typ. Parse refuses a JWT of another type,
// even if one of our keys has signed the JWT (RFC 9068 section 2.1).
const Type = "at+jwt"

// MaxLength bounds a token's length, in bytes. Parse checks the length first, to
// bound the cost of a forged token. Sign returns an error for a longer token. Common
// servers allow 8192 bytes for all headers of a request together.
const MaxLength = 8192

// ErrInvalid matches every error of Parse, by errors.Is. The error's text names the
// failed check and repeats no byte of the token.
var ErrInvalid = errors.New("token: invalid")

const (
	// endOfTime bounds iat and exp, in seconds since 1970: iat and exp must lie below endOfTime.
	// The first second of the year 10000 does not fit a protobuf Timestamp, and
	// RPC responses carry the times as Timestamps.
	endOfTime = 253402300800
	// maxVersion bounds ver: every JSON reader reads integers up to 2⁵³-1 without
	// rounding (RFC 7493 section 2.2).
	maxVersion = 1<<53 - 1
)

// MaxActors bounds the actors of a token (the services that act for the subject): a chain of calls
// across more services is most often a mistake in a program. Each actor adds some 110 bytes to
// every call.
const MaxActors = 5

// RoleForm is the form of a role, as a regular expression.
const RoleForm = `[a-z][a-z0-9._:-]{0,63}`

// role is [RoleForm] without the bound of the length, with which the program of the regular
// expression takes 50 KiB.
var role = regexp.MustCompile(`^[a-z][a-z0-9._:-]*$`)

// maxRole is the longest role that [RoleForm] allows, in bytes.
const maxRole = 64

// IsRole reports whether a user can have a role with this name. Sign and Parse do not call
// IsRole: package user gives a user only roles for which IsRole returns true.
func IsRole(name string) bool { return len(name) <= maxRole && role.MatchString(name) }

// Claims holds the claims of an access token (RFC 9068 section 2.2). Every field except
// SessionID, ClientID, Roles and Actors must have a value.
type Claims struct {
	Issuer    string // the claim iss
	Subject   string // the claim sub, the user's id
	ID        string // the claim jti
	SessionID string // the claim sid; empty for a service account, which has no session
	ClientID  string // the claim client_id, for verifiers that demand the claim; empty: no such claim
	Username  string // the claim username
	Audience  []string
	Roles     []string
	IssuedAt  time.Time // the claim iat, in whole seconds
	ExpiresAt time.Time // the claim exp, in whole seconds, after IssuedAt
	Version   int64     // the claim ver, the user's token version
	// Actors holds the services that act for the subject (claim act, RFC 8693 section 4.1), the
	// service that called last first; at most MaxActors. nil: the subject itself calls.
	Actors []Actor
}

// Actor holds a member of the claim act. Every field must have a value.
type Actor struct {
	Subject  string // the member sub, the id of the service account
	Username string // the member username
	Version  int64  // the member ver, the token version of the service account
}

// Sign returns an access token with the claims c. Sign cuts fractions of a second
// off the times. Parse accepts every token from Sign.
//
// Errors: an error without a sentinel if key or c is nil or empty, if Parse refuses
// one of the claims, or if the token is longer than MaxLength.
func Sign(key *SigningKey, c *Claims) (string, error) {
	if key == nil || key.secret == nil || c == nil {
		return "", errors.New("token: signing needs a key and claims")
	}
	if name := c.malformed(); name != "" {
		return "", fmt.Errorf("token: signing: claim %s is missing or malformed", name)
	}
	payload, err := json.Marshal(c.wire())
	if err != nil {
		return "", fmt.Errorf("token: signing: %w", err)
	}
	input := key.secret.header + "." + base64.RawURLEncoding.EncodeToString(payload)
	public := key.secret.public
	signature, err := methods[public.alg].Sign(input, key.secret.private)
	if err != nil {
		return "", fmt.Errorf("token: signing with key %s: %w", public.kid, err)
	}
	raw := input + "." + base64.RawURLEncoding.EncodeToString(signature)
	if len(raw) > MaxLength {
		return "", fmt.Errorf("token: signing: token has %d bytes, at most %d allowed", len(raw), MaxLength)
	}
	return raw, nil
}

// wireClaims holds the claims as encoding/json writes them. The fields are in order of their
// names.
type wireClaims struct {
	Act      *wireActor `json:"act,omitempty"`
	Aud      []string   `json:"aud"`
	ClientID string     `json:"client_id,omitempty"`
	Exp      int64      `json:"exp"`
	Iat      int64      `json:"iat"`
	Iss      string     `json:"iss"`
	Jti      string     `json:"jti"`
	Roles    []string   `json:"roles"`
	Sid      string     `json:"sid,omitempty"`
	Sub      string     `json:"sub"`
	Username string     `json:"username"`
	Ver      int64      `json:"ver"`
}

type wireActor struct {
	Act      *wireActor `json:"act,omitempty"`
	Sub      string     `json:"sub"`
	Username string     `json:"username"`
	Ver      int64      `json:"ver"`
}

// wire returns the claims for encoding/json.
func (c *Claims) wire() *wireClaims {
	wire := &wireClaims{
		Aud: c.Audience, ClientID: c.ClientID, Exp: c.ExpiresAt.Unix(), Iat: c.IssuedAt.Unix(), Iss: c.Issuer, Jti: c.ID,
		Roles: c.Roles, Sid: c.SessionID, Sub: c.Subject, Username: c.Username, Ver: c.Version,
	}
	if wire.Roles == nil {
		wire.Roles = []string{} // encoding/json writes a nil slice as null, which Parse refuses
	}
	// The actor that called last is outermost (RFC 8693 section 4.1), so the loop begins with
	// the innermost actor.
	for _, a := range slices.Backward(c.Actors) {
		wire.Act = &wireActor{Act: wire.Act, Sub: a.Subject, Username: a.Username, Ver: a.Version}
	}
	return wire
}

// malformed returns the name of the first claim with a forbidden value, or the empty
// string. Sign and Parse both call malformed, so Parse accepts what Sign has signed.
func (c *Claims) malformed() string {
	iat, exp := c.IssuedAt.Unix(), c.ExpiresAt.Unix()
	switch {
	case badText(c.Issuer):
		return "iss"
	case badText(c.Subject):
		return "sub"
	case badText(c.ID):
		return "jti"
	case c.SessionID != "" && badText(c.SessionID):
		return "sid"
	case c.ClientID != "" && badText(c.ClientID):
		return "client_id"
	case badText(c.Username):
		return "username"
	case len(c.Audience) == 0 || slices.ContainsFunc(c.Audience, badText):
		return "aud"
	case slices.ContainsFunc(c.Roles, badText):
		return "roles"
	case iat <= 0 || iat >= endOfTime:
		return "iat"
	// A verifier compares exp-iat with the longest allowed lifetime, and a negative
	// lifetime would pass.
	case exp <= iat || exp >= endOfTime:
		return "exp"
	case badVersion(c.Version):
		return "ver"
	case len(c.Actors) > MaxActors || slices.ContainsFunc(c.Actors, Actor.malformed):
		return "act"
	}
	return ""
}

func (a Actor) malformed() bool {
	return badText(a.Subject) || badText(a.Username) || badVersion(a.Version)
}

func badVersion(v int64) bool { return v < 0 || v > maxVersion }

// badText reports whether s is empty, is invalid UTF-8, or has the replacement character
// U+FFFD or a zero byte. JSON decoding writes U+FFFD in place of a broken byte or half a
// surrogate pair, so two different texts would be read as the same text (RFC 8259 section
// 8.2). PostgreSQL would refuse a query with a zero byte.
func badText(s string) bool {
	return s == "" || strings.ContainsRune(s, utf8.RuneError) || strings.IndexByte(s, 0) >= 0
}
