package caller_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAlive(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, c := range map[string]struct {
		session store.Session
		user    store.User
		want    bool
	}{
		"ordinary":                       {store.Session{BornVersion: 5}, store.User{Version: 9, RevokedBelow: 5}, true},
		"of a user that was never ended": {store.Session{BornVersion: 5}, store.User{Version: 5}, true},
		"ended":                          {store.Session{BornVersion: 5, EndedAt: now}, store.User{Version: 5}, false},
		"born below":                     {store.Session{BornVersion: 4}, store.User{Version: 9, RevokedBelow: 5}, false},
		"of a disabled user":             {store.Session{BornVersion: 5}, store.User{Version: 5, Disabled: true}, false},
		"of a deleted user":              {store.Session{BornVersion: 5}, store.User{Version: 5, DeletedAt: now}, false},
		"too old":                        {store.Session{BornVersion: 5, CreatedAt: now.AddDate(-9, 0, 0)}, store.User{Version: 5}, true},
	} {
		if got := caller.Alive(&c.session, &c.user); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestMayManage(t *testing.T) {
	t.Parallel()
	user := func(id string, roles ...string) caller.Caller {
		return caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: id}, Roles: roles, Audience: []string{"internal"}}
	}
	administering := func(c caller.Caller) caller.Caller {
		c.Audience = []string{caller.AdminAudience}
		return c
	}
	service := func(c caller.Caller) caller.Caller {
		c.Kind = caller.Service
		return c
	}
	for name, c := range map[string]struct {
		caller             caller.Caller
		alice, none, admin bool // may manage alice, may manage the empty id, has the role
	}{
		"alice":                          {user("alice", "writer"), true, false, false},
		"bob":                            {user("bob", "writer", "admins"), false, false, false},
		"an admin":                       {administering(user("bob", "writer", caller.Admin)), true, true, true},
		"an admin with another token":    {user("bob", "writer", caller.Admin), false, false, true},
		"alice, an admin with another":   {user("alice", caller.Admin), true, false, true},
		"bob, with an admin's audience":  {administering(user("bob", "writer")), false, false, false},
		"alice, with an admin's":         {administering(user("alice")), true, false, false},
		"the service alice":              {service(user("alice")), false, false, false},
		"the service alice, for itself":  {service(administering(user("alice"))), true, false, false},
		"the service bob, for itself":    {service(administering(user("bob"))), false, false, false},
		"the operator":                   {caller.AtCommandLine, true, true, false},
		"the zero caller":                {caller.Caller{}, false, false, false},
		"an id without a kind":           {caller.Caller{Subject: caller.Subject{ID: "alice"}}, false, false, false},
		"an id with another kind":        {caller.Caller{Subject: caller.Subject{Kind: 99, ID: "alice"}}, false, false, false},
		"the operator in a user's place": {caller.Caller{Subject: caller.Subject{Kind: caller.Operator, ID: "bob"}}, true, true, false},
	} {
		if got := c.caller.MayManage("alice"); got != c.alice {
			t.Errorf("%s may manage alice: %t", name, got)
		}
		if got := c.caller.MayManage(""); got != c.none {
			t.Errorf("%s may manage the empty id: %t", name, got)
		}
		if got := c.caller.Is(caller.Admin); got != c.admin {
			t.Errorf("%s is an admin: %t", name, got)
		}
		if got, want := c.caller.LacksAudience(), (c.admin || c.caller.Kind == caller.Service) && !slices.Contains(c.caller.Audience, caller.AdminAudience); got != want {
			t.Errorf("%s lacks the audience: %t", name, got)
		}
	}
}

// Check compares the token of a caller with the rows of its user and session.
func TestCheck(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.SQLite(t))
	const version, revokedBelow = 9, 5
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		now := tx.Now()
		user := func(id string, edit func(*store.User)) error {
			u := &store.User{ID: id, Username: id, Roles: []string{"reader"}, Version: version, RevokedBelow: revokedBelow, CreatedAt: now, UpdatedAt: now}
			edit(u)
			return tx.InsertUser(u)
		}
		session := func(id, userID string, born int64) error {
			return tx.InsertSession(&store.Session{
				ID: id, UserID: userID, BornVersion: born, Audience: []string{"internal"}, CreatedAt: now, RefreshedAt: now,
				Generations: store.Generations{Current: 1},
			})
		}
		return errors.Join(
			user("alice", func(*store.User) {}), user("bob", func(*store.User) {}),
			user("disabled", func(u *store.User) { u.Disabled = true }),
			user("deleted", func(u *store.User) { u.DeletedAt = now }),
			session("live", "alice", version), session("old", "alice", revokedBelow-1), session("ended", "alice", version),
			session("bob's", "bob", version), session("disabled's", "disabled", version), session("deleted's", "deleted", version),
			tx.EndSession("ended"),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	by := func(userID, sessionID string, version int64) caller.Caller {
		return caller.Caller{Subject: caller.Subject{Kind: caller.User, ID: userID}, SessionID: sessionID,
			Name: userID, Roles: []string{"reader"}, Version: version}
	}
	// as returns a caller with the rights of a change that the database has lost.
	as := func(name string, roles ...string) caller.Caller {
		c := by("alice", "live", version+1)
		c.Name, c.Roles = name, roles
		return c
	}
	for name, c := range map[string]struct {
		caller caller.Caller
		want   error
	}{
		"alive":                          {by("alice", "live", version), nil},
		"the operator":                   {caller.AtCommandLine, nil},
		"the zero caller":                {caller.Caller{}, caller.ErrRevoked},
		"an unknown kind":                {caller.Caller{Subject: caller.Subject{Kind: 99}}, caller.ErrRevoked},
		"an unknown user":                {by("mallory", "live", version), caller.ErrRevoked},
		"an unknown session":             {by("alice", "pruned", version), caller.ErrRevoked},
		"another user's session":         {by("alice", "bob's", version), caller.ErrRevoked},
		"an ended session":               {by("alice", "ended", version), caller.ErrRevoked},
		"a session born below":           {by("alice", "old", version), caller.ErrRevoked},
		"a disabled user":                {by("disabled", "disabled's", version), caller.ErrRevoked},
		"a deleted user":                 {by("deleted", "deleted's", version), caller.ErrRevoked},
		"a token from below":             {by("alice", "live", revokedBelow-1), caller.ErrRevoked},
		"a token of earlier rights":      {by("alice", "live", version-1), caller.ErrStale},
		"a token minted with a floor":    {by("alice", "live", version+1), nil},
		"a role that was lost":           {as("alice", "admin", "reader"), caller.ErrStale},
		"a role taken, which was lost":   {as("alice"), caller.ErrStale},
		"a name that was lost":           {as("carol", "reader"), caller.ErrStale},
		"earlier rights, ended session":  {by("alice", "ended", version-1), caller.ErrRevoked},
		"the last rights that are alive": {by("alice", "live", revokedBelow), caller.ErrStale},
	} {
		err := s.Read(t.Context(), func(tx *store.Tx) error { return c.caller.Check(tx) })
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	err = s.Read(t.Context(), func(tx *store.Tx) error {
		user, session, err := by("alice", "live", version).Rows(tx)
		if err == nil && (user.ID != "alice" || session.ID != "live") {
			t.Errorf("Rows returns %s and %s", user.ID, session.ID)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
