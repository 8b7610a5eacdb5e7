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

// Restored ends every session and withdraws every signing key. The operator calls
// Restored after the database may have lost a revocation, such as after a backup was
// restored. Restored returns the number of users and the key that signs from now on.
// Servers may be running. If Restored is interrupted, call it again: a second call is
// harmless.
//
// The users' versions are raised first, and the keys withdrawn last. So a token that a
// running server makes in between is signed by a key that is withdrawn afterwards.
func Restored(ctx context.Context, s *store.Store, master *seal.Keys, log *audit.Log) (users int, key issuer.Key, err error) {
	// With the wrong file, the new keys would be sealed under another master key than
	// the rest of the database, and no server could open both.
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
