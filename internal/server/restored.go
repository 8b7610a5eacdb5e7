package server

import (
	"context"
	"fmt"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// Restored ends every session and withdraws every key, after the database may have lost a
// revocation. Restored returns the number of users and the key now signing. Servers may
// be running. An interrupted Restored must be called again, and may be.
//
// The users come first and the keys last: a token minted before its user was raised is
// signed by a key withdrawn afterwards.
func Restored(ctx context.Context, s *store.Store, master *seal.Keys, log *audit.Log) (users int, key issuer.Key, err error) {
	// The new keys would be sealed under another master key than the rest.
	if err := issuer.CheckMaster(ctx, s, master); err != nil {
		return 0, issuer.Key{}, err
	}
	if users, err = user.RaiseAll(ctx, s); err != nil {
		return users, issuer.Key{}, fmt.Errorf("raising users: %w", err)
	}
	why := audit.Event{Type: audit.DatastoreRestored, Detail: fmt.Sprintf("%d users raised, every signing key withdrawn", users)}
	key, err = issuer.NewKeyring(s, feed.Direct(s), master, log).ReplaceAll(ctx, why)
	return users, key, err
}
