package user_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/feed"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/pgtest"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/user"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

// operator makes every change that needs a caller.
var operator = caller.AtCommandLine

// fixture is the administration of the users in a new database.
type fixture struct {
	*user.Users
	uri   string
	store *store.Store
	pool  *password.Pool // a pool with cheap hashes
}

func newFixture(t *testing.T, uri string) *fixture {
	t.Helper()
	s := storetest.Open(t, uri)
	pool := password.NewPool(password.Config{Params: password.Params{Memory: 8, Time: 1, Threads: 1}})
	return &fixture{user.New(s, feed.Direct(s), pool, audit.New(s, slog.New(slog.DiscardHandler))), uri, s, pool}
}

// eachEngine runs a test with the users of a new database, once for each engine.
func eachEngine(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Parallel()
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) { test(t, newFixture(t, new(t))) })
}

// matches reports whether a stored hash is the hash of a password.
func (f *fixture) matches(t *testing.T, pw password.Password, hash string) bool {
	t.Helper()
	turn, err := f.pool.Enter(t.Context(), password.Admin(""))
	if err != nil {
		t.Fatal(err)
	}
	defer turn.End()
	match, _, err := turn.Compare(t.Context(), pw, hash)
	if err != nil {
		t.Fatal(err)
	}
	return match
}

func parse(t *testing.T, text string) password.Password {
	t.Helper()
	pw, err := password.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return pw
}

func (f *fixture) create(t *testing.T, name user.Name, roles ...string) *store.User {
	t.Helper()
	row, err := f.Create(t.Context(), operator, name, roles, parse(t, "open sesame, please"))
	if err != nil {
		t.Fatal(err)
	}
	return row
}

func (f *fixture) read(t *testing.T, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := f.store.Read(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// row returns a user's row as the database has it, also of a deleted user.
func (f *fixture) row(t *testing.T, id string) (row *store.User) {
	t.Helper()
	f.read(t, func(tx *store.Tx) (err error) {
		row, err = tx.User(id)
		return err
	})
	return row
}

// event holds what verifiers learn of a change.
type event struct {
	kind    store.EventKind
	subject string
	version int64
}

// trail is everything that changes leave behind: events, and types of records, the
// oldest first.
type trail struct {
	events  []event
	records []string
}

func (f *fixture) trail(t *testing.T) (tr trail) {
	t.Helper()
	f.read(t, func(tx *store.Tx) error {
		events, err := tx.Events(0, 1000)
		if err != nil {
			return err
		}
		for _, e := range events {
			tr.events = append(tr.events, event{e.Kind, e.Subject, e.Version})
		}
		return nil
	})
	records, _, err := audit.List(t.Context(), f.store, store.AuditFilter{}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		tr.records = append([]string{r.Type + " " + r.UserID}, tr.records...)
	}
	return tr
}

func TestCreate(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		ever := func() (had bool) {
			f.read(t, func(tx *store.Tx) (err error) {
				had, err = user.EverMade(tx)
				return err
			})
			return had
		}
		if ever() {
			t.Error("an empty database had a user")
		}
		began := time.Now().Unix()
		row := f.create(t, "alice", "reader", "writer")
		if got := f.row(t, row.ID); !reflect.DeepEqual(got, row) {
			t.Errorf("Create returns %+v, and the database has %+v", row, got)
		}
		if row.Version < began || row.RevokedBelow != 0 || row.Disabled || row.PasswordHash == "" {
			t.Errorf("a new user is %+v", row)
		}
		want := trail{nil, []string{"user.created " + row.ID}} // the account holds no token, so verifiers need no event
		if got := f.trail(t); !reflect.DeepEqual(got, want) || !ever() {
			t.Errorf("left behind: %+v, want %+v; a user was made: %t", got, want, ever())
		}
		pw := parse(t, "open sesame, please")
		for name, c := range map[string]struct {
			name user.Name
			pw   password.Password
			by   caller.Caller
			want error
		}{
			"a name that is taken":     {"alice", pw, operator, user.ErrExists},
			"a short password":         {"bob", parse(t, "short"), operator, password.ErrTooWeak},
			"the name as the password": {"benjamin.franklin", parse(t, "benjamin.franklin"), operator, password.ErrTooWeak},
			"the zero caller":          {"bob", pw, caller.Caller{}, caller.ErrRevoked},
		} {
			if _, err := f.Create(t.Context(), c.by, c.name, nil, c.pw); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		if got := f.trail(t); !reflect.DeepEqual(got, want) {
			t.Errorf("calls that failed left %+v", got)
		}
	})
}

// Insert checks the name again: two calls may both have found the name free before they
// hashed.
func TestInsertOfATakenName(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		first := f.create(t, "alice")
		err := f.store.Write(t.Context(), func(tx *store.Tx) error {
			_, err := user.Insert(tx, "alice", nil, "hash")
			return err
		})
		if !errors.Is(err, user.ErrExists) {
			t.Errorf("the second alice: %v", err)
		}
		if err := f.Delete(t.Context(), operator, first.ID); err != nil {
			t.Fatal(err)
		}
		if second := f.create(t, "alice"); second.ID == first.ID {
			t.Error("a deleted user's id was used again")
		}
	})
}

