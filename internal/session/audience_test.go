package session_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
)

// If the row of a session names the audience watchword beside other audiences, which no login
// does, the session gets tokens for the other audiences only.
func TestAdministrationIsAlone(t *testing.T) {
	t.Parallel()
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		var grant *session.Grant
		err := w.Feed.Write(t.Context(), func(tx *feed.Tx) (err error) {
			grant, err = w.Sessions.Start(t.Context(), tx, w.Alice, []string{caller.AdminAudience, "internal", "billing"}, audit.Login)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		tokens, err := w.Sessions.Sign(t.Context(), grant)
		if err != nil {
			t.Fatal(err)
		}
		for _, asked := range [][]string{{caller.AdminAudience}, {"internal", caller.AdminAudience}} {
			if _, err := w.Sessions.Refresh(t.Context(), tokens.Refresh, asked); !errors.Is(err, session.ErrAudience) {
				t.Errorf("a refresh for %q: %v, want ErrAudience", asked, err)
			}
		}
		tokens = w.Refresh(t, tokens.Refresh)
		p, err := w.Verifier.Verify(t.Context(), tokens.Access)
		if err != nil || !slices.Equal(p.Audience(), []string{"internal", "billing"}) {
			t.Errorf("the tokens are for %q (%v)", p.Audience(), err)
		}
	})
}
