package issuer

import (
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
)

// wrongBy is how far ahead of any possible date a key must sign to count as dated in the
// wrong time. Rotations of one moment lie some microseconds apart, and a clock that was ahead
// by less rights itself.
const wrongBy = time.Minute

// ahead returns the keys that sign from much later than a rotation of now decides: the
// clock was ahead when the keys got their dates, and has been set back since. The earliest
// comes first.
func (c *chain) ahead(age time.Duration) (keys []*store.SigningKey) {
	for _, row := range c.rows {
		if row.RevokedAt.IsZero() && row.SignsFrom.After(c.now.Add(age+wrongBy)) {
			keys = append(keys, row)
		}
	}
	slices.SortFunc(keys, func(a, b *store.SigningKey) int { return a.SignsFrom.Compare(b.SignsFrom) })
	return keys
}

// bringBack gives the keys of [chain.ahead] dates of the present time, in the same order: the
// first signs as soon as every cache knows the key, or at once if no other key signs before.
// bringBack returns false if the chain has no such keys.
//
// Tokens that were minted while the clock was ahead expire no later for that: verifiers refuse
// them as minted in the future.
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
	var before *store.SigningKey // signs until the first of keys begins
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
		before, from = key, from.Add(time.Microsecond) // two keys that begin together have no order
	}
	return true, nil
}
