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
	// ErrNotFound means that no signing key has the given id.
	ErrNotFound = errors.New("no such signing key")
	// ErrTooMany means that maxKeys keys still verify tokens, so that Rotate makes no further
	// key until one of these keys has expired.
	ErrTooMany = fmt.Errorf("%d signing keys still verify; rotate again after the oldest has expired, in some minutes", maxKeys)
	// ErrManyWithdrawn means that a user has withdrawn maxWithdrawn keys within an hour, the
	// largest number for a user.
	ErrManyWithdrawn = fmt.Errorf("%d signing keys were withdrawn within an hour; withdraw further keys at the command line, or wait", maxWithdrawn)
	errNoKeys        = errors.New("the database has no signing keys; a server makes them when it starts")
)

// Keyring rotates and withdraws signing keys. A Keyring is safe for concurrent use, and
// so are several Keyrings on one database.
//
// The keys that have a time to sign form a chain: each key signs until the next key begins to
// sign, and verifies until the last token of the key has expired. One more key, the next key,
// is published without a time to sign.
type Keyring struct {
	store  *store.Store
	writer feed.Writer
	keys   *KeySet
	audit  *audit.Log
}

// NewKeyring returns the keyring of a database. w commits the changes and their events for
// verifiers; a records the changes in the security record. A Keyring changes no key set that is
// earlier than the key set that keys has read.
func NewKeyring(s *store.Store, w feed.Writer, keys *KeySet, a *audit.Log) *Keyring {
	return &Keyring{store: s, writer: w, keys: keys, audit: a}
}

// Rotate lets the next signing key sign: at once, or as soon as the key has been published for
// the age of the caches of the JWKS (--jwks-max-age). Rotate also publishes a new key as the
// next key. alg is the algorithm to sign with; empty keeps the present algorithm. While an
// earlier rotation to the same algorithm waits for the caches, Rotate changes nothing and
// returns the key of the earlier rotation. If the clock was ahead at an earlier rotation and
// has been set back, Rotate gives the keys of the earlier rotation times near the present: see
// [chain.bringBack].
//
// Errors: ErrChainBroken; ErrTooMany; ErrRolledBack; seal.ErrWrongKey; errors of
// [caller.Caller.Check] and of the store.
func (k *Keyring) Rotate(ctx context.Context, by caller.Caller, alg token.Algorithm) (Key, error) {
	return k.rotate(ctx, by, alg, 0)
}

// RotateOld rotates if the present key has signed for ttl (--key-ttl). Any number of replicas
// can call RotateOld at once: one replica rotates the keys, and the other replicas find a young
// key and change nothing.
func (k *Keyring) RotateOld(ctx context.Context, ttl time.Duration) error {
	young := false
	err := k.store.Read(ctx, func(tx *store.Tx) error { // most calls end after this read, which is cheap: the read makes no key and takes no lock
		c, err := k.read(tx, false)
		if err == nil {
			err = c.intact()
		}
		young = err == nil && c.younger(ttl)
		return err
	})
	if err == nil && !young {
		_, err = k.rotate(ctx, caller.AtCommandLine, "", ttl)
	}
	return err
}

// rotate does the work of [Keyring.Rotate], unless the last key of the chain has signed for
// less than ttl, or has not begun to sign yet. The check is part of the transaction, since
// another replica can have rotated the keys just before.
func (k *Keyring) rotate(ctx context.Context, by caller.Caller, alg token.Algorithm, ttl time.Duration) (Key, error) {
	return k.change(ctx, change{by: by, alg: alg}, func(c *chain, spares [2]*store.SigningKey) (*store.SigningKey, error) {
		if err := c.intact(); err != nil {
			return nil, err
		}
		back := false
		if ttl == 0 {
			var err error
			if back, err = c.bringBack(); err != nil {
				return nil, err
			}
		}
		if (back || c.younger(ttl)) && (alg == "" || c.last.Algorithm == string(alg)) {
			if back {
				c.record = audit.Event{Type: audit.KeyRotated, KID: c.last.KID,
					Detail: fmt.Sprintf("dated while the clock was ahead, signs from %s instead", c.last.SignsFrom.Format(time.RFC3339))}
			}
			return c.last, nil
		}
		if err := c.removeExpired(); err != nil {
			return nil, err
		}
		if len(c.rows)-len(c.withdrawn()) >= maxKeys {
			return nil, ErrTooMany
		}
		// If the algorithm changes, the published next key cannot be used: a spare key replaces
		// the next key, and must be published for the age of the caches (--jwks-max-age) before
		// the spare key signs.
		if c.next.Algorithm != spares[0].Algorithm {
			c.remove(func(k *store.SigningKey) bool { return k == c.next })
			c.next = c.publish(spares[1])
		}
		if err := c.promote(); err != nil {
			return nil, err
		}
		c.publish(spares[0])
		c.record = audit.Event{Type: audit.KeyRotated, KID: c.next.KID,
			Detail: fmt.Sprintf("%s, signs from %s", c.next.Algorithm, c.next.SignsFrom.Format(time.RFC3339))}
		return c.next, nil
	})
}

