// Package issuer owns the signing keys and is the only maker of access tokens.
//
// Keys are rows, sealed under the master key. The times in a row say when the key signs
// and verifies, so replicas agree without a leader. The key set always holds the next
// key, so a verifier knows every key before the key signs.
package issuer

import (
	"context"
	"crypto/rand"
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

// errNoKey reports a time at which no key signs.
var errNoKey = errors.New("no signing key signs now")

// Issuer mints access tokens. Safe for concurrent use.
type Issuer struct {
	name  string
	ttl   time.Duration
	keys  *seal.Keys
	store *store.Store

	mu      sync.RWMutex
	signers []signer
}

type signer struct {
	from, until time.Time // until is zero while no end is known
	key         *token.SigningKey
}

// Setup makes the first two keys of a database, for now and for next, unless the
// database has keys. tx is the transaction of the first start.
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

// Reseal seals the signing keys under the first master key, and returns how many were
// sealed under a different master key.
func Reseal(tx *store.Tx, master *seal.Keys) (int, error) {
	if err := tx.Exclusive(); err != nil {
		return 0, err
	}
	rows, err := tx.SigningKeys()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, row := range rows {
		changed, err := master.Reseal(purpose, row.KID, row.SealedKey, func(sealed []byte) error { return tx.ResealSigningKey(row.KID, sealed) })
		if err != nil {
			return n, fmt.Errorf("signing key %s: %w", row.KID, err)
		}
		n += changed
	}
	return n, nil
}

// generate makes a key, not published yet.
func generate(master *seal.Keys, alg token.Algorithm) (*store.SigningKey, error) {
	key, err := token.GenerateKey(alg)
	if err != nil {
		return nil, err
	}
	private, err := key.MarshalPKCS8()
	if err != nil {
		return nil, err
	}
	public, err := key.Public().MarshalPKIX()
	if err != nil {
		return nil, err
	}
	kid := key.Public().KID()
	sealed, err := master.Seal(purpose, kid, private)
	return &store.SigningKey{KID: kid, Algorithm: string(alg), PublicKey: public, SealedKey: sealed}, err
}

// Open reads the keys. name is the claim `iss`; tokens live for ttl.
func Open(ctx context.Context, s *store.Store, master *seal.Keys, name string, ttl time.Duration) (*Issuer, error) {
	i := &Issuer{name: name, ttl: ttl, keys: master, store: s}
	return i, i.Reload(ctx)
}

// Reload reads the keys again.
func (i *Issuer) Reload(ctx context.Context) error {
	signers, err := readSigners(ctx, i.store, i.keys)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.signers = signers
	return nil
}

// CheckMaster checks the master keys: it opens every key of the present and the past.
// Errors: seal.ErrWrongKey; errors of the store.
func CheckMaster(ctx context.Context, s *store.Store, master *seal.Keys) error {
	_, err := readSigners(ctx, s, master)
	return err
}

func readSigners(ctx context.Context, s *store.Store, master *seal.Keys) (signers []signer, err error) {
	err = s.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.SigningKeys()
		if err != nil {
			return err
		}
		signers = nil
		for _, row := range rows {
			if row.SignsFrom.IsZero() || !row.RevokedAt.IsZero() {
				continue
			}
			private, err := master.Open(purpose, row.KID, row.SealedKey)
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
		err = fmt.Errorf("reading signing keys: %w", err)
	}
	return signers, err
}

// Subject holds the user and the session behind a token.
type Subject struct {
	UserID    string
	Username  string
	Roles     []string
	Version   int64 // the user's token version
	SessionID string
	Audience  []string
	// SessionEnd is the latest end of the session. No token lives longer.
	SessionEnd time.Time
}

// Mint signs an access token as of now, and returns the token and the token's lifetime.
func (i *Issuer) Mint(now time.Time, s Subject) (string, time.Duration, error) {
	key, err := i.signing(now)
	if err != nil {
		return "", 0, err
	}
	// A NumericDate has whole seconds (RFC 7519, section 2). A token begins at the last
	// full second, and so lives up to a second less than ttl.
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

// signing returns the key for now: of the keys between begin and end, the latest.
func (i *Issuer) signing(now time.Time) (*token.SigningKey, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var current signer
	for _, s := range i.signers {
		ended := !s.until.IsZero() && !s.until.After(now)
		if !s.from.After(now) && !ended && (current.key == nil || s.from.After(current.from)) {
			current = s
		}
	}
	if current.key == nil {
		return nil, errNoKey
	}
	return current.key, nil
}
