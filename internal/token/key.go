package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// Algorithm holds the registered name of a signature algorithm (RFC 7518 section
// 3.1, RFC 8037 section 3.1).
type Algorithm string

// Access tokens are signed by one of these algorithms.
const (
	EdDSA Algorithm = "EdDSA" // EdDSA signs with Ed25519
	ES256 Algorithm = "ES256" // ECDSA with P-256 and SHA-256
	RS256 Algorithm = "RS256" // RSASSA-PKCS1-v1_5 with SHA-256
)

// ParseAlgorithm returns the algorithm with the name s. Names are case-sensitive
// (RFC 7515 section 4.1.1).
func ParseAlgorithm(s string) (Algorithm, error) {
	if methods[Algorithm(s)] == nil {
		return "", fmt.Errorf("token: unknown algorithm %q: want %s, %s or %s", s, EdDSA, ES256, RS256)
	}
	return Algorithm(s), nil
}

// methods maps each algorithm to golang-jwt's implementation. Package token has a map of
// its own, because any package in the process can change the table of jwt.GetSigningMethod.
var methods = map[Algorithm]jwt.SigningMethod{
	EdDSA: jwt.SigningMethodEdDSA,
	ES256: jwt.SigningMethodES256,
	RS256: jwt.SigningMethodRS256,
}

// PublicKey checks signatures, by a single algorithm. A PublicKey never changes.
type PublicKey struct {
	kid string
	alg Algorithm
	key crypto.PublicKey // ed25519.PublicKey, *ecdsa.PublicKey or *rsa.PublicKey
}

const (
	// kidLength is the length of a key id in characters: 96 bits of the thumbprint, so
	// two keys do not share a kid by chance.
	kidLength = 16
	// RFC 7518 section 3.3 asks for RSA keys of at least 2048 bits. A signature of more
	// than 4096 bits would use up much of MaxLength and be slow to check.
	minModulusBits = 2048
	maxModulusBits = 4096
	// minExponent comes from FIPS 186-5. With a smaller exponent, a single bug in
	// a check of the padding lets forged signatures pass.
	minExponent = 65537
)

// NewPublicKey copies an ed25519.PublicKey, an *ecdsa.PublicKey on P-256, or an
// *rsa.PublicKey of 2048 to 4096 bits. The key's type decides the algorithm.
//
// Errors: an error without a sentinel for another type and for an unsafe key: a point
// off the curve or of small order, or an exponent below 65537.
func NewPublicKey(key crypto.PublicKey) (*PublicKey, error) {
	k := &PublicKey{}
	var err error
	switch key := key.(type) {
	case ed25519.PublicKey:
		k.alg, k.key, err = EdDSA, slices.Clone(key), checkEdwards(key)
	case *ecdsa.PublicKey:
		k.alg = ES256
		k.key, err = cloneECDSA(key)
	case *rsa.PublicKey:
		k.alg = RS256
		k.key, err = cloneRSA(key)
	default:
		err = fmt.Errorf("token: unknown type of key %T", key)
	}
	if err != nil {
		return nil, err
	}
	k.kid = thumbprint(k)[:kidLength]
	return k, nil
}

func cloneECDSA(key *ecdsa.PublicKey) (*ecdsa.PublicKey, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return nil, errors.New("token: ECDSA key is not on P-256")
	}
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("token: ECDSA key: %w", err)
	}
	return parsePoint(point)
}

// parsePoint decodes a point, and refuses a point off the curve.
func parsePoint(uncompressed []byte) (*ecdsa.PublicKey, error) {
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), uncompressed)
	if err != nil {
		return nil, fmt.Errorf("token: ECDSA key: %w", err)
	}
	return key, nil
}

func cloneRSA(key *rsa.PublicKey) (*rsa.PublicKey, error) {
	if key == nil || key.N == nil {
		return nil, errors.New("token: RSA key is empty")
	}
	if n := key.N.BitLen(); n < minModulusBits || n > maxModulusBits || key.N.Sign() < 0 || key.N.Bit(0) == 0 {
		return nil, fmt.Errorf("token: RSA modulus is not an odd number of %d to %d bits", minModulusBits, maxModulusBits)
	}
	if key.E < minExponent || key.E > math.MaxInt32 || key.E%2 == 0 {
		return nil, fmt.Errorf("token: RSA exponent is not an odd number of 32 bits from %d", minExponent)
	}
	return &rsa.PublicKey{N: new(big.Int).Set(key.N), E: key.E}, nil
}

// KID returns the key's id: the first 16 characters of the thumbprint (RFC 7638).
func (k *PublicKey) KID() string { return k.kid }

// IsKID reports whether a text has the form of a key's id.
func IsKID(s string) bool {
	_, err := base64.RawURLEncoding.DecodeString(s)
	return err == nil && len(s) == kidLength && !strings.ContainsAny(s, "\r\n") // the decoder skips line breaks
}

// Algorithm returns the only algorithm for the key (RFC 8725 section 3.1).
func (k *PublicKey) Algorithm() Algorithm { return k.alg }

// MarshalPKIX returns the key in the form of x509.MarshalPKIXPublicKey, in which the
// database stores the key.
func (k *PublicKey) MarshalPKIX() ([]byte, error) { return x509.MarshalPKIXPublicKey(k.key) }

// verify checks the signature (RFC 7515 section 5.2). The key alone chooses the
// algorithm. golang-jwt refuses an ES256 signature of a length other than 64 bytes;
// Go's packages check the length for EdDSA and RS256.
func (k *PublicKey) verify(p parts) error {
	signature, err := segments.DecodeString(p.signature)
	if err != nil {
		return errForm
	}
	if methods[k.alg].Verify(p.input, signature, k.key) != nil {
		return errSignature
	}
	return nil
}

// thumbprint hashes the key's required members, as json.Marshal writes a map: sorted by
// name and without white space (RFC 7638 section 3.2, RFC 8037 section 2). The values
// are base64url or registered names, so JSON needs no escapes.
func thumbprint(k *PublicKey) string {
	j := k.JWK()
	members := map[string]string{"kty": j.Kty, "crv": j.Crv, "x": j.X, "y": j.Y, "e": j.E, "n": j.N}
	maps.DeleteFunc(members, func(_, value string) bool { return value == "" }) // leaves out members of other key types
	text, _ := json.Marshal(members)                                            // never fails: a map of strings has a JSON form
	sum := sha256.Sum256(text)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
