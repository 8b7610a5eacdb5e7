package issuer

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
)

// State says whether a signing key does not sign yet, signs, has stopped signing, was
// withdrawn, or is not trusted.
type State string

// A signing key has one of these states.
const (
	Next    State = "next"    // the key is published, and does not sign yet
	Signing State = "signing" // the key signs new tokens
	Retired State = "retired" // the key has stopped signing, and still verifies tokens that it signed before
	Revoked State = "revoked" // the key was withdrawn, and verifies no token
	// Untrusted means that the row of the key in signing_keys is not authentic: no token of the
	// key is accepted.
	Untrusted State = "untrusted"
)

// Key describes a signing key without the private half. A field with a time is zero until
// Watchword has decided the time.
type Key struct {
	KID, Algorithm                                    string
	State                                             State
	PublishedAt, SignsFrom, SignsUntil, VerifiesUntil time.Time
}

// List returns every signing key in the database, the oldest first. If master is nil, List does
// not check whether the rows are authentic.
//
// Errors: seal.ErrWrongKey; errors of the store.
func List(ctx context.Context, s *store.Store, master *seal.Keys) ([]Key, error) {
	var keys []Key
	err := s.Read(ctx, func(tx *store.Tx) error {
		keys = nil
		a, err := listed(tx, master)
		if err != nil {
			return err
		}
		for _, row := range a.rows {
			keys = append(keys, newKey(row, tx.Now()))
		}
		for _, r := range a.refused {
			key := newKey(r.row, tx.Now())
			key.State = Untrusted
			keys = append(keys, key)
		}
		slices.SortStableFunc(keys, func(a, b Key) int { return a.PublishedAt.Compare(b.PublishedAt) })
		return nil
	})
	return keys, err
}

func listed(tx *store.Tx, master *seal.Keys) (*authentic, error) {
	if master == nil {
		rows, err := tx.SigningKeys()
		return &authentic{rows: rows}, err
	}
	id, err := databaseID(tx)
	if err != nil {
		return nil, err
	}
	return authenticate(tx, master, id)
}

// List returns every signing key in the database, the oldest first. Errors: those of
// the function List.
func (k *Keyring) List(ctx context.Context) ([]Key, error) { return List(ctx, k.store, k.keys.master) }

func newKey(row *store.SigningKey, now time.Time) Key {
	return Key{
		KID: row.KID, Algorithm: row.Algorithm, State: state(row, now), PublishedAt: row.PublishedAt,
		SignsFrom: row.SignsFrom, SignsUntil: row.SignsUntil, VerifiesUntil: row.VerifiesUntil,
	}
}

// state returns a key's state at a time. A key without a time from which it signs is [Next],
// and so is a key that signs from a later time.
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