// TestEffectsOfChanges checks what each change does to the row of the user, and to the user's
// tokens and sessions.
func TestEffectsOfChanges(t *testing.T) {
	const (
		none    = store.EventKind("")
		stale   = store.VersionStale
		revoked = store.VersionRevoked
	)
	update := func(c user.Change) func(context.Context, *user.Users, string) error {
		return func(ctx context.Context, u *user.Users, id string) error {
			_, err := u.Update(ctx, operator, id, c)
			return err
		}
	}
	pw := parse(t, "another password")
	eachEngine(t, func(t *testing.T, f *fixture) {
		for i, c := range []struct {
			name   string
			change func(ctx context.Context, u *user.Users, id string) error
			want   store.EventKind
			record string
			edit   func(want, got *store.User) // what else changes in the row
		}{
			{"nothing", update(user.Change{}), none, "", nil},
			{"what was there before", update(user.Change{Roles: &user.Roles{"a", "b"}, Disabled: new(false)}), none, "", nil},
			{"roles", update(user.Change{Roles: &user.Roles{"c"}}), stale, "user.updated", func(u, _ *store.User) { u.Roles = []string{"c"} }},
			{"name", update(user.Change{Name: new(user.Name("root"))}), stale, "user.updated", func(u, _ *store.User) { u.Username = "root" }},
			{"disabled", update(user.Change{Disabled: new(true)}), revoked, "user.updated", func(u, _ *store.User) { u.Disabled = true }},
			{"name and disabled", update(user.Change{Name: new(user.Name("toor")), Disabled: new(true)}), revoked, "user.updated",
				func(u, _ *store.User) { u.Username, u.Disabled = "toor", true }},
			{"sessions revoked", func(ctx context.Context, u *user.Users, id string) error { return u.RevokeSessions(ctx, operator, id) },
				revoked, "user.sessions_revoked", nil},
			{"password set", func(ctx context.Context, u *user.Users, id string) error {
				_, err := u.SetPassword(ctx, operator, id, pw)
				return err
			}, revoked, "password.set", func(u, got *store.User) {
				if f.matches(t, pw, got.PasswordHash) {
					u.PasswordHash = got.PasswordHash
				}
			}},
			{"deleted", func(ctx context.Context, u *user.Users, id string) error { return u.Delete(ctx, operator, id) },
				revoked, "user.deleted", func(u, got *store.User) { u.PasswordHash, u.DeletedAt = "", got.UpdatedAt }},
		} {
			t.Run(c.name, func(t *testing.T) {
				before, trailBefore := f.create(t, user.Name(fmt.Sprintf("user-%d", i)), "a", "b"), f.trail(t)
				if err := c.change(t.Context(), f.Users, before.ID); err != nil {
					t.Fatal(err)
				}
				after, left := f.row(t, before.ID), f.trail(t)
				events, records := left.events[len(trailBefore.events):], left.records[len(trailBefore.records):]
				if c.want == none {
					if !reflect.DeepEqual(after, before) || len(events)+len(records) > 0 {
						t.Errorf("%+v became %+v, and left %v %v", before, after, events, records)
					}
					return
				}
				if after.Version <= before.Version || after.UpdatedAt.Before(before.UpdatedAt) {
					t.Errorf("version %d at %v, before %d at %v", after.Version, after.UpdatedAt, before.Version, before.UpdatedAt)
				}
				want := *before
				if c.edit != nil {
					c.edit(&want, after)
				}
				want.Version, want.UpdatedAt = after.Version, after.UpdatedAt
				if c.want == revoked {
					want.RevokedBelow = after.Version
				}
				if !reflect.DeepEqual(after, &want) {
					t.Errorf("the row is %+v, want %+v", after, &want)
				}
				if e := (event{c.want, before.ID, after.Version}); !reflect.DeepEqual(events, []event{e}) {
					t.Errorf("events %v, want %v", events, e)
				}
				if r := c.record + " " + before.ID; !reflect.DeepEqual(records, []string{r}) {
					t.Errorf("records %q, want %q", records, r)
				}
			})
		}
	})
}

