package token

import (
	"crypto"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// MaxForeignLength bounds the length of another issuer's token, in bytes. Tokens of CI
	// systems with all their claims have 2 KiB.
	MaxForeignLength = 16 << 10
	maxForeignKID    = 256 // bytes
)

// foreignMethods maps the algorithms of other issuers to golang-jwt's implementation. Every
// algorithm is asymmetric: under a symmetric algorithm, the public key would be the secret that
// signs tokens (RFC 8725 section 2.1).
var foreignMethods = map[string]jwt.SigningMethod{
	"EdDSA": jwt.SigningMethodEdDSA,
	"ES256": jwt.SigningMethodES256, "ES384": jwt.SigningMethodES384, "ES512": jwt.SigningMethodES512,
	"RS256": jwt.SigningMethodRS256, "RS384": jwt.SigningMethodRS384, "RS512": jwt.SigningMethodRS512,
	"PS256": jwt.SigningMethodPS256, "PS384": jwt.SigningMethodPS384, "PS512": jwt.SigningMethodPS512,
}

// foreignTypes lists the values of `typ`, in lower case, that mark a JWT or an assertion for an
// authorization grant (RFC 7519 section 5.1, draft-ietf-oauth-rfc7523bis). A token of another
// type, such as an access token, was made for another use.
var foreignTypes = []string{"jwt", "jose", "authorization-grant+jwt"}

var errForeignType = fmt.Errorf("%w: type of another use", ErrInvalid)

// Foreign holds what a token of another issuer says of itself, before the signature is
// checked.
type Foreign struct{ Issuer, Algorithm, KID string }

// ParseForeign checks the form, the header and the signature of a JWT of another issuer (RFC
// 7519), and returns the claims: objects are map[string]any, and numbers are json.Number.
// ParseForeign does not judge the claims: the caller must check the issuer, the audience and
// the times.
//
// find returns the public key of the issuer with the kid, if the key is for the algorithm.
// ParseForeign reads the claim `iss` before the check of the signature, since `iss` decides
// which keys are right.
//
// ParseForeign ignores header parameters that it does not know, and keys or addresses of keys
// in the header.
//
// Errors: ErrInvalid for a malformed token and for a wrong signature; those of find.
func ParseForeign(raw string, find func(Foreign) (crypto.PublicKey, error)) (map[string]any, error) {
	if len(raw) > MaxForeignLength {
		return nil, errLength
	}
	p, ok := split(raw)
	if !ok {
		return nil, errForm
	}
	says, err := p.foreignHeader()
	if err != nil {
		return nil, err
	}
	claims, ok := decodeClaims(p.payload)
	if says.Issuer, _ = claims["iss"].(string); !ok || badText(says.Issuer) {
		return nil, errClaims
	}
	signature, err := segments.DecodeString(p.signature)
	if err != nil {
		return nil, errForm
	}
	key, err := find(says)
	if err != nil {
		return nil, err
	}
	if foreignMethods[says.Algorithm].Verify(p.input, signature, key) != nil {
		return nil, errSignature
	}
	return claims, nil
}

func (p parts) foreignHeader() (Foreign, error) {
	header, ok := decodeObject(p.header, make([]member, 0, usualMembers))
	if !ok {
		return Foreign{}, errHeader
	}
	// The parameters crit and b64 change how a token must be read, and no extension is
	// supported (RFC 7515 section 4.1.11, RFC 7797).
	if header.has("crit") || header.has("b64") {
		return Foreign{}, errForbidden
	}
	says, typ := Foreign{Algorithm: header.text("alg"), KID: header.text("kid")}, "JWT"
	if header.has("typ") {
		typ = header.text("typ")
	}
	switch {
	case header.bad != "" || badText(says.KID) || len(says.KID) > maxForeignKID:
		return Foreign{}, errHeader
	case foreignMethods[says.Algorithm] == nil:
		return Foreign{}, errAlgorithm
	// Media types are compared without regard to case, and a name without a slash stands for
	// the media type application/NAME (RFC 7515 section 4.1.9).
	case !slices.Contains(foreignTypes, strings.TrimPrefix(strings.ToLower(typ), "application/")):
		return Foreign{}, errForeignType
	}
	return says, nil
}

// decodeClaims decodes a base64url part with one JSON object in UTF-8. decodeClaims refuses a
// name that is repeated in an object, at any depth: two readers might see two different
// tokens (RFC 7519 section 4).
func decodeClaims(part string) (map[string]any, bool) {
	data, err := segments.DecodeString(part)
	if err != nil || !utf8.Valid(data) {
		return nil, false
	}
	s := scanner{string(data)}
	claims, ok := s.decode(maxDepth)
	object, isObject := claims.(map[string]any)
	return object, ok && isObject && s.ended()
}

// decode reads a value as [scanner.value] does, and decodes the value in the same pass: a forged
// token chooses how deep its claims are nested. decode refuses an object with a repeated name.
func (s *scanner) decode(depth int) (any, bool) {
	switch {
	case depth > 0 && s.peek('{'):
		object := map[string]any{}
		ok := s.list('{', '}', func() bool {
			name, ok := s.name()
			if _, twice := object[name]; !ok || twice {
				return false
			}
			object[name], ok = s.decode(depth - 1)
			return ok
		})
		return object, ok
	case depth > 0 && s.peek('['):
		array := []any{}
		ok := s.list('[', ']', func() bool {
			element, ok := s.decode(depth - 1)
			array = append(array, element)
			return ok
		})
		return array, ok
	}
	value, ok := s.value(0)
	if !ok {
		return nil, false
	}
	switch value[0] {
	case '"':
		return text(value)
	case 't', 'f':
		return value == "true", true
	case 'n':
		return nil, true
	}
	return json.Number(value), true
}
