package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// modulusBits is the size of a new RSA key, in bits. 2048 bits are safe until 2030
// (NIST SP 800-57), much longer than a signing key is used. 3072 bits would add 170
// characters to every token. EdDSA gives more security in shorter tokens.
const modulusBits = 2048

// SigningKey signs access tokens, by a single algorithm. Text, JSON and logs show the
// key's id alone. The zero value signs nothing.
type SigningKey struct {
	// secret is a pointer, because fmt calls no methods on an unexported field of another
	// struct: fmt prints a pointer in such a field as an address, and a value with every byte.
	secret *secret
}

type secret struct {
	private crypto.Signer
	public  *PublicKey
	header  string // the first part of every token of the key
}

// GenerateKey returns a new random key for the algorithm.
func GenerateKey(alg Algorithm) (*SigningKey, error) {
	var private crypto.Signer
	var err error
	switch alg {
	case EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case RS256:
		private, err = rsa.GenerateKey(rand.Reader, modulusBits)
	default:
		err = fmt.Errorf("unknown algorithm %q", string(alg))
	}
	if err != nil {
		return nil, fmt.Errorf("token: generating a key: %w", err)
	}
	return newSigningKey(private)
}

// ParseSigningKey decodes a private key in PKCS #8 (RFC 5958), the form of
// [SigningKey.MarshalPKCS8]. The key's type decides the algorithm.
func ParseSigningKey(pkcs8 []byte) (*SigningKey, error) {
	private, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		// x509's error is left out: the text could show bytes of the secret.
		return nil, errors.New("token: signing key is not in PKCS #8")
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("token: unknown type of key %T", private)
	}
	return newSigningKey(signer)
}

func newSigningKey(private crypto.Signer) (*SigningKey, error) {
	public, err := NewPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	header, err := json.Marshal(map[string]string{"alg": string(public.alg), "kid": public.kid, "typ": Type})
	if err != nil {
		return nil, err
	}
	return &SigningKey{&secret{private: private, public: public, header: base64.RawURLEncoding.EncodeToString(header)}}, nil
}

// MarshalPKCS8 returns the private key unencrypted. The caller must seal the bytes
// before storing them.
func (k *SigningKey) MarshalPKCS8() ([]byte, error) {
	if k == nil || k.secret == nil {
		return nil, errors.New("token: empty signing key")
	}
	return x509.MarshalPKCS8PrivateKey(k.secret.private)
}

// Public returns the key for checking k's signatures, or nil for the zero value.
func (k *SigningKey) Public() *PublicKey {
	if k == nil || k.secret == nil {
		return nil
	}
	return k.secret.public
}

// String returns the key's id, without any secret byte.
func (k SigningKey) String() string {
	if k.secret == nil {
		return "SigningKey(none)"
	}
	return "SigningKey(" + k.secret.public.kid + ", redacted)"
}

// Format prints the text of String for every verb.
func (k SigningKey) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, k.String())
}

// MarshalText returns the text of String, for JSON and other encoders.
func (k SigningKey) MarshalText() ([]byte, error) {
	return []byte(k.String()), nil
}

// LogValue returns the text of String, for every log handler.
func (k SigningKey) LogValue() slog.Value {
	return slog.StringValue(k.String())
}
