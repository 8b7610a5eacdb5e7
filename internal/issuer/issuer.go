// Package issuer makes and changes the signing keys, and is the only package that makes access
// tokens.
//
// Keys are rows of the database, sealed and authenticated under the master key. The times in
// a row tell when the key signs and verifies, so replicas agree without a leader. The key set
// always includes the next key, so a verifier knows every key before the key signs.
package issuer

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// purpose separates sealed signing keys from other sealed secrets: see
// [seal.Keys.Seal].
const purpose = "signing key"

// Issuer makes access tokens. An Issuer is safe for concurrent use.
type Issuer struct {
	store  *store.Store
	name   string
	client string // the claim `client_id` of the tokens of users: see [New]
	ttl    time.Duration
	keys   *KeySet

	horizon atomic.Int64  // the latest horizon (see [store.Tx.Horizon]) that this Issuer has stored or read, in microseconds since 1970
	raising chan struct{} // a lock: holds one element while a call of reach raises the horizon
}

// New returns an Issuer that signs with the keys of a KeySet, which are the keys of the
// database s. name becomes the claim `iss`; tokens live for ttl. client becomes the claim
// `client_id` of the tokens of users; if client is empty, no token has the claim.
func New(s *store.Store, keys *KeySet, name, client string, ttl time.Duration) *Issuer {
	return &Issuer{store: s, name: name, client: client, ttl: ttl, keys: keys, raising: make(chan struct{}, 1)}
}

// Setup makes the first two keys of a database, unless the database has keys. One key signs
// from now on, and the other key is published as the next key. tx is the transaction of the
// first start of a server.
func Setup(tx *store.Tx, master *seal.Keys, alg token.Algorithm) error {
	keys, err := tx.SigningKeys()
	if err != nil || len(keys) > 0 {
		return err
	}
	id, err := databaseID(tx)
	if err != nil {
		return err
	}
	for _, signsFrom := range []time.Time{tx.Now(), {}} {
		key, err := generate(master, alg)
		if err != nil {
			return err
		}
		key.PublishedAt, key.SignsFrom, key.Counter = tx.Now(), signsFrom, nextCounter(0, tx.Now())
		if err := tag(key, master, id); err != nil {
			return err
		}
		if err := tx.InsertSigningKey(key); err != nil {
			return err
		}
	}
	return nil
}

// Reseal seals and tags the signing keys under the first master key in the file, and returns
// how many keys were sealed or tagged under another master key before. Reseal also tags
// withdrawn keys again, so that no row needs the old master key any more.
//
// Errors: seal.ErrWrongKey; ErrChainBroken if a row was changed by hand; errors of the store.
func Reseal(tx *store.Tx, master *seal.Keys) (int, error) {
	if err := tx.Exclusive(); err != nil {
		return 0, err
	}
	id, err := databaseID(tx)
	if err != nil {
		return 0, err
	}
	a, err := authenticate(tx, master, id)
	if err != nil {
		return 0, err
	}
	if len(a.refused) > 0 {
		return 0, broken(a.refused[0].Error())
	}
	n := 0
	for _, row := range a.rows {
		changed, err := reseal(row, master, id)
		if err == nil && changed {
			n++
			err = tx.UpdateSigningKey(row)
		}
		if err != nil {
			return n, fmt.Errorf("signing key %s: %w", row.KID, err)
		}
	}
	return n, nil
}

// reseal seals and tags a row under the first master key, and reports whether the row has
// changed.
func reseal(row *store.SigningKey, master *seal.Keys, databaseID string) (changed bool, err error) {
	if changed = !master.SealedFirst(row.Tag); len(row.SealedKey) > 0 {
		n, err := master.Reseal(purpose, row.KID, row.SealedKey, func(sealed []byte) error {
			row.SealedKey = sealed
			return nil
		})
		if err != nil {
			return false, err
		}
		changed = changed || n > 0
	}
	if changed {
		err = tag(row, master, databaseID)
	}
	return changed, err
}

