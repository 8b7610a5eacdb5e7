package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

var (
	// ErrNotFound reports that there is no such signing key.
	ErrNotFound = errors.New("no such signing key")
	// errYoung reports that a key needs no rotation yet.
	errYoung  = errors.New("key is not old enough")
	errNoKeys = errors.New("there are no signing keys; a server makes them when it starts")
)

// Keyring rotates and withdraws signing keys. It is safe for concurrent use.
//
// The keys that have signed, sign or will sign form a chain: each signs until the
// next one begins, and verifies until the last token that it can have signed has
// expired. Besides the chain one key is published that signs next and has no date
// yet.
type Keyring struct {
	store  *store.Store
	writer feed.Writer
	master *seal.Keys
	audit  *audit.Log
}

// NewKeyring returns the keyring of a database.
func NewKeyring(s *store.Store, w feed.Writer, master *seal.Keys, a *audit.Log) *Keyring {
	return &Keyring{store: s, writer: w, master: master, audit: a}
}

// Rotate dates the key that signs next: at once, or as soon as the key has been
// published for the age of the caches. Another key is published in its place. Rotate
// does not begin a second rotation while one is under way. alg is the algorithm of
// the key that is to sign; empty keeps the present one.
//
// Errors: ErrChainBroken; those of [caller.Caller.Check] and of the store.
func (k *Keyring) Rotate(ctx context.Context, by caller.Caller, alg token.Algorithm) (Key, error) {
	return k.rotate(ctx, by, alg, func(*store.SigningKey, time.Time) bool { return true })
}

// RotateOld rotates if the key that signs has done so for ttl. Any number of replicas
// may call RotateOld at once.
func (k *Keyring) RotateOld(ctx context.Context, ttl time.Duration) error {
	old := func(key *store.SigningKey, now time.Time) bool { return !now.Before(key.SignsFrom.Add(ttl)) }
	// Nearly always the key is young. To read that costs neither a key nor the lock.
	err := k.store.Read(ctx, func(tx *store.Tx) error {
		c, err := readChain(tx)
		if err == nil {
			err = c.intact()
		}
		if err == nil && !old(c.last, c.now) {
			err = errYoung
		}
		return err
	})
	if err == nil {
		_, err = k.rotate(ctx, caller.AtCommandLine, "", old)
	}
	if errors.Is(err, errYoung) {
		return nil
	}
	return err
}

// rotate rotates if due says so of the last key of the chain.
func (k *Keyring) rotate(ctx context.Context, by caller.Caller, alg token.Algorithm, due func(*store.SigningKey, time.Time) bool) (Key, error) {
	return k.change(ctx, by, alg, func(c *chain, spares [2]*store.SigningKey) (*store.SigningKey, error) {
		if err := c.intact(); err != nil {
			return nil, err
		}
		if !due(c.last, c.now) {
			return nil, errYoung
		}
		if c.last.SignsFrom.After(c.now) && (alg == "" || c.last.Algorithm == string(alg)) {
			return c.last, nil
		}
		if c.next.Algorithm != spares[0].Algorithm {
			c.remove(func(k *store.SigningKey) bool { return k == c.next })
			c.next = c.publish(spares[1])
		}
		if err := c.promote(); err != nil {
			return nil, err
		}
		c.publish(spares[0])
		c.remove(c.verifiesNothing)
		c.record = audit.Event{Type: audit.KeyRotated, KID: c.next.KID,
			Detail: fmt.Sprintf("%s, signs from %s", c.next.Algorithm, c.next.SignsFrom.Format(time.RFC3339))}
		return c.next, nil
	})
}

// Revoke withdraws a key and returns the key that signs now: once the bundle has
// arrived at a verifier, every token of the withdrawn key is refused there. If the
// withdrawn key signs, the next key signs at once, and a verifier that reads the key
// set from a cache may refuse its tokens for the cache's age.
//
// Errors: ErrNotFound; ErrChainBroken; those of [caller.Caller.Check] and of the store.
func (k *Keyring) Revoke(ctx context.Context, by caller.Caller, kid string) (Key, error) {
	return k.change(ctx, by, "", func(c *chain, spares [2]*store.SigningKey) (*store.SigningKey, error) {
		if err := c.intact(); err != nil {
			return nil, err
		}
		leaked := find(c.rows, kid)
		if leaked == nil {
			return nil, ErrNotFound
		}
		if leaked.RevokedAt.IsZero() {
			leaked.RevokedAt = c.now
			if err := c.bridge(leaked, spares[0]); err != nil {
				return nil, err
			}
			c.record = audit.Event{Type: audit.KeyRevoked, KID: kid}
		}
		return c.signing()
	})
}

// ReplaceAll withdraws every key and lets a new one sign at once, also when the chain
// is broken. Keys that have not signed are withdrawn too, since they may have signed
// in a history that was lost. ReplaceAll records why, with the new key, and returns
// the new key. A verifier that reads the key set from a cache may refuse new tokens
// for the cache's age.
func (k *Keyring) ReplaceAll(ctx context.Context, why audit.Event) (Key, error) {
	return k.change(ctx, caller.AtCommandLine, "", func(c *chain, spares [2]*store.SigningKey) (*store.SigningKey, error) {
		for _, row := range c.rows {
			if row.RevokedAt.IsZero() {
				row.RevokedAt = c.now
			}
		}
		first := c.publish(spares[0])
		first.SignsFrom = c.now
		c.publish(spares[1])
		c.record = why
		c.record.KID = first.KID
		return first, nil
	})
}

// change lets do alter the chain in memory, and then writes what has changed, in one
// transaction with the record of it. do gets two new keys of the algorithm alg, and
// returns the key to report. If do sets no record, nothing is written.
func (k *Keyring) change(ctx context.Context, by caller.Caller, alg token.Algorithm, do func(*chain, [2]*store.SigningKey) (*store.SigningKey, error)) (Key, error) {
	spares, err := k.spares(ctx, alg)
	if err != nil {
		return Key{}, err
	}
	var reported Key
	err = k.writer.Write(ctx, func(tx *feed.Tx) error {
		if err := tx.Exclusive(); err != nil {
			return err
		}
		if err := by.Check(tx.Tx); err != nil {
			return err
		}
		c, err := readChain(tx.Tx)
		if err != nil {
			return err
		}
		key, err := do(c, spares)
		if err != nil {
			return err
		}
		reported = newKey(key, c.now)
		if c.record.Type == "" {
			return nil
		}
		if err := c.write(); err != nil {
			return err
		}
		c.record.ActorID = by.ID
		if err := k.audit.Record(ctx, tx.Tx, c.record); err != nil {
			return err
		}
		return tx.KeysChanged()
	})
	return reported, err
}

// spares makes the keys that a change may need, before its transaction, since an RSA
// key takes a while. An empty alg means the algorithm of the newest key.
func (k *Keyring) spares(ctx context.Context, alg token.Algorithm) (spares [2]*store.SigningKey, err error) {
	if alg == "" {
		err = k.store.Read(ctx, func(tx *store.Tx) error {
			rows, err := tx.SigningKeys()
			if err == nil && len(rows) == 0 {
				err = errNoKeys
			}
			if err == nil {
				alg = token.Algorithm(rows[len(rows)-1].Algorithm)
			}
			return err
		})
	}
	for i := range spares {
		if err == nil {
			spares[i], err = generate(k.master, alg)
		}
	}
	return spares, err
}
