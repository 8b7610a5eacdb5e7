package token

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

const (
	coordinateLength = 32 // bytes of a P-256 coordinate, leading zeros included
	uncompressed     = 4  // the form octet of SEC 1 section 2.3.3
)

// JWK returns the key as a JSON Web Key (RFC 7517, RFC 7518 section 6, RFC 8037
// section 2). Each call returns a new message: the caller may change the message.
func (k *PublicKey) JWK() *watchwordv1.JsonWebKey {
	jwk := &watchwordv1.JsonWebKey{Kid: k.kid, Use: "sig", Alg: string(k.alg)}
	encode := base64.RawURLEncoding.EncodeToString
	switch key := k.key.(type) {
	case ed25519.PublicKey:
		jwk.Kty, jwk.Crv, jwk.X = "OKP", "Ed25519", encode(key)
	case *ecdsa.PublicKey:
		// Bytes fails for a point off the curve alone, and NewPublicKey refuses
		// such a point.
		if point, err := key.Bytes(); err == nil {
			jwk.Kty, jwk.Crv = "EC", "P-256"
			jwk.X = encode(point[1 : 1+coordinateLength])
			jwk.Y = encode(point[1+coordinateLength:])
		}
	case *rsa.PublicKey:
		jwk.Kty = "RSA"
		jwk.N = encode(key.N.Bytes())
		jwk.E = encode(big.NewInt(int64(key.E)).Bytes())
	}
	return jwk
}

// FromJWK returns the key in a JSON Web Key of a key set. FromJWK accepts the form
// from [PublicKey.JWK] alone: kty, crv and alg belong together, use is "sig" or
// missing, all parameters are canonical base64url, kid equals the thumbprint, and
// members of other key types are missing. So a key has a single form and a single
// id, and an attacker's key cannot carry a good key's kid.
func FromJWK(jwk *watchwordv1.JsonWebKey) (*PublicKey, error) {
	key, err := decodeJWK(jwk)
	if err != nil {
		return nil, err
	}
	k, err := NewPublicKey(key)
	if err != nil {
		return nil, err
	}
	switch canonical := k.JWK(); {
	case jwk.GetUse() != "" && jwk.GetUse() != canonical.Use:
		return nil, errors.New("token: JWK is not for signatures")
	case jwk.GetAlg() != canonical.Alg:
		return nil, errors.New("token: JWK has an algorithm that does not fit the key")
	case jwk.GetKid() != canonical.Kid:
		return nil, errors.New("token: JWK has a kid that differs from the key's thumbprint")
	case parameters(jwk) != parameters(canonical):
		return nil, errors.New("token: JWK is not in canonical form")
	}
	return k, nil
}

func parameters(jwk *watchwordv1.JsonWebKey) [6]string {
	return [...]string{jwk.GetKty(), jwk.GetCrv(), jwk.GetX(), jwk.GetY(), jwk.GetN(), jwk.GetE()}
}

func decodeJWK(jwk *watchwordv1.JsonWebKey) (crypto.PublicKey, error) {
	switch kty, crv := jwk.GetKty(), jwk.GetCrv(); {
	case kty == "OKP" && crv == "Ed25519":
		x, err := decodeParameter("x", jwk.GetX())
		return ed25519.PublicKey(x), err
	case kty == "EC" && crv == "P-256":
		return decodeECDSA(jwk)
	case kty == "RSA" && crv == "":
		return decodeRSA(jwk)
	}
	return nil, errors.New("token: JWK has an unknown type or curve")
}

func decodeECDSA(jwk *watchwordv1.JsonWebKey) (*ecdsa.PublicKey, error) {
	x, errX := decodeParameter("x", jwk.GetX())
	y, errY := decodeParameter("y", jwk.GetY())
	if err := cmp.Or(errX, errY); err != nil {
		return nil, err
	}
	// Without the check of each length, 33 bytes of x and 31 bytes of y would
	// together make a good point.
	if len(x) != coordinateLength || len(y) != coordinateLength {
		return nil, errors.New("token: JWK has a coordinate of a wrong length")
	}
	return parsePoint(slices.Concat([]byte{uncompressed}, x, y))
}

