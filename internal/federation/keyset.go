package federation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

const (
	// maxKeySetLength bounds a document with keys, in bytes. The key sets of large public
	// issuers have up to 10 KiB.
	maxKeySetLength = 64 << 10
	maxKeys         = 100 // the largest number of keys of one issuer
	maxKIDLength    = 256 // the longest kid, in bytes
	// The bounds for RSA keys are the bounds of package token for the server's own keys.
	minModulusBits, maxModulusBits = 2048, 4096
	minExponent                    = 65537
)

// key is a public key of a trusted issuer.
type key struct {
	kid       string
	algorithm jose.SignatureAlgorithm // the only algorithm that the key is for
	public    crypto.PublicKey        // ed25519.PublicKey, *ecdsa.PublicKey or *rsa.PublicKey
}

// keySet holds the keys of a JSON Web Key Set after the check of each key. A keySet never
// changes.
type keySet struct {
	keys    []key        // the keys that can be used, in the order of the document
	refused []refusedKey // the keys that cannot be used
}

// refusedKey is a key that cannot be used. An issuer can publish a key that cannot be used
// here, for another purpose: SPIRE's key sets have keys for X.509 too (RFC 7517 section 5).
type refusedKey struct {
	place int // the place of the key in the document, counted from 1
	kid   string
	why   error
}

// find returns the key with a kid for an algorithm, and whether the set has the kid, for
// any algorithm. An assertion with an unknown kid can be signed by a newer key; an assertion
// with a known kid and an algorithm of another key is invalid.
func (s *keySet) find(kid, algorithm string) (found *key, known bool) {
	for i := range s.keys {
		if k := &s.keys[i]; k.kid == kid {
			if known = true; string(k.algorithm) == algorithm {
				return k, true
			}
		}
	}
	return nil, known
}

