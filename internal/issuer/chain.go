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
// or calls [Keyring.ReplaceAll], which also ends every access token.
var ErrChainBroken = errors.New("the key chain is broken")

// chain holds the signing keys as a transaction has read them. A change happens in
// memory first; [chain.write] then writes the rows that changed. So a change that fails
// half-way has written nothing.
//
// Invariant, withdrawn keys aside: each key signs until the next key begins; exactly
// one key (last) has no end; and one more key (next) is published without a date.
type chain struct {
	tx     *store.Tx
	now    time.Time
	before *authentic
	read   []*store.SigningKey // copies of the rows before the change
	rows   []*store.SigningKey // the rows after the change, the oldest first
	last   *store.SigningKey   // signs now, or will sign; nil if the chain is broken
	next   *store.SigningKey   // published, has no date yet; nil if the chain is broken

	withdrew bool // a key was withdrawn

	record audit.Event // what the security record says about the change; empty: nothing is written
}

// newChain finds last and next among the keys of an authentic key set. newChain accepts a
// broken chain, since [Keyring.ReplaceAll] must work on one.
func newChain(tx *store.Tx, before *authentic) *chain {
	c := &chain{tx: tx, now: tx.Now(), before: before, rows: slices.Clone(before.rows)}
	for _, row := range c.rows {
		original := *row
		c.read = append(c.read, &original)
	}
	c.findEnds()
	return c
}

// findEnds sets last and next.
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

// intact returns an error if the chain of signing keys has no last key or no next key.
// Errors: ErrChainBroken.
func (c *chain) intact() error {
	switch {
	case c.next == nil:
		return broken("no key is published to sign next")
	case c.last == nil:
		return broken("every key that signs has an end")
	}
	return nil
}

// younger reports whether the last key of the chain began to sign less than ttl ago, or
// begins later.
func (c *chain) younger(ttl time.Duration) bool { return c.last.SignsFrom.Add(ttl).After(c.now) }

// algorithm returns the algorithm of new keys: that of the last key of the chain, or else that
// of the newest row. If all is true, somebody without the master key may have written the rows:
// algorithm passes over unknown algorithms, and returns EdDSA if no row is left.
//
// Errors, unless all is true: errNoKeys; ErrChainBroken if no row is authentic.
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

// write writes every row with a higher counter and a new tag. write deletes the rows that
// were removed from the chain, and the rows that are not authentic.
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

// publish adds a copy of a spare key to the chain, published now. The spare key itself
// stays unchanged, since the transaction may run again.
func (c *chain) publish(spare *store.SigningKey) *store.SigningKey {
	key := *spare
	key.PublishedAt = c.now
	c.rows = append(c.rows, &key)
	return &key
}

// promote sets the time from which the next key signs, and ends the last key at that
// time.
//
// Caches must know a key before it signs, so the time is at least the age of the caches
// after the key was published. The last key signs for a microsecond at least, since two
// keys that begin at the same time would have no order. The last key verifies until its
// last token has expired, and for feed.Margin longer: a verifier's clock may be behind.
func (c *chain) promote() error {
	return c.succeed(c.next)
}

// succeed lets a key without a date follow the last key; see [chain.promote].
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
	if published.After(c.now) { // the clock was ahead: the key may be published only now
		published = c.now
	}
	from := slices.MaxFunc([]time.Time{c.now, published.Add(age), c.last.SignsFrom.Add(time.Microsecond)}, time.Time.Compare)
	successor.SignsFrom, c.last.SignsUntil = from, from
	c.last.VerifiesUntil = from.Add(longest + feed.Margin)
	return nil
}

// withdraw withdraws a key, and destroys the private half: a withdrawn key signs nothing
// again, and no master key is needed for the row.
func (c *chain) withdraw(k *store.SigningKey) {
	k.RevokedAt, k.SealedKey = c.now, []byte{}
	c.withdrew = true
}

// commitTime is longer than any transaction takes from reading the clock to the commit: the
// store gives a caller five seconds.
const commitTime = 10 * time.Second

