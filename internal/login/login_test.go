package login_test

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/login"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/session"
	"github.com/watchword-auth/watchword/internal/session/sessiontest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

// about returns the user whom a refusal names for the security record.
func about(err error) string {
	var refusal audit.Refusal
	errors.As(err, &refusal)
	return refusal.UserID
}

// A refused login says whether the user is disabled after the right password alone. The
// security record learns which user it was.
func TestRefusedLogins(t *testing.T) {
	t.Parallel()
	w := sessiontest.New(t)
	refused := func(name user.Name, password string, want error, user string) {
		t.Helper()
		tokens, err := w.Logins.Login(t.Context(), name, sessiontest.Parse(t, password), nil, "")
		if tokens != nil || !errors.Is(err, want) || about(err) != user {
			t.Errorf("%s with %q: %v about %q, want %v about %q", name, password, err, about(err), want, user)
		}
	}
	w.Service(t, "search")
	refused("mallory", sessiontest.Password, login.ErrCredentials, "")
	refused("search", sessiontest.Password, login.ErrCredentials, "")
	refused("alice", "another password", login.ErrCredentials, w.Alice.ID)
	if _, err := w.Users.Update(t.Context(), caller.AtCommandLine, w.Alice.ID, user.Change{Disabled: new(true)}); err != nil {
		t.Fatal(err)
	}
	refused("alice", "another password", login.ErrCredentials, w.Alice.ID)
	refused("alice", sessiontest.Password, login.ErrUserDisabled, w.Alice.ID)
	if err := w.Users.Delete(t.Context(), caller.AtCommandLine, w.Alice.ID); err != nil {
		t.Fatal(err)
	}
	refused("alice", sessiontest.Password, login.ErrCredentials, "")
}

// The tokens of a login are for the audience that the login asks for.
func TestAudience(t *testing.T) {
	t.Parallel()
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		pw := sessiontest.Parse(t, sessiontest.Password)
		if _, err := w.Logins.Login(t.Context(), "alice", pw, []string{"elsewhere"}, ""); !errors.Is(err, session.ErrAudience) {
			t.Fatalf("login for elsewhere: %v", err)
		}
		if _, err := w.Logins.Login(t.Context(), "alice", pw, []string{"watchword", "billing"}, ""); !errors.Is(err, session.ErrNotAlone) {
			t.Fatalf("login for watchword and billing: %v", err)
		}
		for _, c := range []struct{ asked, want []string }{
			{nil, []string{"internal"}}, // the first audience of the server
			{[]string{"billing", "billing"}, []string{"billing"}},
			{[]string{"billing", "internal"}, []string{"billing", "internal"}},
			{[]string{"watchword"}, []string{"watchword"}},
			{[]string{"watchword", "watchword"}, []string{"watchword"}},
		} {
			tokens, err := w.Logins.Login(t.Context(), "alice", pw, c.asked, "")
			if err != nil {
				t.Fatal(err)
			}
			p, err := w.Verifier.Verify(t.Context(), tokens.Access)
			if err != nil || !slices.Equal(p.Audience(), c.want) {
				t.Errorf("a login for %q: %v, want %q (%v)", c.asked, p.Audience(), c.want, err)
			}
		}
	})
}

// A change of password needs the current one, and keeps the audience of the session.
func TestChangePassword(t *testing.T) {
	t.Parallel()
	w := world{sessiontest.New(t)}
	first, err := w.Logins.Login(t.Context(), "alice", sessiontest.Parse(t, sessiontest.Password), []string{"billing"}, "")
	if err != nil {
		t.Fatal(err)
	}
	by, next := w.caller(t, w.Alice.ID, first), sessiontest.Parse(t, "changed by Alice")
	_, err = w.Logins.ChangePassword(t.Context(), by, sessiontest.Parse(t, "another password"), next)
	if !errors.Is(err, login.ErrCredentials) || about(err) != w.Alice.ID {
		t.Errorf("with a wrong password: %v about %q", err, about(err))
	}
	w.WantVerdict(t, first.Access, sessiontest.Good)
	second, err := w.Logins.ChangePassword(t.Context(), by, sessiontest.Parse(t, sessiontest.Password), next)
	if err != nil {
		t.Fatal(err)
	}
	w.WantEnded(t, "the session of before", first)
	p, err := w.Verifier.Verify(t.Context(), second.Access)
	if err != nil || !slices.Equal(p.Audience(), []string{"billing"}) {
		t.Errorf("the new session is for %q (%v)", p.Audience(), err)
	}
	w.standing(t, sessiontest.Password, "changed by Alice")
}

