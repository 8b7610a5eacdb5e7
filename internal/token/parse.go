package token

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
)

// Parse returns one of these errors, which are built once to keep the refusal of a forged
// token cheap.
var (
	errLength    = fmt.Errorf("%w: too long", ErrInvalid)
	errForm      = fmt.Errorf("%w: not a JWS in compact form", ErrInvalid)
	errHeader    = fmt.Errorf("%w: malformed header", ErrInvalid)
	errForbidden = fmt.Errorf("%w: forbidden header parameter", ErrInvalid)
	errType      = fmt.Errorf("%w: not an access token", ErrInvalid)
	errKey       = fmt.Errorf("%w: unknown key", ErrInvalid)
	errAlgorithm = fmt.Errorf("%w: algorithm does not fit the key", ErrInvalid)
	errSignature = fmt.Errorf("%w: wrong signature", ErrInvalid)
	errClaims    = fmt.Errorf("%w: malformed claims", ErrInvalid)
	errNotBefore = fmt.Errorf("%w: forbidden claim nbf", ErrInvalid)
)

// segments decodes base64url. Strict refuses set bits in the unused part of the last character,
// so the same bytes have a single spelling.
var segments = base64.RawURLEncoding.Strict()

// forbidden lists header parameters that Parse refuses and does not merely ignore.
// crit and b64 change how a token must be read (RFC 7515 section 4.1.11, RFC 7797),
// and Parse supports no extension. The four parameters after b64 carry a key or a
// key's address in a header without a checked signature (RFC 8725 section 3.10).
// Watchword's issuer sets none of the six parameters.
var forbidden = []string{"crit", "b64", "jwk", "jku", "x5u", "x5c"}

// Parse checks the form, type, key and signature of an access token, in this order,
// and returns the claims.
//
// Parse knows no clock: exp and iat are well formed and in order, and the caller must
// compare both with the time. The caller must also check the issuer, the audience,
// the session and the version.
//
// find returns the key with the given id, or nil. The key decides the algorithm; a
// token with a different alg in the header is refused (RFC 8725 section 3.1). Parse
// ignores unknown header parameters and claims, so a newer issuer can add parameters and
// claims. Parse refuses what could change the token's meaning: the parameters listed in
// forbidden, the claim nbf, and an unknown member of the claim act.
//
// Parse decodes the claims after the check of the signature, so a forged token's
// claims stay unread.
//
// Errors: ErrInvalid for every refused token.
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

// parts holds the three parts of a token, still in base64url.
type parts struct {
	header, payload, signature string
	input                      string // header, dot, payload: the signed bytes (RFC 7515 section 5.1)
}

// split cuts a token at the two dots. split returns false for fewer dots, and for a token with
// a line break, which Go's decoder of base64url skips. The decoder refuses every other character
// outside of the alphabet, also further dots.
func split(raw string) (parts, bool) {
	header, rest, _ := strings.Cut(raw, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok || strings.IndexByte(raw, '\n') >= 0 || strings.IndexByte(raw, '\r') >= 0 {
		return parts{}, false
	}
	return parts{header, payload, signature, raw[:len(raw)-len(signature)-1]}, true
}

// key checks the header, and returns the key for the header's kid.
func (p parts) key(find func(kid string) *PublicKey) (*PublicKey, error) {
	header, ok := decodeObject(p.header, make([]member, 0, usualMembers))
	if !ok {
		return nil, errHeader
	}
	if slices.ContainsFunc(forbidden, header.has) {
		return nil, errForbidden
	}
	alg, typ, kid := header.text("alg"), header.text("typ"), header.text("kid")
	if header.bad != "" || alg == "" || kid == "" || find == nil {
		return nil, errHeader
	}
	// RFC 9068 section 4 allows two spellings of typ. Media types are compared without
	// regard to case (RFC 7515 section 4.1.9).
	if !strings.EqualFold(typ, Type) && !strings.EqualFold(typ, "application/"+Type) {
		return nil, errType
	}
	key := find(kid)
	// find belongs to the caller and may return a wrong key, or a zero PublicKey
	// without a kid. Comparing the kid refuses either mistake.
	if key == nil || key.kid != kid {
		return nil, errKey
	}
	if alg != string(key.alg) {
		return nil, errAlgorithm
	}
	return key, nil
}

// claims decodes the payload. The caller must have checked the signature.
func (p parts) claims() (*Claims, error) {
	payload, ok := decodeObject(p.payload, make([]member, 0, usualMembers))
	if !ok {
		return nil, errClaims
	}
	// Parse has no clock to compare nbf with, and Claims has no field for nbf, so no
	// caller would check nbf. Watchword's issuer never sets nbf.
	if payload.has("nbf") {
		return nil, errNotBefore
	}
	c := &Claims{
		Issuer:    payload.text("iss"),
		Subject:   payload.text("sub"),
		ID:        payload.text("jti"),
		SessionID: payload.optional("sid"),
		ClientID:  payload.optional("client_id"),
		Username:  payload.text("username"),
		Audience:  payload.textOrTexts("aud"),
		Roles:     payload.texts("roles"),
		IssuedAt:  payload.time("iat"),
		ExpiresAt: payload.time("exp"),
		Version:   payload.integer("ver"),
		Actors:    payload.actors("act"),
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

// Bearer returns the token in values, the values of the metadata `authorization` (RFC
// 6750 section 2.1). ok is false unless there is exactly one value "Bearer TOKEN": of
// two values, one reader could take the first, and another reader the second. The case of the
// scheme does not matter (RFC 9110 section 11.1). One space or more can stand between the scheme
// and the token (section 11.4), and spaces and tabs around the whole value are no part of the
// value (section 5.5). Bearer does not verify the token.
func Bearer(values []string) (token string, ok bool) {
	if len(values) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(trimBlanks(values[0]), " ")
	return strings.TrimLeft(token, " "), ok && strings.EqualFold(scheme, "bearer")
}

// trimBlanks removes spaces and tabs around a text. Every call of a guarded service trims a
// token, and strings.Trim with two characters takes five times as long.
func trimBlanks(s string) string {
	blank := func(c byte) bool { return c == ' ' || c == '\t' }
	for s != "" && blank(s[0]) {
		s = s[1:]
	}
	for s != "" && blank(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}
