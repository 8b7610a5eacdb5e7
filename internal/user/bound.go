package user

import (
	"context"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/store"
)

// removeBindings removes the bindings of a deleted service account. The caller must hold
// [store.Tx.Exclusive]: then no binding is made at the same time.
func (u *Users) removeBindings(ctx context.Context, tx *store.Tx, by caller.Caller, row *store.User) error {
	const step = 100
	for {
		bindings, err := tx.Bindings(store.BindingFilter{UserID: row.ID}, "", step)
		for _, b := range bindings {
			if err == nil {
				err = tx.DeleteBinding(b.ID)
			}
			if err == nil {
				err = u.audit.Record(ctx, tx, audit.OfBinding(audit.BindingDeleted, by, b, row.Username))
			}
		}
		if err != nil || len(bindings) < step {
			return err
		}
	}
}

// RevokeEach raises the versions of the users with the given ids, and appends the events for
// verifiers: verifiers then refuse every access token that these users got before, and the
// sessions of the users have ended. RevokeEach returns the users.
//
// Errors: errors of the store.
func RevokeEach(tx *feed.Tx, ids []string) ([]*store.Raised, error) {
	floor, err := tx.HoldFloor()
	if err != nil {
		return nil, err
	}
	raised, err := tx.RaiseUsersByID(ids, nextVersion(floor, tx.Now()))
	for _, r := range raised {
		if err == nil {
			err = tx.VersionRaised(r.UserID, r.Version, true)
		}
	}
	return raised, err
}