func decodeRSA(jwk *watchwordv1.JsonWebKey) (*rsa.PublicKey, error) {
	n, errN := decodeParameter("n", jwk.GetN())
	e, errE := decodeParameter("e", jwk.GetE())
	if err := cmp.Or(errN, errE); err != nil {
		return nil, err
	}
	// An exponent of four bytes fits an int. NewPublicKey checks the exponent's value.
	if len(e) > 4 {
		return nil, errors.New("token: JWK has an exponent of more than 4 bytes")
	}
	exponent := new(big.Int).SetBytes(e).Int64()
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent)}, nil
}

func decodeParameter(name, value string) ([]byte, error) {
	// The longest modulus has 683 characters. The bound limits the work for a
	// hostile key set.
	if len(value) > MaxLength {
		return nil, fmt.Errorf("token: JWK parameter %s is longer than %d characters", name, MaxLength)
	}
	decoded, err := segments.DecodeString(value)
	if err != nil {
		return nil, fmt.Errorf("token: JWK parameter %s is not canonical base64url", name)
	}
	return decoded, nil
}

// The field and the curve of Ed25519 (RFC 8032 section 5.1):
// -x² + y² = 1 + d·x²·y² modulo 2²⁵⁵-19, with d = -121665/121666.
var (
	one         = big.NewInt(1)
	fieldPrime  = new(big.Int).Sub(new(big.Int).Lsh(one, 255), big.NewInt(19))
	edwardsD, _ = new(big.Int).SetString("52036cee2b6ffe738cc740797779e89800700a4d4141d8ab75eb4dca135978a3", 16)
)

// checkEdwards refuses bytes other than the canonical form of a point on the curve
// (RFC 8032 section 5.1.3). checkEdwards also refuses the eight points with an order
// of 1, 2, 4 or 8: under such a key, forged signatures are valid. Go's ed25519
// package checks neither the form nor the order. Speed and constant time matter little
// for checkEdwards, because keys are few and public.
func checkEdwards(key ed25519.PublicKey) error {
	if len(key) != ed25519.PublicKeySize {
		return errors.New("token: Ed25519 key has a wrong length")
	}
	encoded := bytes.Clone(key)
	slices.Reverse(encoded)
	odd := encoded[0]&0x80 != 0 // the sign of x
	encoded[0] &= 0x7f
	y := new(big.Int).SetBytes(encoded)
	if y.Cmp(fieldPrime) >= 0 {
		return errors.New("token: Ed25519 key is not in canonical form")
	}
	yy := product(y, y)
	// x² = (y² - 1) / (d·y² + 1). The divisor differs from 0, because -1/d has no
	// square root.
	u := new(big.Int).Sub(yy, one)
	v := new(big.Int).Add(product(edwardsD, yy), one)
	xx := product(u, new(big.Int).ModInverse(v, fieldPrime))
	switch {
	case big.Jacobi(xx, fieldPrime) < 0, xx.Sign() == 0 && odd:
		return errors.New("token: Ed25519 key is not on the curve")
	case smallOrder(xx, yy):
		return errors.New("token: Ed25519 key has a small order")
	}
	return nil
}

// smallOrder reports whether the point with the squared coordinates xx and yy has
// the order 1, 2, 4 or 8. Orders 1 and 2 have x = 0, and order 4 has y = 0. Doubling
// a point of order 8 gives a point of order 4; by the law of addition the doubled y
// becomes 0 if x² = -y².
func smallOrder(xx, yy *big.Int) bool {
	sum := new(big.Int).Add(xx, yy)
	return xx.Sign() == 0 || yy.Sign() == 0 || sum.Mod(sum, fieldPrime).Sign() == 0
}

func product(a, b *big.Int) *big.Int {
	p := new(big.Int).Mul(a, b)
	return p.Mod(p, fieldPrime)
}
