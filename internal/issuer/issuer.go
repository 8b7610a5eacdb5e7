// Package issuer owns the signing keys and is the only maker of access tokens.
//
// Keys are rows, sealed under the master key; a key's life is written in its
// row as times, so that replicas agree without a leader. The key set always
// holds the key that signs next, so that a verifier knows every key before it
// signs.
package issuer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

const purpose = "signing key"

// errNoKey says that no key signs now.
var errNoKey = errors.New("no signing key")

// Issuer mints access tokens. It is safe for concurrent use.
type Issuer struct {
	name  string
	ttl   time.Duration
	keys  *seal.Keys
	store *store.Store

	mu      sync.RWMutex
	signers []signer // in order of their beginning
}

type signer struct {
	from, until time.Time // a zero until: no end is known
	key         *token.SigningKey
}

// Setup makes a database's first keys, one that signs and one that signs next.
// It does nothing where there are keys. It belongs to the transaction of the
// first start.
func Setup(tx *store.Tx, master *seal.Keys, alg token.Algorithm) error {
	keys, err := tx.SigningKeys()
	if err != nil || len(keys) > 0 {
		return err
	}
	for _, signsFrom := range []time.Time{tx.Now(), {}} {
		key, err := generate(master, alg)
		if err != nil {
			return err
		}
		key.PublishedAt, key.SignsFrom = tx.Now(), signsFrom
		if err := tx.InsertSigningKey(key); err != nil {
			return err
		}
	}
	return nil
}

// Reseal seals the signing keys under the first master key, and says how many
// were not.
func Reseal(tx *store.Tx, master *seal.Keys) (int, error) {
	if err := tx.Exclusive(); err != nil {
		return 0, err
	}
	rows, err := tx.SigningKeys()
	n := 0
	for _, row := range rows {
		sealed, changed, resealErr := master.Reseal(purpose, row.KID, row.SealedKey)
		if resealErr != nil {
			return n, fmt.Errorf("signing key %s: %w", row.KID, resealErr)
		}
		if changed {
			n++
			err = errors.Join(err, tx.ResealSigningKey(row.KID, sealed))
		}
	}
	return n, err
}

// generate makes a key that is not published yet.
func generate(master *seal.Keys, alg token.Algorithm) (*store.SigningKey, error) {
	key, err := token.GenerateKey(alg)
	if err != nil {
		return nil, err
	}
	private, err := key.MarshalPKCS8()
	if err != nil {
		return nil, err
	}
	kid := key.Public().KID()
	sealed, err := master.Seal(purpose, kid, private)
	if err != nil {
		return nil, err
	}
	public, err := publicOf(private)
	return &store.SigningKey{KID: kid, Algorithm: string(alg), PublicKey: public, SealedKey: sealed}, err
}

// publicOf is the public half of a PKCS 8 key, as PKIX.
func publicOf(private []byte) ([]byte, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("not a signing key")
	}
	return x509.MarshalPKIXPublicKey(key.Public())
}

// Open reads the keys. name is the claim `iss`; tokens live for ttl.
func Open(ctx context.Context, s *store.Store, master *seal.Keys, name string, ttl time.Duration) (*Issuer, error) {
	i := &Issuer{name: name, ttl: ttl, keys: master, store: s}
	if err := i.Reload(ctx); err != nil {
		return nil, fmt.Errorf("reading signing keys: %w", err)
	}
	return i, nil
}

// Reload reads the keys again.
func (i *Issuer) Reload(ctx context.Context) error {
	var signers []signer
	err := i.store.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.SigningKeys()
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.SignsFrom.IsZero() || !row.RevokedAt.IsZero() {
				continue
			}
			private, err := i.keys.Open(purpose, row.KID, row.SealedKey)
			if err != nil {
				return fmt.Errorf("signing key %s: %w", row.KID, err)
			}
			key, err := token.ParseSigningKey(private)
			if err != nil {
				return fmt.Errorf("signing key %s: %w", row.KID, err)
			}
			signers = append(signers, signer{from: row.SignsFrom, until: row.SignsUntil, key: key})
		}
		return nil
	})
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.signers = signers
	return nil
}

// Subject is whom a token shall speak for.
type Subject struct {
	UserID    string
	Username  string
	Roles     []string
	Version   int64 // the user's token version
	SessionID string
	Audience  []string
	// SessionEnd is when the session ends in any case: no token outlives it.
	SessionEnd time.Time
}

// Mint signs an access token as of now, and says how long it lives.
func (i *Issuer) Mint(now time.Time, s Subject) (string, time.Duration, error) {
	key, err := i.signing(now)
	if err != nil {
		return "", 0, err
	}
	// NumericDate is in whole seconds (RFC 7519, section 2): a token begins at
	// the last full one, and so lives a fraction less than it could.
	issued := now.Truncate(time.Second)
	expires := issued.Add(i.ttl)
	if expires.After(s.SessionEnd) {
		expires = s.SessionEnd.Truncate(time.Second)
	}
	id := make([]byte, 8)
	rand.Read(id)
	signed, err := token.Sign(key, &token.Claims{
		Issuer: i.name, Subject: s.UserID, Audience: s.Audience, ID: base64.RawURLEncoding.EncodeToString(id),
		SessionID: s.SessionID, Username: s.Username, Roles: s.Roles, Version: s.Version,
		IssuedAt: issued, ExpiresAt: expires,
	})
	if err != nil {
		return "", 0, fmt.Errorf("signing access token: %w", err)
	}
	return signed, expires.Sub(now), nil
}

// signing is the key that signs now: the one that began last.
func (i *Issuer) signing(now time.Time) (*token.SigningKey, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var current *signer
	for n := range i.signers {
		s := &i.signers[n]
		if s.from.After(now) || !s.until.IsZero() && !s.until.After(now) {
			continue
		}
		if current == nil || s.from.After(current.from) {
			current = s
		}
	}
	if current == nil {
		return nil, errNoKey
	}
	return current.key, nil
}
