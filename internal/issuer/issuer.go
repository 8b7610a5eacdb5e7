// Package issuer owns the signing keys, and is the only package that makes access
// tokens.
//
// Keys are rows of the database, sealed under the master key. The times in a row tell
// when the key signs and verifies, so replicas agree without a leader. The key set
// always includes the next key, so a verifier knows every key before the key signs.
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

// purpose separates sealed signing keys from other sealed secrets: see
// [seal.Keys.Seal].
const purpose = "signing key"

// errNoKey means that no key signs at the time of a call. The call fails with INTERNAL:
// the clock was set back, or rows were changed by hand.
var errNoKey = errors.New("no signing key signs now")

// Issuer makes access tokens. An Issuer is safe for concurrent use.
type Issuer struct {
	name  string
	ttl   time.Duration
	keys  *seal.Keys
	store *store.Store

	mu      sync.RWMutex
	signers []signer // guarded by mu; Reload replaces the slice as a whole
}

// signer is an opened signing key and the time in which the key signs.
type signer struct {
	from, until time.Time // until is zero while no end is decided
	key         *token.SigningKey
}

// Setup makes the first two keys of a database, unless the database has keys: one signs
// from now on, and one is published as the next. tx is the transaction of the first
// start.
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

// Reseal seals the signing keys under the first master key in the file, and returns how
// many keys were sealed under another master key before. Withdrawn keys are sealed
// again too, so that the old master key is needed for nothing.
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

// generate makes a key of an algorithm, with the private half sealed. The key has no
// times yet.
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

// Open reads the signing keys and returns an Issuer. name becomes the claim `iss`;
// tokens live for ttl.
func Open(ctx context.Context, s *store.Store, master *seal.Keys, name string, ttl time.Duration) (*Issuer, error) {
	i := &Issuer{name: name, ttl: ttl, keys: master, store: s}
	return i, i.Reload(ctx)
}

// Reload reads the signing keys again. The feed calls Reload after a change of the
// keys, on every replica.
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

// CheckMaster decrypts, with the master keys, every signing key that has signed or signs.
// Errors: seal.ErrWrongKey if a signing key needs a master key that the master key file
// lacks; errors of the store.
func CheckMaster(ctx context.Context, s *store.Store, master *seal.Keys) error {
	_, err := readSigners(ctx, s, master)
	return err
}

// readSigners reads the signing keys from the database, and opens (decrypts) each signing
// key that has a date from which the key signs (SignsFrom) and is not withdrawn. Keys that
// sign no longer are included, since the clocks of two replicas may differ.
func readSigners(ctx context.Context, s *store.Store, master *seal.Keys) (signers []signer, err error) {
	err = s.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.SigningKeys()
		if err != nil {
			return err
		}
		signers = nil
		for _, row := range rows {
			// The next key is opened when it gets a date; a withdrawn key never signs
			// again.
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

// Subject holds the claims of an access token that depend on the user and the session.
type Subject struct {
	UserID    string
	Username  string
	Roles     []string
	Version   int64 // the user's Version: verifiers refuse tokens below a raised one
	SessionID string
	Audience  []string
	// SessionEnd is the latest end of the session. No access token lives longer.
	SessionEnd time.Time
}

// Mint makes and signs an access token as of now, and returns the token and the token's
// lifetime. The lifetime counts from now, so a client needs no correct clock.
func (i *Issuer) Mint(now time.Time, s Subject) (string, time.Duration, error) {
	key, err := i.signing(now)
	if err != nil {
		return "", 0, err
	}
	// A NumericDate has whole seconds (RFC 7519, section 2). A token begins at the last
	// full second, and so lives up to a second less than ttl: a verifier with the same
	// clock never sees a token from the future.
	issued := now.Truncate(time.Second)
	expires := issued.Add(i.ttl)
	if expires.After(s.SessionEnd) {
		expires = s.SessionEnd.Truncate(time.Second)
	}
	id := make([]byte, 8) // the claim jti: tells two tokens apart in logs, and secures nothing
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

// signing returns the key that signs at a time. If several keys do, signing returns the
// key that began last. If no key signs at the time, signing returns the key that begins
// next: now is the time of the grant's transaction, and a key may have been withdrawn since.
// Its successor then signs from a moment after now. Errors: errNoKey.
func (i *Issuer) signing(now time.Time) (*token.SigningKey, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var current, next signer
	for _, s := range i.signers {
		ended := !s.until.IsZero() && !s.until.After(now)
		switch {
		case s.from.After(now):
			if next.key == nil || s.from.Before(next.from) {
				next = s
			}
		case !ended && (current.key == nil || s.from.After(current.from)):
			current = s
		}
	}
	switch {
	case current.key != nil:
		return current.key, nil
	case next.key != nil:
		return next.key, nil
	}
	return nil, errNoKey
}