// A change that fails writes nothing.
func TestChangesThatFail(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		alice, bob, gone := f.create(t, "alice", "reader"), f.create(t, "bob", "reader"), f.create(t, "carol")
		if err := f.Delete(t.Context(), operator, gone.ID); err != nil {
			t.Fatal(err)
		}
		before := f.trail(t)
		pw := parse(t, "another password")
		rename := user.Change{Name: new(user.Name("alice"))}
		update := func(by caller.Caller, id string, c user.Change) error {
			_, err := f.Update(t.Context(), by, id, c)
			return err
		}
		setPassword := func(by caller.Caller, id string, pw password.Password) error {
			_, err := f.SetPassword(t.Context(), by, id, pw)
			return err
		}
		zero := caller.Caller{}
		for name, c := range map[string]struct{ got, want error }{
			"a name that is taken":                {update(operator, bob.ID, rename), user.ErrExists},
			"a weak password":                     {setPassword(operator, bob.ID, parse(t, "short")), password.ErrTooWeak},
			"Update of an unknown user":           {update(operator, "unknown", rename), user.ErrNotFound},
			"Update of a deleted user":            {update(operator, gone.ID, rename), user.ErrNotFound},
			"SetPassword of an unknown user":      {setPassword(operator, "unknown", pw), user.ErrNotFound},
			"SetPassword of a deleted user":       {setPassword(operator, gone.ID, pw), user.ErrNotFound},
			"RevokeSessions of a deleted user":    {f.RevokeSessions(t.Context(), operator, gone.ID), user.ErrNotFound},
			"Delete of a deleted user":            {f.Delete(t.Context(), operator, gone.ID), user.ErrNotFound},
			"Update without a caller":             {update(zero, bob.ID, user.Change{Disabled: new(true)}), caller.ErrRevoked},
			"SetPassword without a caller":        {setPassword(zero, bob.ID, pw), caller.ErrRevoked},
			"Delete without a caller":             {f.Delete(t.Context(), zero, bob.ID), caller.ErrRevoked},
			"RevokeSessions without a caller":     {f.RevokeSessions(t.Context(), zero, bob.ID), caller.ErrRevoked},
			"Update without a caller, of no user": {update(zero, "unknown", rename), caller.ErrRevoked},
		} {
			if !errors.Is(c.got, c.want) {
				t.Errorf("%s: %v, want %v", name, c.got, c.want)
			}
		}
		if got := f.trail(t); !reflect.DeepEqual(got, before) {
			t.Errorf("left behind: %+v, before %+v", got, before)
		}
		for _, row := range []*store.User{alice, bob} {
			if got := f.row(t, row.ID); !reflect.DeepEqual(got, row) {
				t.Errorf("%+v became %+v", row, got)
			}
		}
	})
}

