package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// modulusBits of a new RSA key. 2048 bits are good to 2030 (NIST SP 800-57), far
// longer than a signing key serves before the next takes over, and 3072 would add
// 170 characters to every token. Who wants more security takes EdDSA and less.
const modulusBits = 2048

// SigningKey signs access tokens, by one algorithm. However it is printed, as
// text, JSON or in a log, it shows its id alone. The zero value signs nothing.
type SigningKey struct {
	// Behind a pointer, because fmt doesn't ask the methods of a value in
	// somebody's unexported field how to print it, but follows no pointer there.
	secret *secret
}

type secret struct {
	private crypto.Signer
	public  *PublicKey
}

// GenerateKey makes a new random key for an algorithm.
func GenerateKey(alg Algorithm) (*SigningKey, error) {
	private, err := generate(alg)
	if err != nil {
		return nil, fmt.Errorf("token: generating a key: %w", err)
	}
	return newSigningKey(private)
}

func generate(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case EdDSA:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case RS256:
		return rsa.GenerateKey(rand.Reader, modulusBits)
	}
	return nil, fmt.Errorf("unknown algorithm %q", string(alg))
}

// ParseSigningKey takes a private key in PKCS #8 (RFC 5958), as MarshalPKCS8
// makes it. The key's type decides the algorithm.
func ParseSigningKey(pkcs8 []byte) (*SigningKey, error) {
	private, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		// The cause is left out: it is about bytes that nobody should see.
		return nil, errors.New("token: signing key is not in PKCS #8")
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("token: a key of type %T signs no tokens", private)
	}
	return newSigningKey(signer)
}

func newSigningKey(private crypto.Signer) (*SigningKey, error) {
	public, err := NewPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	return &SigningKey{&secret{private: private, public: public}}, nil
}

// MarshalPKCS8 returns the private key itself, to be sealed and stored.
func (k *SigningKey) MarshalPKCS8() ([]byte, error) {
	if k == nil || k.secret == nil {
		return nil, errors.New("token: empty signing key")
	}
	return x509.MarshalPKCS8PrivateKey(k.secret.private)
}

// Public is the key that checks what this one signs; nil for the zero value.
func (k *SigningKey) Public() *PublicKey {
	if k == nil || k.secret == nil {
		return nil
	}
	return k.secret.public
}

// String returns the key's id without the key.
func (k SigningKey) String() string {
	if k.secret == nil {
		return "SigningKey(none)"
	}
	return "SigningKey(" + k.secret.public.kid + ", redacted)"
}

// Format makes every verb print what String returns.
func (k SigningKey) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, k.String())
}

// MarshalText makes encoders, of JSON among them, write what String returns.
func (k SigningKey) MarshalText() ([]byte, error) {
	return []byte(k.String()), nil
}

// LogValue makes every log handler write what String returns.
func (k SigningKey) LogValue() slog.Value {
	return slog.StringValue(k.String())
}