// generate makes a key of an algorithm, with the private half sealed. The new key has no time
// to sign yet. The id of the key, a thumbprint, does not begin with "-": the command `key
// revoke` would take such an id for a flag.
func generate(master *seal.Keys, alg token.Algorithm) (*store.SigningKey, error) {
	key, err := token.GenerateKey(alg)
	for err == nil && strings.HasPrefix(key.Public().KID(), "-") { // one id in 64 begins with "-", so generate makes another key
		key, err = token.GenerateKey(alg)
	}
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

// CheckMaster opens (decrypts), with the master keys, every signing key that is not
// withdrawn and not changed by hand. A command calls CheckMaster before the command writes, so
// that the wrong master key file changes nothing.
//
// Errors: seal.ErrWrongKey if a signing key needs a master key that the master key file
// lacks; errors of the store.
func CheckMaster(tx *store.Tx, master *seal.Keys) error {
	id, err := databaseID(tx)
	if err != nil {
		return err
	}
	a, err := authenticate(tx, master, id)
	if err != nil {
		return err
	}
	for _, row := range a.rows {
		if !row.RevokedAt.IsZero() {
			continue
		}
		if _, err := open(row, master); errors.Is(err, seal.ErrWrongKey) {
			return err
		}
	}
	return nil
}

// Subject holds the claims of an access token that depend on the user and the session.
type Subject struct {
	UserID    string
	Username  string
	Roles     []string
	Version   int64 // the result of [store.User.TokenVersion]: after a change, verifiers refuse tokens with a lower version
	SessionID string
	Audience  []string
	// SessionEnd is the latest end of the session. The access token expires no later than the
	// session. SessionEnd is zero if there is no session, and SessionID is empty then.
	SessionEnd time.Time
	// Actors makes the token a delegated token: Actors names the services that act for the
	// subject, first the service that called last. A delegated token lives no longer than the
	// subject's token, the end of which is in SessionEnd.
	Actors []token.Actor
	// NotBefore is the earliest time of issue: see [store.Tx.DelegatedNotBefore]. If NotBefore
	// is later than now, NotBefore becomes the token's time of issue. NotBefore must be before
	// the token's end.
	NotBefore time.Time
}

// horizonAhead is how far Mint raises the horizon (see [store.Tx.Horizon]) beyond now. With a
// horizon a minute ahead, Mint writes once a minute, and otherwise needs no database.
const horizonAhead = time.Minute

// reach returns when the database has stored a horizon that is not before now: the latest time
// at which a token can be minted (see [store.Tx.Horizon]). The database keeps the events that
// revoke a token until the horizon has passed, and longer. With these events, every verifier
// still refuses a revoked token that was minted while the clock was ahead, when the token
// becomes valid. Errors: errors of the store.
func (i *Issuer) reach(ctx context.Context, now time.Time) error {
	known := func() bool { return now.UnixMicro() <= i.horizon.Load() }
	if known() {
		return nil
	}
	select { // of several calls at the same time, one call writes the horizon
	case i.raising <- struct{}{}:
		defer func() { <-i.raising }()
	case <-ctx.Done():
		return fmt.Errorf("%w: raising the horizon: %w", store.ErrUnavailable, ctx.Err())
	}
	if known() {
		return nil
	}
	to := now.Add(horizonAhead)
	if err := i.store.Write(ctx, func(tx *store.Tx) error { return tx.RaiseHorizon(to) }); err != nil {
		return fmt.Errorf("raising the horizon: %w", err)
	}
	i.horizon.Store(to.UnixMicro())
	return nil
}

// clientID returns the claim `client_id`: the client that asked for the token (RFC 8693 section
// 4.3). A service account asks for its own tokens (RFC 9068 section 2.2: client_id and sub name
// the same account) and for delegated tokens, so its id is the claim.
func (i *Issuer) clientID(s Subject) string {
	switch {
	case i.client == "":
		return ""
	case len(s.Actors) > 0:
		return s.Actors[0].Subject
	case s.SessionID == "":
		return s.UserID
	}
	return i.client
}

// Mint makes and signs an access token that is issued at the time now, and returns the token
// and the token's lifetime. The lifetime counts from now, so a client needs no correct clock.
// Mint must not be called in a transaction, since Mint itself writes to the database once a
// minute.
//
// Errors: errNoKey if no key signs; an error if the key that signs cannot be opened; errors of
// the store.
func (i *Issuer) Mint(ctx context.Context, now time.Time, s Subject) (string, time.Duration, error) {
	key, err := i.keys.signing(now)
	if err != nil {
		return "", 0, err
	}
	if err := i.reach(ctx, now); err != nil {
		return "", 0, err
	}
	// A NumericDate has whole seconds (RFC 7519, section 2). A token begins at the last
	// full second, and so lives up to a second less than ttl: a verifier with the same
	// clock never sees a token from the future.
	issued := now.Truncate(time.Second)
	expires := issued.Add(i.ttl)
	if !s.SessionEnd.IsZero() && expires.After(s.SessionEnd) {
		expires = s.SessionEnd.Truncate(time.Second)
	}
	if issued.Before(s.NotBefore) {
		issued = s.NotBefore
	}
	id := make([]byte, 8) // the claim jti: tells two tokens apart in logs, and is no secret
	rand.Read(id)
	signed, err := token.Sign(key, &token.Claims{
		Issuer: i.name, Subject: s.UserID, Audience: s.Audience, ID: base64.RawURLEncoding.EncodeToString(id),
		SessionID: s.SessionID, ClientID: i.clientID(s), Username: s.Username, Roles: s.Roles, Version: s.Version,
		IssuedAt: issued, ExpiresAt: expires, Actors: s.Actors,
	})
	if err != nil {
		return "", 0, fmt.Errorf("signing access token: %w", err)
	}
	return signed, expires.Sub(now), nil
}