// A login that is cut is not repeated: its outcome is unknown, and repeating could start
// a second session.
func TestALoginThatIsCutIsUncertain(t *testing.T) {
	w, proxy := sessiontest.Wired(t)
	proxy.Judge(sessiontest.CutOnce("INSERT INTO audit", pgtest.CutAfter))
	_, err := w.Logins.Login(t.Context(), "alice", sessiontest.Parse(t, sessiontest.Password), nil, "")
	proxy.Judge(nil)
	if !errors.Is(err, store.ErrUncertain) {
		t.Errorf("Login: %v", err)
	}
	err = w.Store.Read(t.Context(), func(tx *store.Tx) error {
		sessions, err := tx.Sessions(w.Alice, store.SessionPlace{}, 10)
		if len(sessions) != 1 {
			t.Errorf("%d sessions were made", len(sessions))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestStatementsAndRoundTrips lists the statements and round trips that a login sends to the
// database.
func TestStatementsAndRoundTrips(t *testing.T) {
	w, proxy := sessiontest.Wired(t)
	count := sessiontest.Count(proxy)
	for range 20 { // the first call on a connection prepares its statements there
		w.Login(t)
	}
	// the statements, with "|" or "and" between two round trips: BEGIN, settings, buckets |
	// user | COMMIT, and BEGIN, settings, user, time | ended sessions beyond the bound |
	// sessions beyond the bound, time | session, the user's records | record, COMMIT.
	count.Want(t, "Login", 16, 8, func() { w.Login(t) })
}

// Login with the name of a service account costs what Login with an unknown name costs, and
// returns the same error for the client and for the security record. An earlier refresh token
// of another user changes nothing.
func TestTheNameOfAService(t *testing.T) {
	t.Parallel()
	sessiontest.EachEngine(t, func(t *testing.T, w *sessiontest.World) {
		w.Service(t, "search")
		pool := password.NewPool(password.Config{Params: password.Params{Memory: 64, Time: 1, Threads: 1}})
		logins, previous := w.NewLogins(t, w.Sessions, pool), w.Login(t).Refresh
		for _, token := range []string{"", previous} {
			var errs []error
			for _, name := range []user.Name{"mallory", "search"} {
				before := pool.Stats().Hashes.Count
				_, err := logins.Login(t.Context(), name, sessiontest.Parse(t, sessiontest.Password), nil, token)
				if n := pool.Stats().Hashes.Count - before; n != 1 {
					t.Errorf("a login as %s cost %d hashes", name, n)
				}
				errs = append(errs, err)
			}
			if !errors.Is(errs[0], login.ErrCredentials) || !reflect.DeepEqual(errs[0], errs[1]) {
				t.Errorf("an unknown name: %#v; a service account: %#v", errs[0], errs[1])
			}
		}
	})
}

// A service account has no password to change.
func TestAServiceHasNoPassword(t *testing.T) {
	t.Parallel()
	w := sessiontest.New(t)
	search, pw := w.Service(t, "search"), sessiontest.Parse(t, sessiontest.Password)
	by := caller.Caller{Subject: caller.Subject{Kind: caller.Service, ID: search.ID}, Name: search.Username, Version: search.Version}
	if _, err := w.Logins.ChangePassword(t.Context(), by, pw, pw); !errors.Is(err, user.ErrService) {
		t.Errorf("ChangePassword of a service account: %v", err)
	}
}
