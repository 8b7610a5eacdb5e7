package issuer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/token"
)

// ErrChainBroken means that a row of the table signing_keys is missing or was changed
// by hand, so that no key can be rotated or withdrawn. The operator restores the row,
// or runs `watchword datastore restored` ([Keyring.ReplaceAll]), which also ends every access
// token.
var ErrChainBroken = errors.New("the key chain is broken")

// chain holds the signing keys as a transaction has read them. A method of chain changes the
// keys in memory first, and [chain.write] then writes the rows. A change that fails before
// chain.write therefore has written nothing.
//
// Invariant for the keys that are not withdrawn: each key signs until the next key begins to
// sign; one key (last) signs without an end; and one more key (next) is published, without a
// time from which the key signs.
type chain struct {
	tx     *store.Tx
	now    time.Time
	before *authentic
	read   []*store.SigningKey // copies of the rows before the change
	rows   []*store.SigningKey // the rows after the change, the oldest first
	last   *store.SigningKey   // the key that signs now or later, without an end; nil if the chain is broken
	next   *store.SigningKey   // the published key that has no time to sign yet; nil if the chain is broken

	withdrew bool // the change has withdrawn a key

	record audit.Event // the event for the security record about the change; zero: write writes nothing
}

// newChain returns the chain of the signing keys in an authentic key set. newChain accepts a
// broken chain, since [Keyring.ReplaceAll] must be able to replace a broken chain.
func newChain(tx *store.Tx, before *authentic) *chain {
	c := &chain{tx: tx, now: tx.Now(), before: before, rows: slices.Clone(before.rows)}
	for _, row := range c.rows {
		original := *row
		c.read = append(c.read, &original)
	}
	c.findEnds()
	return c
}

// findEnds finds the key without an end (last) and the key without a time to sign (next) among
// the rows of the chain.
func (c *chain) findEnds() {
	c.last, c.next = nil, nil
	for _, row := range c.rows {
		switch {
		case !row.RevokedAt.IsZero():
		case row.SignsFrom.IsZero():
			c.next = row
		case row.SignsUntil.IsZero():
			c.last = row
		}
	}
}

// intact returns an error if the chain of signing keys has no last key (the key without an end)
// or no next key (the key without a time to sign). Errors: ErrChainBroken.
func (c *chain) intact() error {
	switch {
	case c.next == nil:
		return broken("no key is published to sign next")
	case c.last == nil:
		return broken("every key that signs has an end")
	}
	return nil
}

// younger reports whether the last key of the chain began to sign less than ttl ago, or has not
// begun yet.
func (c *chain) younger(ttl time.Duration) bool { return c.last.SignsFrom.Add(ttl).After(c.now) }

// algorithm returns the algorithm of new keys: the algorithm of the last key of the chain, or
// else of the newest row. If all is true, an attacker without the master key may have written
// the rows, so algorithm passes over unknown algorithms, and returns EdDSA if no row is left.
//
// Errors, unless all is true: errNoKeys if there is no row; ErrChainBroken if every row is
// refused or has an unknown algorithm.
func (c *chain) algorithm(all bool) (token.Algorithm, error) {
	candidates := c.rows
	if c.last != nil {
		candidates = append(slices.Clone(c.rows), c.last)
	}
	for _, row := range slices.Backward(candidates) {
		if alg, err := token.ParseAlgorithm(row.Algorithm); err == nil {
			return alg, nil
		}
	}
	switch {
	case all:
		return token.EdDSA, nil
	case len(c.before.refused) > 0:
		return "", broken(c.before.refused[0].Error())
	case len(c.rows) > 0:
		return "", broken("every algorithm is unknown")
	}
	return "", errNoKeys
}

func broken(how string) error {
	return fmt.Errorf("%w: %s; a row of signing_keys was deleted or changed by hand: restore the row, or replace all keys", ErrChainBroken, how)
}

// write writes every row of the chain into the table signing_keys, with a higher counter and a
// new tag. write deletes the rows that were removed from the chain, and the rows that are not
// authentic.
func (c *chain) write(master *seal.Keys) error {
	counter := nextCounter(c.before.counter, c.now)
	for _, row := range c.rows {
		row.Counter = counter
		if err := tag(row, master, c.before.databaseID); err != nil {
			return err
		}
		write := c.tx.UpdateSigningKey
		if find(c.read, row.KID) == nil {
			write = c.tx.InsertSigningKey
		}
		if err := write(row); err != nil {
			return err
		}
	}
	for _, original := range c.read {
		if find(c.rows, original.KID) == nil {
			if err := c.tx.DeleteSigningKey(original.KID); err != nil {
				return err
			}
		}
	}
	for _, r := range c.before.refused {
		if find(c.read, r.row.KID) == nil {
			if err := c.tx.DeleteSigningKey(r.row.KID); err != nil {
				return err
			}
		}
	}
	return nil
}

