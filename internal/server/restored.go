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

// Restored ends every session and withdraws every key, for when what the database
// has lost may have been a revocation. It says how many users it has raised and
// which key signs now. Servers may be running. It may be done again, and must be
// where it was interrupted.
//
// The users come first and the keys last: a token that a session got before its
// user was raised is signed by a key that goes then.
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
