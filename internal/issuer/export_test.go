package issuer

import (
	"context"

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
