package issuer

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
)

// ErrChainBroken reports a row of the signing keys that is missing or was changed by
// hand, so rotation cannot go on. [Keyring.ReplaceAll] mends the chain.
var ErrChainBroken = errors.New("the key chain is broken")

// chain holds the signing keys that a transaction has read. A change happens in memory
// first; [chain.write] then writes the rows that changed.
//
// Invariant, but for withdrawn keys: each key signs until the next begins, exactly one
// key (last) has no end, and one more key (next) is published without a date.
type chain struct {
	tx   *store.Tx
	now  time.Time
	read []*store.SigningKey // copies of the rows before the change
	rows []*store.SigningKey // the rows after the change, the oldest first
	last *store.SigningKey   // signs now, or will; nil if the chain is broken
	next *store.SigningKey   // nil if the chain is broken

	record audit.Event // of the change
}

func readChain(tx *store.Tx) (*chain, error) {
	rows, err := tx.SigningKeys()
	if err != nil {
		return nil, err
	}
	c := &chain{tx: tx, now: tx.Now(), rows: rows}
	for _, row := range rows {
		original := *row
		c.read = append(c.read, &original)
		switch {
		case !row.RevokedAt.IsZero():
		case row.SignsFrom.IsZero():
			c.next = row
		case row.SignsUntil.IsZero():
			c.last = row
		}
	}
	return c, nil
}

// intact checks for the last and the next key. Errors: ErrChainBroken.
func (c *chain) intact() error {
	switch {
	case c.next == nil:
		return broken("no key is published to sign next")
	case c.last == nil:
		return broken("every key that signs has an end")
	}
	return nil
}

// younger reports whether the last key began to sign less than ttl ago, or will begin.
func (c *chain) younger(ttl time.Duration) bool { return c.last.SignsFrom.Add(ttl).After(c.now) }

func broken(how string) error {
	return fmt.Errorf("%w: %s; a row of signing_keys was deleted or changed by hand: restore the row, or replace all keys", ErrChainBroken, how)
}

// write writes every difference since readChain: rows added, altered, removed.
func (c *chain) write() error {
	for _, row := range c.rows {
		original := find(c.read, row.KID)
		var err error
		if original == nil {
			err = c.tx.InsertSigningKey(row)
		} else if !reflect.DeepEqual(row, original) {
			err = c.tx.UpdateSigningKey(row)
		}
		if err != nil {
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
	return nil
}

// publish adds a copy of a spare key, since the transaction may run again.
func (c *chain) publish(spare *store.SigningKey) *store.SigningKey {
	key := *spare
	key.PublishedAt = c.now
	c.rows = append(c.rows, &key)
	return &key
}

// promote dates the next key and the end of the last key. The last key signs for a
// microsecond at least: two keys that begin at once would have no order.
func (c *chain) promote() error {
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
	from := slices.MaxFunc([]time.Time{c.now, c.next.PublishedAt.Add(age), c.last.SignsFrom.Add(time.Microsecond)}, time.Time.Compare)
	c.next.SignsFrom, c.last.SignsUntil = from, from
	c.last.VerifiesUntil = from.Add(longest + feed.Margin)
	return nil
}

// bridge closes the gap of a withdrawn key in the chain. Errors: ErrChainBroken if the
// key has no neighbour.
func (c *chain) bridge(leaked, spare *store.SigningKey) error {
	switch {
	case leaked == c.next:
		c.publish(spare)
	case leaked.SignsFrom.After(c.now): // does not sign yet: the key before goes on instead
		before, err := c.find("no key signs until "+leaked.KID+" begins", func(k *store.SigningKey) bool { return k.SignsUntil.Equal(leaked.SignsFrom) })
		if err != nil {
			return err
		}
		before.SignsUntil, before.VerifiesUntil = leaked.SignsUntil, leaked.VerifiesUntil
	case leaked == c.last: // signs, and has no successor with a date
		c.next.SignsFrom = c.now
		c.publish(spare)
	case leaked.SignsUntil.After(c.now): // signs, and the successor has a date
		after, err := c.find("no key begins when "+leaked.KID+" ends", func(k *store.SigningKey) bool { return k.SignsFrom.Equal(leaked.SignsUntil) })
		if err != nil {
			return err
		}
		after.SignsFrom = c.now
	}
	return nil
}

// signing returns the key for now.
func (c *chain) signing() (*store.SigningKey, error) {
	return c.find("no key signs now", func(k *store.SigningKey) bool { return state(k, c.now) == Signing })
}

// find returns the first key that matches, withdrawn keys aside. Errors:
// ErrChainBroken, with the text `missing`, if no key matches.
func (c *chain) find(missing string, matches func(*store.SigningKey) bool) (*store.SigningKey, error) {
	for _, row := range c.rows {
		if row.RevokedAt.IsZero() && matches(row) {
			return row, nil
		}
	}
	return nil, broken(missing)
}

// remove removes all matching keys.
func (c *chain) remove(matches func(*store.SigningKey) bool) {
	c.rows = slices.DeleteFunc(c.rows, matches)
}

// verifiesNothing reports whether the last token of a key has expired.
func (c *chain) verifiesNothing(k *store.SigningKey) bool {
	return !k.VerifiesUntil.IsZero() && k.VerifiesUntil.Before(c.now)
}

func find(rows []*store.SigningKey, kid string) *store.SigningKey {
	for _, row := range rows {
		if row.KID == kid {
			return row
		}
	}
	return nil
}

// settingMaxAge names the setting for the age of caches: how long a cache may keep the
// key set, in microseconds. A key must have been published for as long before signing.
const settingMaxAge = "jwks_max_age"

// settle is how much longer than a cache's age a key must have been published: a
// replica may serve the key set of a moment ago, and HTTP counts whole seconds.
const settle = time.Second

// SetMaxAge stores how long a cache may keep the key set from now on.
func SetMaxAge(tx *store.Tx, age time.Duration) error {
	return tx.SetDurationSetting(settingMaxAge, age)
}
