package issuer

import (
	"context"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
)

// ListRows returns every signing key in the database, authentic or not.
func ListRows(ctx context.Context, s *store.Store) (keys []Key, err error) {
	err = s.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.SigningKeys()
		keys = nil
		for _, row := range rows {
			keys = append(keys, newKey(row, tx.Now()))
		}
		return err
	})
	return keys, err
}

// EditRows changes the rows of the keys, and authenticates the changed rows.
func (k *Keyring) EditRows(ctx context.Context, edit func(*store.SigningKey)) error {
	_, err := k.change(ctx, change{by: caller.AtCommandLine}, func(c *chain, _ [2]*store.SigningKey) (*store.SigningKey, error) {
		for _, row := range c.rows {
			edit(row)
		}
		c.record = audit.Event{Type: audit.KeyRotated}
		return c.rows[0], nil
	})
	return err
}
