package token

import (
	"fmt"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// Made once, so that refusing a token allocates next to nothing.
var (
	errLength    = fmt.Errorf("%w: too long", ErrInvalid)
	errForm      = fmt.Errorf("%w: not a JWS in compact form", ErrInvalid)
	errHeader    = fmt.Errorf("%w: malformed header", ErrInvalid)
	errCritical  = fmt.Errorf("%w: header with a parameter that is never accepted", ErrInvalid)
	errType      = fmt.Errorf("%w: not an access token", ErrInvalid)
	errKey       = fmt.Errorf("%w: unknown key", ErrInvalid)
	errAlgorithm = fmt.Errorf("%w: not the algorithm of its key", ErrInvalid)
	errSignature = fmt.Errorf("%w: wrong signature", ErrInvalid)
	errClaims    = fmt.Errorf("%w: malformed claims", ErrInvalid)
	errNotBefore = fmt.Errorf("%w: claim nbf", ErrInvalid)
)

// segments decodes base64url and refuses set bits in what is left over of the
// last character, which would give one token several spellings.
var segments = jwt.NewParser(jwt.WithStrictDecoding())

// forbidden header parameters would have us act on the word of a header that
// nobody has checked yet: crit and b64 (RFC 7515 section 4.1.11, RFC 7797) change
// how the token is read, and we understand no extension; the others bring a key
// along or say where to fetch one (RFC 8725 section 3.10). They would be ignored
// otherwise. Our issuer sets none of them, so a token with one isn't ours.
var forbidden = [...]string{"crit", "b64", "jwk", "jku", "x5u", "x5c"}

// Parse checks the form, type, key and signature of an access token, in this
// order, and returns its claims. Every error matches ErrInvalid.
//
// It knows no clock: exp and iat are present, well formed and in order, and the
// caller must compare them with the time. The issuer, audience, session and
// version are the caller's to judge as well.
//
// find returns the key with an id, or nil. The key decides which algorithm a
// token must have; the header has no say in it (RFC 8725 section 3.1). Other
// header parameters and claims than our own are ignored, so that a newer issuer
// may add some, but for those that could change what the token means.
//
// The claims are decoded after the signature was found good, so no stranger's
// claims are ever looked at.
func Parse(raw string, find func(kid string) *PublicKey) (*Claims, error) {
	if len(raw) > MaxLength {
		return nil, errLength
	}
	p, ok := split(raw)
	if !ok {
		return nil, errForm
	}
	key, err := p.key(find)
	if err != nil {
		return nil, err
	}
	if err := key.verify(p); err != nil {
		return nil, err
	}
	return p.claims()
}

// parts are a token's three, still in base64url, and the first two with their
// dot, which is what was signed (RFC 7515 section 5.1).
type parts struct {
	header, payload, signature string
	input                      string
}

// split takes a token apart if it consists of three parts of the base64url
// alphabet. The alphabet is checked here because Go's decoder skips line breaks
// wherever they stand.
func split(raw string) (parts, bool) {
	var dots [2]int
	n := 0
	for i := range len(raw) {
		switch c := raw[i]; {
		case isBase64URL(c):
		case c == '.' && n < len(dots):
			dots[n] = i
			n++
		default:
			return parts{}, false
		}
	}
	if n != len(dots) {
		return parts{}, false
	}
	return parts{
		header:    raw[:dots[0]],
		payload:   raw[dots[0]+1 : dots[1]],
		signature: raw[dots[1]+1:],
		input:     raw[:dots[1]],
	}, true
}

func isBase64URL(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// key reads the header and returns the key that it names, if that is one for
// tokens with this header.
func (p parts) key(find func(kid string) *PublicKey) (*PublicKey, error) {
	header, ok := decodeObject(p.header)
	if !ok {
		return nil, errHeader
	}
	for _, name := range forbidden {
		if header.has(name) {
			return nil, errCritical
		}
	}
	alg, typ, kid := header.text("alg"), header.text("typ"), header.text("kid")
	if header.bad != "" || alg == "" || kid == "" || find == nil {
		return nil, errHeader
	}
	if !isAccessToken(typ) {
		return nil, errType
	}
	key := find(kid)
	// The kid is compared again because find is the caller's, and because a
	// zero PublicKey has none.
	if key == nil || key.kid != kid {
		return nil, errKey
	}
	if alg != string(key.alg) {
		return nil, errAlgorithm
	}
	return key, nil
}

// isAccessToken accepts both spellings that RFC 9068 section 4 names. They are
// media types, which are compared without regard to case (RFC 7515 section 4.1.9).
func isAccessToken(typ string) bool {
	return strings.EqualFold(typ, Type) || strings.EqualFold(typ, "application/"+Type)
}

// claims decodes the payload, whose signature must have been checked.
func (p parts) claims() (*Claims, error) {
	payload, ok := decodeObject(p.payload)
	if !ok {
		return nil, errClaims
	}
	// Our issuer never sets nbf. It may be compared with a clock alone, which
	// isn't here, and a token whose holder must still wait is not to pass
	// because everyone believed that someone else had looked.
	if payload.has("nbf") {
		return nil, errNotBefore
	}
	c := &Claims{
		Issuer:    payload.text("iss"),
		Subject:   payload.text("sub"),
		ID:        payload.text("jti"),
		SessionID: payload.text("sid"),
		Username:  payload.text("username"),
		Audience:  payload.textOrTexts("aud"),
		Roles:     payload.texts("roles"),
		IssuedAt:  payload.time("iat"),
		ExpiresAt: payload.time("exp"),
		Version:   payload.integer("ver"),
	}
	name := payload.bad
	if name == "" {
		name = c.malformed()
	}
	if name != "" {
		return nil, fmt.Errorf("%w: claim %s is missing or malformed", ErrInvalid, name)
	}
	return c, nil
}

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