// publish adds a copy of a spare key (a key made before the transaction) to the chain, with now
// as the time of publication. The spare key itself stays unchanged, since the transaction can
// run again.
func (c *chain) publish(spare *store.SigningKey) *store.SigningKey {
	key := *spare
	key.PublishedAt = c.now
	c.rows = append(c.rows, &key)
	return &key
}

// promote sets the time from which the next key signs, and ends the last key at that
// time.
//
// Caches of the JWKS must know a key before the key signs, so the time is at least the age of
// the caches (--jwks-max-age) after the key was published. The last key signs for a microsecond
// at least, since two keys with the same start would have no order. The last key verifies until
// its last token has expired, and for feed.Margin longer: a verifier's clock can be behind.
func (c *chain) promote() error {
	return c.succeed(c.next)
}

// succeed sets the time from which the key successor signs, and ends the last key at that time;
// see [chain.promote].
func (c *chain) succeed(successor *store.SigningKey) error {
	age, err := c.tx.DurationSetting(settingMaxAge)
	if err != nil {
		return err
	}
	longest, err := c.tx.MaxLifetime()
	if err != nil {
		return err
	}
	if age > 0 {
		age += settle
	}
	published := successor.PublishedAt
	if published.After(c.now) { // the clock was ahead: perhaps no cache has the key yet, so the key is treated as published now
		published = c.now
	}
	from := slices.MaxFunc([]time.Time{c.now, published.Add(age), c.last.SignsFrom.Add(time.Microsecond)}, time.Time.Compare)
	successor.SignsFrom, c.last.SignsUntil = from, from
	c.last.VerifiesUntil = from.Add(longest + feed.Margin)
	return nil
}

// withdraw withdraws a signing key, and deletes the private half of the key: a withdrawn key
// never signs again, and a row without the private half can be read without the master key that
// sealed it.
func (c *chain) withdraw(k *store.SigningKey) {
	k.RevokedAt, k.SealedKey = c.now, []byte{}
	c.withdrew = true
}

// followUnseen publishes a key that no cache has seen, and lets the key sign after
// --jwks-max-age, when the HTTP caches of the JWKS have the key. Most libraries read the JWKS
// again only for a token with an unknown kid (the id of the key). Without an unseen key, the
// caches of most libraries would therefore trust a withdrawn key for as long as the caches
// live.
//
// If the last key does not sign yet, the unseen key replaces the last key: otherwise repeated
// withdrawals would leave a long row of keys that sign one after the other.
func (c *chain) followUnseen(spare *store.SigningKey) error {
	c.findEnds()
	if c.last == nil {
		return broken("every key that signs has an end")
	}
	if waiting := c.last; waiting.SignsFrom.After(c.now) {
		before, err := c.find("no key signs until "+waiting.KID+" begins", func(k *store.SigningKey) bool { return k.SignsUntil.Equal(waiting.SignsFrom) })
		if err == nil {
			before.SignsUntil, before.VerifiesUntil = time.Time{}, time.Time{}
			c.remove(func(k *store.SigningKey) bool { return k == waiting })
			c.last = before
		}
	}
	return c.succeed(c.publish(spare))
}

// bridge closes the gap that a withdrawn key leaves in the chain of signing keys. If the next
// key must sign now, spare becomes the next key. Errors: ErrChainBroken if the chain has no key
// beside the gap.
func (c *chain) bridge(leaked, spare *store.SigningKey) error {
	switch {
	case leaked == c.next:
		c.publish(spare)
	case leaked.SignsFrom.After(c.now): // the leaked key does not sign yet: the key before it signs longer instead
		before, err := c.find("no key signs until "+leaked.KID+" begins", func(k *store.SigningKey) bool { return k.SignsUntil.Equal(leaked.SignsFrom) })
		if err != nil {
			return err
		}
		before.SignsUntil, before.VerifiesUntil = leaked.SignsUntil, leaked.VerifiesUntil
	case leaked == c.last: // the leaked key signs now, and no later key has a time to sign: the next key signs at once
		c.next.SignsFrom = c.now
		c.publish(spare)
	case leaked.SignsUntil.After(c.now): // the leaked key signs now, and the time is set from which its successor signs: the successor signs at once
		after, err := c.find("no key begins when "+leaked.KID+" ends", func(k *store.SigningKey) bool { return k.SignsFrom.Equal(leaked.SignsUntil) })
		if err != nil {
			return err
		}
		after.SignsFrom = c.now
	}
	return nil
}

