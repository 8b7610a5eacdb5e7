package issuer

import (
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
)

// wrongBy is the tolerance of [chain.ahead]: if a key begins to sign more than wrongBy later
// than a rotation now could set, the clock was ahead when the key got its time. Several
// rotations at one moment set times some microseconds apart, and the clock soon reaches a time
// that is wrong by less than wrongBy.
const wrongBy = time.Minute

// ahead returns the keys that are to sign from a time more than wrongBy later than a rotation
// now would set: the clock was ahead when the keys got their times, and has been set back
// since. The key that signs first comes first.
func (c *chain) ahead(age time.Duration) (keys []*store.SigningKey) {
	for _, row := range c.rows {
		if row.RevokedAt.IsZero() && row.SignsFrom.After(c.now.Add(age+wrongBy)) {
			keys = append(keys, row)
		}
	}
	slices.SortFunc(keys, func(a, b *store.SigningKey) int { return a.SignsFrom.Compare(b.SignsFrom) })
	return keys
}

// bringBack gives the keys that [chain.ahead] returns other times to sign, near the present, in
// the same order: the first key signs as soon as every cache of the JWKS knows the key, or at
// once if no other key signs before. bringBack returns false if [chain.ahead] finds no keys.
//
// bringBack ignores the tokens that were minted while the clock was ahead, although a key can
// now end before such a token expires: verifiers refuse a token that was minted in the future.
func (c *chain) bringBack() (bool, error) {
	age, err := c.tx.DurationSetting(settingMaxAge)
	if err != nil {
		return false, err
	}
	keys := c.ahead(age)
	if len(keys) == 0 {
		return false, nil
	}
	longest, err := c.tx.MaxLifetime()
	if err != nil {
		return false, err
	}
	var before *store.SigningKey // the key that signs until the first key in keys begins to sign
	for _, row := range c.rows {
		if row.RevokedAt.IsZero() && row.SignsUntil.Equal(keys[0].SignsFrom) {
			before = row
		}
	}
	from := c.now
	if before != nil && age > 0 {
		from = c.now.Add(age + settle)
	}
	for _, key := range keys {
		key.SignsFrom = from
		if before != nil {
			before.SignsUntil, before.VerifiesUntil = from, from.Add(longest+feed.Margin)
		}
		before, from = key, from.Add(time.Microsecond) // a microsecond later: two keys that begin to sign at the same time have no order
	}
	return true, nil
}
