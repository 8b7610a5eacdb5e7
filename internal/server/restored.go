package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/seal"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// Restored ends every session and withdraws every signing key. The operator calls Restored
// after the database may have lost a revocation, such as after a backup was restored. Restored
// returns the number of users and the key that signs from now on. Servers can run during
// Restored. If Restored is interrupted, call Restored again: a second call does no harm.
//
// Restored first raises the users' versions, which ends every session, and withdraws the keys
// last. With this order, a token that a running server mints between the two steps is signed by
// a key that is withdrawn afterwards.
//
// The keys for the MAC of refresh tokens prove that the master key file is the right file.
// Restored therefore needs no authentic row of the signing keys, and also works after somebody
// has changed these rows.
func Restored(ctx context.Context, s *store.Store, master *seal.Keys, log *audit.Log) (users int, key issuer.Key, err error) {
	err = s.Read(ctx, func(tx *store.Tx) error {
		macs, err := tx.MACKeys()
		switch {
		case err != nil:
			return err
		case len(macs) == 0:
			return checkMaster(tx, master)
		}
		return session.CheckMaster(tx, master)
	})
	if err != nil {
		return 0, issuer.Key{}, err
	}
	return startOver(ctx, s, master, log, audit.Event{Type: audit.DatastoreRestored})
}

// ErrNotLost means that the master key file opens every key in the database.
var ErrNotLost = errors.New("the master key file opens every key in this database, so no master key is lost")

// Rekey lets a database continue after its master key was lost. Rekey makes a new signing key
// and a new key for the MAC of refresh tokens, encrypts the new keys under another master key,
// and withdraws every earlier signing key. Users, passwords and the security record stay; every
// session ends. No server is allowed to run during Rekey. Rekey returns the number of users and
// the key that signs from now on. If Rekey is interrupted, call Rekey again.
//
// Errors: ErrNotLost; errors of the store.
func Rekey(ctx context.Context, s *store.Store, master *seal.Keys, log *audit.Log) (users int, key issuer.Key, err error) {
	switch err := CheckMaster(ctx, s, master); {
	case err == nil:
		return 0, issuer.Key{}, ErrNotLost
	case errors.Is(err, store.ErrUnavailable):
		return 0, issuer.Key{}, err
	}
	if err := s.Write(ctx, func(tx *store.Tx) error { return session.ReplaceMAC(tx, master) }); err != nil {
		return 0, issuer.Key{}, fmt.Errorf("replacing the key of refresh tokens: %w", err)
	}
	return startOver(ctx, s, master, log, audit.Event{Type: audit.DatastoreRekeyed})
}

// startOver ends every session, withdraws every signing key, and writes the event why into the
// security record.
func startOver(ctx context.Context, s *store.Store, master *seal.Keys, log *audit.Log, why audit.Event) (users int, key issuer.Key, err error) {
	keys := issuer.NewKeySet(master, slog.New(slog.DiscardHandler))
	key, err = issuer.NewKeyring(s, feed.Direct(s), keys, log).ReplaceAll(ctx, func() (audit.Event, error) {
		if users, err = user.RaiseAll(ctx, s); err != nil {
			return why, fmt.Errorf("raising users: %w", err)
		}
		why.Detail = fmt.Sprintf("%d users raised, every signing key withdrawn", users)
		return why, nil
	})
	return users, key, err
}
