package session_test

import (
	"testing"
	"time"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/issuer"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// The access token of a service account has no session, and each change of the account takes the
// token back. A token of a disabled account stays revoked after the account is enabled again.
func TestTokensOfAServiceAccount(t *testing.T) {
	t.Parallel()
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		id := w.Service(t, "search").ID
		mint := func() string {
			t.Helper()
			var row *store.User
			err := w.Store.Read(t.Context(), func(tx *store.Tx) (err error) { row, err = tx.User(id); return err })
			if err != nil {
				t.Fatal(err)
			}
			raw, _, err := w.Tokens.Mint(t.Context(), time.Now(), issuer.Subject{
				UserID: row.ID, Username: row.Username, Roles: row.Roles, Version: row.TokenVersion(), Audience: []string{"internal"},
			})
			if err != nil {
				t.Fatal(err)
			}
			w.WantVerdict(t, raw, sessiontest.Good)
			return raw
		}
		update := func(c user.Change) func() error {
			return func() error { _, err := w.Users.Update(t.Context(), caller.AtCommandLine, id, c); return err }
		}
		const stale = watchwordv1.ErrorReason_ERROR_REASON_TOKEN_STALE
		for _, c := range []struct {
			name   string
			change func() error
			want   watchwordv1.ErrorReason
		}{
			{"delegates_to", update(user.Change{DelegatesTo: &user.Audiences{"a"}}), stale},
			{"roles", update(user.Change{Roles: &user.Roles{"a"}}), stale},
			{"disabled", update(user.Change{Disabled: new(true)}), sessiontest.Revoked},
			{"revoked", func() error { return w.Users.RevokeSessions(t.Context(), caller.AtCommandLine, id) }, sessiontest.Revoked},
			{"deleted", func() error { return w.Users.Delete(t.Context(), caller.AtCommandLine, id) }, sessiontest.Revoked},
		} {
			raw := mint()
			if err := c.change(); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			w.WantVerdict(t, raw, c.want)
			if c.name == "disabled" {
				if err := update(user.Change{Disabled: new(false)})(); err != nil {
					t.Fatal(err)
				}
				w.WantVerdict(t, raw, c.want)
			}
		}
	})
}