// signing returns the key that signs now. Errors: ErrChainBroken.
func (c *chain) signing() (*store.SigningKey, error) {
	return c.find("no key signs now", func(k *store.SigningKey) bool { return state(k, c.now) == Signing })
}

// find returns the first key of the chain that matches; withdrawn keys are left out. Errors:
// ErrChainBroken, with the text `missing`, if no key matches.
func (c *chain) find(missing string, matches func(*store.SigningKey) bool) (*store.SigningKey, error) {
	for _, row := range c.rows {
		if row.RevokedAt.IsZero() && matches(row) {
			return row, nil
		}
	}
	return nil, broken(missing)
}

// remove removes all matching keys from the chain.
func (c *chain) remove(matches func(*store.SigningKey) bool) {
	c.rows = slices.DeleteFunc(c.rows, matches)
}

// removeExpired removes the keys with tokens that have all expired, both by the clock and by
// the number of ticks (every ten seconds, a running server counts a tick in the database): see
// [feed.VerifiesNothing]. [chain.forgetWithdrawn] removes withdrawn keys.
func (c *chain) removeExpired() error {
	longest, err := c.tx.MaxLifetime()
	if err != nil {
		return err
	}
	aged, err := c.tx.Aged(longest + feed.Margin)
	if err != nil {
		return err
	}
	c.remove(func(k *store.SigningKey) bool { return k.RevokedAt.IsZero() && feed.VerifiesNothing(k, aged, longest) })
	return nil
}

// maxKeys and maxWithdrawn bound the number of signing keys. Every verifier loads the keys that
// are not withdrawn, and every change of the keys reads all keys.
const (
	// maxKeys bounds the keys that are not withdrawn. Ordinary rotations leave three keys: the
	// next key, the signing key, and for some minutes the key that signed before. A hundred RSA
	// keys make a key set of 45 KB.
	maxKeys = 100
	// maxWithdrawn bounds the withdrawn keys, which are kept for the operator to see. A user is
	// allowed to withdraw maxWithdrawn keys in an hour: each withdrawal sends every verifier
	// the ids of up to maxRemembered withdrawn keys, and pushes earlier ids out of the memory
	// of the server processes.
	maxWithdrawn = 20
)

// withdrawn returns the withdrawn keys, the latest withdrawal first.
func (c *chain) withdrawn() []*store.SigningKey {
	keys := slices.DeleteFunc(slices.Clone(c.rows), func(k *store.SigningKey) bool { return k.RevokedAt.IsZero() })
	slices.SortStableFunc(keys, func(a, b *store.SigningKey) int { return b.RevokedAt.Compare(a.RevokedAt) })
	return keys
}

// withdrawnSince counts the keys that were withdrawn after the time from, until now.
func (c *chain) withdrawnSince(from time.Time) (n int) {
	for _, row := range c.withdrawn() {
		if row.RevokedAt.After(from) && !row.RevokedAt.After(c.now) { // a later time than now was written while the clock was ahead
			n++
		}
	}
	return n
}

// forgetWithdrawn removes all withdrawn keys but the latest maxWithdrawn. Verifiers need no
// withdrawn key: a verifier accepts only tokens of the keys in the key set.
func (c *chain) forgetWithdrawn() {
	if keys := c.withdrawn(); len(keys) > maxWithdrawn {
		c.remove(func(k *store.SigningKey) bool { return slices.Contains(keys[maxWithdrawn:], k) })
	}
}

func find(rows []*store.SigningKey, kid string) *store.SigningKey {
	for _, row := range rows {
		if row.KID == kid {
			return row
		}
	}
	return nil
}

// settingMaxAge names the setting for the age of caches, in microseconds: how long an HTTP
// cache or a verifier is allowed to keep the key set (--jwks-max-age). A key signs only after
// the key has been published for the age of caches. The setting is in the database, since the
// replica that rotates may have another --jwks-max-age than the replica that served the key
// set.
const settingMaxAge = "jwks_max_age"

// settle is added to --jwks-max-age, the age of caches of the JWKS: a replica can serve a key
// set that was read up to a second ago, and HTTP counts whole seconds (RFC 9111, section
// 1.2.2).
const settle = time.Second

// SetMaxAge stores the setting settingMaxAge: how long a cache is allowed to keep the key set
// from now on.
func SetMaxAge(tx *store.Tx, age time.Duration) error {
	return tx.SetDurationSetting(settingMaxAge, age)
}