// Revoke withdraws a leaked key and returns the key that signs now. As soon as a verifier has
// the new trust bundle, the verifier refuses every token of the withdrawn key, and every
// delegated token that was minted before the withdrawal: see [feed.Tx.EndDelegated]. If the
// withdrawn key signs, the next key signs at once. Revoke also publishes a key that no cache of
// the JWKS has seen, and lets this key sign as soon as the caches can have the key: see
// [chain.followUnseen].
//
// Errors: ErrNotFound; ErrManyWithdrawn; ErrChainBroken; ErrRolledBack; seal.ErrWrongKey; errors
// of [caller.Caller.Check] and of the store.
func (k *Keyring) Revoke(ctx context.Context, by caller.Caller, kid string) (Key, error) {
	return k.change(ctx, change{by: by}, func(c *chain, spares [2]*store.SigningKey) (*store.SigningKey, error) {
		if err := c.intact(); err != nil {
			return nil, err
		}
		leaked := find(c.rows, kid)
		if leaked == nil {
			return nil, ErrNotFound
		}
		if leaked.RevokedAt.IsZero() { // a second Revoke of the same key changes nothing
			if by.Kind != caller.Operator && c.withdrawnSince(c.now.Add(-time.Hour)) >= maxWithdrawn {
				return nil, ErrManyWithdrawn
			}
			c.withdraw(leaked)
			if err := c.bridge(leaked, spares[0]); err != nil {
				return nil, err
			}
			if err := c.followUnseen(spares[1]); err != nil {
				return nil, err
			}
			if err := c.removeExpired(); err != nil {
				return nil, err
			}
			c.record = audit.Event{Type: audit.KeyRevoked, KID: kid}
		}
		return c.signing()
	})
}

// ReplaceAll withdraws every key and lets a new key sign at once, even if the chain is broken.
// ReplaceAll also withdraws keys without a time from which they sign: the lost part of the
// database may have given these keys a time. ReplaceAll makes the new keys, calls the function
// before, and then withdraws the earlier keys. If before returns an error, ReplaceAll changes
// nothing. ReplaceAll records the event that before returns with the new key, and returns the
// new key. A verifier that reads the key set over HTTP may refuse new tokens for the age of its
// cache.
//
// ReplaceAll also works where no row is authentic, where no row is left, and where the master
// keys that sealed the rows are lost: the caller must make sure that the master key file is the
// right one.
func (k *Keyring) ReplaceAll(ctx context.Context, before func() (audit.Event, error)) (Key, error) {
	var why audit.Event
	how := change{by: caller.AtCommandLine, all: true, before: func() (err error) {
		why, err = before()
		return err
	}}
	return k.change(ctx, how, func(c *chain, spares [2]*store.SigningKey) (*store.SigningKey, error) {
		for _, row := range c.rows {
			if row.RevokedAt.IsZero() {
				c.withdraw(row)
			}
			row.SealedKey = []byte{}
		}
		first := c.publish(spares[0])
		first.SignsFrom = c.now
		c.publish(spares[1])
		c.record = why
		c.record.KID = first.KID
		return first, nil
	})
}

