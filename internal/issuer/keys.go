package issuer

import (
	"context"
	"time"

	"github.com/watchword-auth/watchword/internal/store"
)

// State is a stage in the life of a key.
type State string

// The states of a key.
const (
	Next    State = "next"    // published, does not sign yet
	Signing State = "signing" // signs new tokens
	Retired State = "retired" // signs no more, still verifies
	Revoked State = "revoked" // verifies nothing
)

// Key describes a signing key without the private half. A time is zero until it is
// decided.
type Key struct {
	KID, Algorithm                                    string
	State                                             State
	PublishedAt, SignsFrom, SignsUntil, VerifiesUntil time.Time
}

// List returns every signing key in the database, the oldest first.
func List(ctx context.Context, s *store.Store) ([]Key, error) {
	var keys []Key
	err := s.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.SigningKeys()
		keys = nil
		for _, row := range rows {
			keys = append(keys, newKey(row, tx.Now()))
		}
		return err
	})
	return keys, err
}

func newKey(row *store.SigningKey, now time.Time) Key {
	return Key{
		KID: row.KID, Algorithm: row.Algorithm, State: state(row, now), PublishedAt: row.PublishedAt,
		SignsFrom: row.SignsFrom, SignsUntil: row.SignsUntil, VerifiesUntil: row.VerifiesUntil,
	}
}

// state returns a key's state at a time. A key without a date, and a key that begins
// later, are both [Next].
func state(row *store.SigningKey, now time.Time) State {
	switch {
	case !row.RevokedAt.IsZero():
		return Revoked
	case row.SignsFrom.IsZero() || row.SignsFrom.After(now):
		return Next
	case row.SignsUntil.IsZero() || row.SignsUntil.After(now):
		return Signing
	}
	return Retired
}