// kids returns the ids of the keys that can be used, sorted.
func (s *keySet) kids() []string {
	list := make([]string, 0, len(s.keys))
	for _, k := range s.keys {
		list = append(list, k.kid)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

var (
	// errPrivateKey means that a key has a private part or is a shared secret.
	errPrivateKey = errors.New("is private or secret: publish the public key alone")
	errForm       = errors.New("is not a JSON Web Key Set: a JSON object with the array `keys`")
)

// parseKeySet judges the keys of a JSON Web Key Set (RFC 7517 section 5). The text must be
// one JSON object in UTF-8 without repeated names. A key that cannot be used is listed in
// [keySet.refused] and does not keep other keys from use.
//
// Errors: a text for the admin, if the document is too long or has another form, has no key
// that can be used, has too many keys, or has two keys with one kid for one algorithm. If the
// document has no key that can be used, parseKeySet also returns the keySet.
func parseKeySet(document []byte) (*keySet, error) {
	if len(document) > maxKeySetLength {
		return nil, fmt.Errorf("is longer than %d bytes", maxKeySetLength)
	}
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	// The JSON decoder of go-jose compares names exactly and refuses repeated names.
	if !utf8.Valid(document) || json.Unmarshal(document, &raw) != nil || raw.Keys == nil {
		return nil, errForm
	}
	if len(raw.Keys) > maxKeys {
		return nil, fmt.Errorf("has more than %d keys", maxKeys)
	}
	set := &keySet{}
	for i, text := range raw.Keys {
		k, err := parseKey(text)
		if err != nil {
			set.refused = append(set.refused, refusedKey{place: i + 1, kid: k.kid, why: err})
			continue
		}
		if twin, _ := set.find(k.kid, string(k.algorithm)); twin != nil {
			return nil, fmt.Errorf("has two keys with the kid %q for %s", k.kid, k.algorithm)
		}
		set.keys = append(set.keys, k)
	}
	if len(set.keys) == 0 {
		return set, set.unusable()
	}
	return set, nil
}

// unusable returns the error for a set without a key that can be used. The text of the error
// tells about the first key: the keys of a set are usually of one kind.
func (s *keySet) unusable() error {
	if len(s.refused) == 0 {
		return errors.New("has no key")
	}
	return fmt.Errorf("has no key that can be used: %w", s.refused[0])
}

// Error returns why the key cannot be used, with the place and the kid of the key.
func (r refusedKey) Error() string {
	if r.kid == "" {
		return fmt.Sprintf("key %d %v", r.place, r.why)
	}
	return fmt.Sprintf("key %d (kid %q) %v", r.place, r.kid, r.why)
}

// Unwrap returns the reason why the key cannot be used.
func (r refusedKey) Unwrap() error { return r.why }

// parseKey checks one key. If the key has a kid, parseKey returns the kid also with an error.
func parseKey(text []byte) (k key, err error) {
	var members struct {
		KID        string   `json:"kid"`
		Operations []string `json:"key_ops"`
		// A key with a member from k to priv is refused: the members are the private parts of a
		// key by RFC 7518 section 6, RFC 8037 and RFC 9964. The member oth comes only with d.
		K    json.RawMessage `json:"k"`
		D    json.RawMessage `json:"d"`
		P    json.RawMessage `json:"p"`
		Q    json.RawMessage `json:"q"`
		DP   json.RawMessage `json:"dp"`
		DQ   json.RawMessage `json:"dq"`
		QI   json.RawMessage `json:"qi"`
		Priv json.RawMessage `json:"priv"`
	}
	if err := json.Unmarshal(text, &members); err != nil {
		return k, errors.New("is not a JSON Web Key, or repeats a name")
	}
	k.kid = members.KID[:min(len(members.KID), maxKIDLength)]
	for _, private := range []json.RawMessage{members.K, members.D, members.P, members.Q, members.DP, members.DQ, members.QI, members.Priv} {
		if private != nil {
			return k, errPrivateKey
		}
	}
	var jwk jose.JSONWebKey
	switch err := jwk.UnmarshalJSON(text); {
	case errors.Is(err, jose.ErrUnsupportedKeyType):
		return k, errors.New("has a type, a curve or a size that this server does not know")
	case err != nil:
		return k, errors.New("has members that do not fit together")
	case jwk.KeyID == "" || len(jwk.KeyID) > maxKIDLength:
		return k, fmt.Errorf("has no kid of 1 to %d bytes", maxKIDLength)
	case jwk.Use != "" && jwk.Use != "sig" && jwk.Use != "jwt-svid":
		return k, errors.New("has a `use` other than `sig` and `jwt-svid`")
	case members.Operations != nil && !slices.Contains(members.Operations, "verify"):
		return k, errors.New("has `key_ops` without `verify`")
	}
	k.public = jwk.Key
	k.algorithm, err = algorithmOf(jwk)
	return k, err
}

// algorithmOf returns the only algorithm that a key is for: the `alg` of the key, which must
// belong to the key's type. Without `alg`, a key is for the algorithm that issuers use most
// with the key's type. The algorithm in the header of an assertion never decides: an attacker
// chooses the header.
func algorithmOf(jwk jose.JSONWebKey) (jose.SignatureAlgorithm, error) {
	var possible []jose.SignatureAlgorithm // without `alg`, the key is for the first algorithm
	switch public := jwk.Key.(type) {
	case ed25519.PublicKey:
		possible = []jose.SignatureAlgorithm{jose.EdDSA}
	case *ecdsa.PublicKey:
		possible = []jose.SignatureAlgorithm{curves[public.Curve]}
	case *rsa.PublicKey:
		if n := public.N.BitLen(); n < minModulusBits || n > maxModulusBits || public.E < minExponent || public.E%2 == 0 {
			return "", fmt.Errorf("has a modulus outside %d to %d bits, or an exponent below %d", minModulusBits, maxModulusBits, minExponent)
		}
		possible = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
	default:
		return "", errors.New("has a type that this server does not know")
	}
	switch asked := jose.SignatureAlgorithm(jwk.Algorithm); {
	case asked == "" && (possible[0] == jose.ES384 || possible[0] == jose.ES512):
		return "", errors.New("has no `alg`, which a key on this curve needs")
	case asked == "":
		return possible[0], nil
	case !slices.Contains(possible, asked):
		return "", errors.New("has an `alg` of another type of key")
	default:
		return asked, nil
	}
}

// curves maps each curve to the algorithm for the curve (RFC 7518 section 3.4).
var curves = map[elliptic.Curve]jose.SignatureAlgorithm{
	elliptic.P256(): jose.ES256, elliptic.P384(): jose.ES384, elliptic.P521(): jose.ES512,
}