// A raised version is above the last one and not below the clock's seconds, so that no
// token carries it yet, even if the database was restored from an old copy.
func TestVersionsAreNew(t *testing.T) {
	t.Parallel()
	f := newFixture(t, storetest.SQLite(t))
	ahead := time.Now().Unix() + 1_000_000
	for name, c := range map[string]struct{ before, least, most int64 }{
		"of a restored database": {5, time.Now().Unix(), ahead - 1},
		"ahead of the clock":     {ahead, ahead + 1, ahead + 1},
	} {
		row := f.create(t, user.Name(fmt.Sprintf("user-%d", c.before)))
		row.Version = c.before
		if err := f.store.Write(t.Context(), func(tx *store.Tx) error { return tx.UpdateUser(row) }); err != nil {
			t.Fatal(err)
		}
		if err := f.RevokeSessions(t.Context(), operator, row.ID); err != nil {
			t.Fatal(err)
		}
		if got := f.row(t, row.ID); got.Version < c.least || got.Version > c.most || got.RevokedBelow != got.Version {
			t.Errorf("%s: version %d, revoked below %d, want %d to %d", name, got.Version, got.RevokedBelow, c.least, c.most)
		}
	}
}

func TestFindAndList(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		ids := map[string]bool{}
		for i := range 5 {
			ids[f.create(t, user.Name(fmt.Sprintf("user-%d", i))).ID] = true
		}
		gone := f.create(t, "carol")
		if err := f.Delete(t.Context(), operator, gone.ID); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"by the id of a deleted user":   func() error { _, err := f.Get(t.Context(), gone.ID); return err }(),
			"by the name of a deleted user": func() error { _, err := f.GetByName(t.Context(), "carol"); return err }(),
			"by an unknown id":              func() error { _, err := f.Get(t.Context(), "unknown"); return err }(),
		} {
			if !errors.Is(err, user.ErrNotFound) {
				t.Errorf("%s: %v", what, err)
			}
		}
		byName, err := f.GetByName(t.Context(), "user-3")
		if err != nil || !ids[byName.ID] {
			t.Errorf("by name: %+v, %v", byName, err)
		}
		var sizes []int
		for after, more := "", true; more; {
			rows, next, err := f.List(t.Context(), nil, after, 2)
			if err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, len(rows))
			for _, row := range rows {
				if row.ID <= after || !ids[row.ID] {
					t.Errorf("%s comes after %s", row.ID, after)
				}
				after = row.ID
			}
			if more = next != ""; more && next != after {
				t.Errorf("the next page begins after %s, want %s", next, after)
			}
		}
		if !reflect.DeepEqual(sizes, []int{2, 2, 1}) {
			t.Errorf("pages of %v users", sizes)
		}
		if rows, next, err := f.List(t.Context(), nil, "", 5); len(rows) != 5 || next != "" || err != nil {
			t.Errorf("a page of all: %d users, next: %q, %v", len(rows), next, err)
		}
	})
}

// RaiseAll goes in steps of 2,000 users, and raises the last user of a step once.
func TestRaiseAll(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 2000, 2001} {
		t.Run(fmt.Sprint(n, " users"), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, storetest.SQLite(t))
			const version = 7
			err := f.store.Write(t.Context(), func(tx *store.Tx) error {
				for i := range n {
					name := fmt.Sprintf("user-%04d", i)
					err := tx.InsertUser(&store.User{ID: name, Username: name, Version: version, CreatedAt: tx.Now(), UpdatedAt: tx.Now()})
					if err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now().Unix()
			if raised, err := user.RaiseAll(t.Context(), f.store); raised != n || err != nil {
				t.Fatalf("%d users raised, %v", raised, err)
			}
			f.read(t, func(tx *store.Tx) error {
				rows, err := tx.Users("", n+1)
				if len(rows) != n {
					t.Errorf("%d users are left", len(rows))
				}
				for _, row := range rows {
					if row.Version < began || row.RevokedBelow != row.Version {
						t.Fatalf("%s has version %d, and is revoked below %d", row.ID, row.Version, row.RevokedBelow)
					}
				}
				return err
			})
			if left := f.trail(t); len(left.events)+len(left.records) > 0 {
				t.Errorf("left behind: %+v", left)
			}
		})
	}
}

func TestNewID(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		id := user.NewID()
		if len(id) != 16 || seen[id] {
			t.Fatalf("id %q, seen before: %t", id, seen[id])
		}
		seen[id] = true
	}
}