// change describes a change of the chain of signing keys, for [Keyring.change].
type change struct {
	by  caller.Caller
	alg token.Algorithm // the algorithm of new keys; empty: [chain.algorithm] decides
	all bool            // true: the chain gets all rows of signing_keys, authentic or not
	// before runs after the new keys are made, and before the transaction; nil: nothing runs.
	before func() error
}

// change calls do, which changes the chain of keys in memory, and then writes the rows, the
// security record and the event for verifiers in one transaction. do gets two new keys of the
// algorithm, and returns the key that change returns. If do sets no record, change writes
// nothing.
func (k *Keyring) change(ctx context.Context, how change, do func(*chain, [2]*store.SigningKey) (*store.SigningKey, error)) (Key, error) {
	spares, err := k.spares(ctx, how)
	if err == nil && how.before != nil {
		err = how.before()
	}
	if err != nil {
		return Key{}, err
	}
	var reported Key
	err = k.writer.Write(ctx, func(tx *feed.Tx) error {
		if err := tx.Exclusive(); err != nil { // the lock comes first: the changes depend on all rows of the keys
			return err
		}
		if err := how.by.Check(tx.Tx); err != nil {
			return err
		}
		c, err := k.read(tx.Tx, how.all)
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
		c.forgetWithdrawn()
		if err := c.write(k.keys.master); err != nil {
			return err
		}
		if c.withdrew {
			if err := tx.EndDelegated(); err != nil {
				return err
			}
		}
		c.record.ActorID, c.record.ActorName = how.by.ID, how.by.Name
		if err := k.audit.Record(ctx, tx.Tx, c.record); err != nil {
			return err
		}
		return tx.KeysChanged()
	})
	return reported, err
}

// spares makes two new signing keys for a change of the keys, before the transaction: making an
// RSA key takes long, and the transaction holds a lock. If the algorithm is empty,
// [chain.algorithm] decides.
func (k *Keyring) spares(ctx context.Context, how change) (spares [2]*store.SigningKey, err error) {
	alg := how.alg
	if alg == "" {
		err := k.store.Read(ctx, func(tx *store.Tx) error {
			c, err := k.read(tx, how.all)
			if err == nil {
				alg, err = c.algorithm(how.all)
			}
			return err
		})
		if err != nil {
			return spares, err
		}
	}
	for i := range spares {
		if spares[i], err = generate(k.keys.master, alg); err != nil {
			return spares, err
		}
	}
	return spares, nil
}

// read returns the signing keys in the database as a [chain], for a change of the keys. The chain
// has the authentic rows of signing_keys alone; if all is true, every row.
//
// Errors: errOtherID; errors of the store; for authentic keys seal.ErrWrongKey and ErrRolledBack.
func (k *Keyring) read(tx *store.Tx, all bool) (*chain, error) {
	a, err := k.keys.authenticate(tx)
	if all && (err == nil || errors.Is(err, seal.ErrWrongKey) || errors.Is(err, ErrRolledBack)) {
		a, err = k.readAll(tx, a)
	}
	if err != nil {
		return nil, err
	}
	return newChain(tx, a), nil
}

// readAll returns all rows of signing_keys as the beginning of a chain. The authentic rows come
// last, since [chain.algorithm] prefers the last row. known holds the authentic rows, and can
// be nil. A row with an impossible id is left out: verifiers receive the ids of withdrawn keys.
// Errors: errNoKeys before the first start, since a tag needs the id of the database; errors of
// the store.
func (k *Keyring) readAll(tx *store.Tx, known *authentic) (*authentic, error) {
	rows, err := tx.SigningKeys()
	if err != nil {
		return nil, err
	}
	id, err := databaseID(tx)
	if err != nil {
		return nil, err
	}
	if id == "" {
		return nil, errNoKeys
	}
	a := &authentic{databaseID: id, counter: k.keys.newest()}
	var trusted []*store.SigningKey
	if known != nil {
		a.counter, trusted = max(a.counter, known.counter), known.rows
	}
	for _, row := range rows {
		switch {
		case find(trusted, row.KID) != nil:
		case !token.IsKID(row.KID):
			a.refused = append(a.refused, refused{row, errors.New("the id is the id of no key")})
		default:
			a.rows = append(a.rows, row)
		}
	}
	a.rows = append(a.rows, trusted...)
	return a, nil
}