// endDelegated makes every delegated token minted so far invalid, if a key was withdrawn: a
// token that the leaked key signed may have been delegated, and the delegated token has the
// signature of another key.
//
// A replica that reads the database before the commit of this transaction may mint a delegated
// token afterwards, by a later clock than c.now. So endDelegated adds commitTime, and a token
// minted within commitTime has its time of issue set ahead: see [Subject]. A claim `iat` has
// whole seconds, and so has the moment. Each moment is a second after the moment before, at
// least, since tokens of the moment before may exist already. The moment never falls, also if
// the clock is set back.
func (c *chain) endDelegated() error {
	if !c.withdrew {
		return nil
	}
	before, err := c.tx.DelegatedNotBefore()
	if err != nil {
		return err
	}
	next := c.now.Add(commitTime).Truncate(time.Second)
	if next.Before(before) {
		next = before
	}
	return c.tx.RaiseDelegatedNotBefore(next.Add(time.Second))
}

// followUnseen publishes a key that no cache has seen, and lets the key sign as soon as the
// caches of --jwks-max-age have the key. Most libraries read the JWKS again only for a token
// with an unknown kid, so without an unseen key their caches would trust a withdrawn key for
// as long as the caches live.
//
// A last key that does not sign yet makes room for the unseen key, so that repeated
// withdrawals leave no row of waiting keys.
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

// bridge closes the gap that a withdrawn key leaves in the chain of signing keys. spare
// replaces the next key if bridge needs the next key now. Errors: ErrChainBroken if the
// chain has no key beside the gap.
func (c *chain) bridge(leaked, spare *store.SigningKey) error {
	switch {
	case leaked == c.next:
		c.publish(spare)
	case leaked.SignsFrom.After(c.now): // does not sign yet: the key before it signs longer instead
		before, err := c.find("no key signs until "+leaked.KID+" begins", func(k *store.SigningKey) bool { return k.SignsUntil.Equal(leaked.SignsFrom) })
		if err != nil {
			return err
		}
		before.SignsUntil, before.VerifiesUntil = leaked.SignsUntil, leaked.VerifiesUntil
	case leaked == c.last: // signs now, and no successor has a date: the next key signs at once
		c.next.SignsFrom = c.now
		c.publish(spare)
	case leaked.SignsUntil.After(c.now): // signs now, and its successor has a date: the successor signs at once
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

// find returns the first key that matches; withdrawn keys are left out. Errors:
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

// removeExpired removes the keys of which the last token has expired, by the clock and by the
// ticks: see [feed.VerifiesNothing]. Withdrawn keys are removed by [chain.forgetWithdrawn].
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

// Bounds of the chain. Every verifier loads the keys that are not withdrawn, and every
// change reads all keys.
const (
	// maxKeys bounds the keys that are not withdrawn. Ordinary rotations leave three: the
	// next key, the signing key, and for some minutes the key before. A hundred RSA keys
	// make a key set of 45 KB.
	maxKeys = 100
	// maxWithdrawn bounds the withdrawn keys, which are kept for the operator to see. A user
	// withdraws as many keys in an hour at most: each withdrawal sends every verifier the ids of
	// up to maxRemembered keys, and makes the memory of the processes forget earlier ids.
	maxWithdrawn = 20
)

// withdrawn returns the withdrawn keys, the latest withdrawal first.
func (c *chain) withdrawn() []*store.SigningKey {
	keys := slices.DeleteFunc(slices.Clone(c.rows), func(k *store.SigningKey) bool { return k.RevokedAt.IsZero() })
	slices.SortStableFunc(keys, func(a, b *store.SigningKey) int { return b.RevokedAt.Compare(a.RevokedAt) })
	return keys
}

// withdrawnSince counts the withdrawals from a time until now.
func (c *chain) withdrawnSince(from time.Time) (n int) {
	for _, row := range c.withdrawn() {
		if row.RevokedAt.After(from) && !row.RevokedAt.After(c.now) { // later: the clock was ahead
			n++
		}
	}
	return n
}

// forgetWithdrawn removes all withdrawn keys but the latest maxWithdrawn. No verifier
// needs a withdrawn key: only keys in the key set verify.
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

// settingMaxAge names the setting for the age of caches: how long an HTTP cache or a
// verifier may keep the key set (--jwks-max-age), in microseconds. A key must have been
// published for as long before it signs. The setting is in the database, since the
// replica that rotates may have another flag than the replica that served the key set.
const settingMaxAge = "jwks_max_age"

// settle is added to the age of caches: a replica may serve the key set of a moment
// ago, and HTTP counts whole seconds (RFC 9111, section 1.2.2).
const settle = time.Second

// SetMaxAge stores how long a cache may keep the key set from now on.
func SetMaxAge(tx *store.Tx, age time.Duration) error {
	return tx.SetDurationSetting(settingMaxAge, age)
}
