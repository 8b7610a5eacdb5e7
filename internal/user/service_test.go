package user_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/watchword-auth/watchword/internal/audit"
	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// service makes a service account. On PostgreSQL an operator has finished the upgrade before.
func (f *fixture) service(t *testing.T, name user.Name, roles ...string) *store.User {
	t.Helper()
	if err := store.Finish(t.Context(), f.uri, ""); err != nil {
		t.Fatal(err)
	}
	row, err := f.CreateService(t.Context(), operator, user.Service{Name: name, Roles: roles, Audiences: user.Audiences{"search"}, DelegatesTo: user.Audiences{"index"}})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

func TestCreateService(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		row := f.service(t, "search", "reader")
		if got := f.row(t, row.ID); !reflect.DeepEqual(got, row) {
			t.Errorf("CreateService returns %+v, and the database has %+v", row, got)
		}
		if row.Kind != store.KindService || row.PasswordHash != "" || row.Version == 0 {
			t.Errorf("a new service account is %+v", row)
		}
		f.read(t, func(tx *store.Tx) error {
			if had, err := user.EverMade(tx); err != nil || had {
				t.Errorf("a service account counts as the first user: %t, %v", had, err)
			}
			return nil
		})
		records, _, err := audit.List(t.Context(), f.store, store.AuditFilter{}, 10)
		want := "username: search, roles: reader, disabled: false, kind: SERVICE, audiences: search, delegates_to: index"
		if err != nil || len(records) != 1 || records[0].Type != "user.created" || records[0].Detail != want {
			t.Errorf("the record is %+v, %v; want %s", records, err, want)
		}
		alice := f.create(t, "alice")
		for name, c := range map[string]struct {
			by   caller.Caller
			name user.Name
			want error
		}{
			"the name of a user":    {operator, "alice", user.ErrExists},
			"the name of a service": {operator, "search", user.ErrExists},
			"mixed scripts":         {operator, "аlice", user.ErrMalformed},
			"the zero caller":       {caller.Caller{}, "bob", caller.ErrRevoked},
		} {
			if _, err := f.CreateService(t.Context(), c.by, user.Service{Name: c.name}); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		for kind, want := range map[store.UserKind]string{store.KindUser: alice.ID, store.KindService: row.ID} {
			if rows, next, err := f.List(t.Context(), &kind, "", 10); err != nil || len(rows) != 1 || rows[0].ID != want || next != "" {
				t.Errorf("%s: %v, %q, %v", kind, rows, next, err)
			}
		}
	})
}

// TestEffectsOnAService checks what each change of a service account does to the tokens that the
// account holds or has delegated.
func TestEffectsOnAService(t *testing.T) {
	update := func(c user.Change) func(context.Context, *user.Users, string) error {
		return func(ctx context.Context, u *user.Users, id string) error {
			_, err := u.Update(ctx, operator, id, c)
			return err
		}
	}
	eachEngine(t, func(t *testing.T, f *fixture) {
		for i, c := range []struct {
			name   string
			change func(context.Context, *user.Users, string) error
			want   store.EventKind // empty: the change writes no event
			edit   func(*store.User)
		}{
			{"what was there before", update(user.Change{Audiences: &user.Audiences{"search"}, DelegatesTo: &user.Audiences{"index"}, Kind: new(store.KindService)}), "", nil},
			{"audiences", update(user.Change{Audiences: &user.Audiences{"a", "b"}}), store.VersionStale, func(u *store.User) { u.Audiences = []string{"a", "b"} }},
			{"no audience to delegate to", update(user.Change{DelegatesTo: &user.Audiences{}}), store.VersionStale, func(u *store.User) { u.DelegatesTo = nil }},
			{"roles", update(user.Change{Roles: &user.Roles{"c"}}), store.VersionStale, func(u *store.User) { u.Roles = []string{"c"} }},
			{"audiences and disabled", update(user.Change{Audiences: &user.Audiences{}, Disabled: new(true)}), store.VersionRevoked,
				func(u *store.User) { u.Audiences, u.Disabled = nil, true }},
			{"revoked", func(ctx context.Context, u *user.Users, id string) error { return u.RevokeSessions(ctx, operator, id) }, store.VersionRevoked, nil},
			{"deleted", func(ctx context.Context, u *user.Users, id string) error { return u.Delete(ctx, operator, id) }, store.VersionRevoked, nil},
		} {
			t.Run(c.name, func(t *testing.T) {
				before, trail := f.service(t, user.Name(fmt.Sprintf("service-%d", i)), "a"), f.trail(t)
				if err := c.change(t.Context(), f.Users, before.ID); err != nil {
					t.Fatal(err)
				}
				after, events := f.row(t, before.ID), f.trail(t).events[len(trail.events):]
				if c.want == "" {
					if !reflect.DeepEqual(after, before) || len(events) > 0 {
						t.Errorf("%+v became %+v, and left %v", before, after, events)
					}
					return
				}
				want := *before
				if c.edit != nil {
					c.edit(&want)
				}
				want.Version, want.RevokedBelow, want.UpdatedAt, want.DeletedAt = after.Version, after.RevokedBelow, after.UpdatedAt, after.DeletedAt
				if after.Version <= before.Version || (after.RevokedBelow == after.Version) != (c.want == store.VersionRevoked) || !reflect.DeepEqual(after, &want) {
					t.Errorf("the row is %+v, want %+v", after, &want)
				}
				if e := (event{c.want, before.ID, after.Version}); !reflect.DeepEqual(events, []event{e}) {
					t.Errorf("events %v, want %v", events, e)
				}
			})
		}
	})
}

// A change that is not for the kind of the account writes nothing.
func TestChangesForTheOtherKind(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		alice, search := f.create(t, "alice"), f.service(t, "search")
		before := f.trail(t)
		update := func(id string, c user.Change) error {
			_, err := f.Update(t.Context(), operator, id, c)
			return err
		}
		_, password := f.SetPassword(t.Context(), operator, search.ID, parse(t, "another password"))
		for name, c := range map[string]struct{ err, want error }{
			"audiences of a user":    {update(alice.ID, user.Change{Audiences: &user.Audiences{"a"}, Disabled: new(true)}), user.ErrNotService},
			"delegates_to of a user": {update(alice.ID, user.Change{DelegatesTo: &user.Audiences{"a"}}), user.ErrNotService},
			"a user as a service":    {update(alice.ID, user.Change{Kind: new(store.KindService), Roles: &user.Roles{"a"}}), user.ErrKind},
			"a service as a user":    {update(search.ID, user.Change{Kind: new(store.KindUser), Roles: &user.Roles{"a"}}), user.ErrKind},
			"a password":             {password, user.ErrService},
		} {
			if !errors.Is(c.err, c.want) {
				t.Errorf("%s: %v, want %v", name, c.err, c.want)
			}
		}
		if err := update(alice.ID, user.Change{Audiences: &user.Audiences{}, DelegatesTo: &user.Audiences{}}); err != nil {
			t.Errorf("no audiences of a user: %v", err)
		}
		if after := f.trail(t); !reflect.DeepEqual(after, before) {
			t.Errorf("refused changes left %+v", after)
		}
		if now := f.row(t, alice.ID); !reflect.DeepEqual(now, alice) {
			t.Errorf("%+v became %+v", alice, now)
		}
	})
}

// A service account with the role admin may administer, and is never the last admin.
func TestAServiceIsNoLastAdmin(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		service := f.service(t, "robot", caller.Admin)
		for name, demote := range demotions {
			robot := f.service(t, user.Name("robot-"+name), caller.Admin)
			if err := demote(t.Context(), f.Users, robot.ID); err != nil {
				t.Errorf("%s a service account where there is no admin: %v", name, err)
			}
		}
		last := f.create(t, "admin", caller.Admin)
		for name, demote := range demotions {
			if err := demote(t.Context(), f.Users, last.ID); !errors.Is(err, user.ErrLastAdmin) {
				t.Errorf("%s the last admin beside a service account: %v", name, err)
			}
		}
		by := caller.Caller{
			Subject: caller.Subject{Kind: caller.Service, ID: service.ID}, Name: service.Username, Version: service.Version,
			Roles: service.Roles, Audience: []string{caller.AdminAudience},
		}
		check := func() error { return f.store.Read(t.Context(), func(tx *store.Tx) error { return by.Check(tx) }) }
		if err := check(); err != nil {
			t.Errorf("a service account with the role admin: %v", err)
		}
		for name, wrong := range map[string]func(*caller.Caller){
			"as a user":               func(c *caller.Caller) { c.Kind = caller.User },
			"with the id of a user":   func(c *caller.Caller) { c.ID, c.Name, c.Version = last.ID, last.Username, last.Version },
			"with an earlier version": func(c *caller.Caller) { c.Version-- },
		} {
			was := by
			wrong(&by)
			if err := check(); !errors.Is(err, caller.ErrRevoked) && !errors.Is(err, caller.ErrStale) {
				t.Errorf("%s: %v", name, err)
			}
			by = was
		}
		if _, err := f.Update(t.Context(), operator, service.ID, user.Change{DelegatesTo: &user.Audiences{"index", "other"}}); err != nil {
			t.Fatal(err)
		}
		if err := check(); !errors.Is(err, caller.ErrStale) {
			t.Errorf("after a change of delegates_to: %v", err)
		}
		disabled, err := f.Update(t.Context(), operator, service.ID, user.Change{Disabled: new(true)})
		if err != nil {
			t.Fatal(err)
		}
		for _, by.Version = range []int64{by.Version, disabled.Version} {
			if err := check(); !errors.Is(err, caller.ErrRevoked) {
				t.Errorf("disabled, with the version %d: %v", by.Version, err)
			}
		}
	})
}

func TestParseAudiences(t *testing.T) {
	many := func(n int) (names []string) {
		for i := range n {
			names = append(names, fmt.Sprintf("audience-%02d", i))
		}
		return names
	}
	long := strings.Repeat("a", 256)
	for name, c := range map[string]struct {
		given []string
		want  user.Audiences
		ok    bool
	}{
		"none":           {nil, nil, true},
		"sorted, once":   {[]string{"b", "a", "b"}, user.Audiences{"a", "b"}, true},
		"a URI":          {[]string{"https://a.test/b?c=d#e"}, user.Audiences{"https://a.test/b?c=d#e"}, true},
		"most":           {many(32), many(32), true},
		"too many":       {many(33), nil, false},
		"longest":        {[]string{long}, user.Audiences{long}, true},
		"too long":       {[]string{long + "a"}, nil, false},
		"empty":          {[]string{""}, nil, false},
		"space":          {[]string{"a b"}, nil, false},
		"quote":          {[]string{`a"`}, nil, false},
		"administration": {[]string{"a", "watchword"}, nil, false},
	} {
		got, err := user.ParseAudiences(c.given)
		if !reflect.DeepEqual(got, c.want) || (err == nil) != c.ok || err != nil && !errors.Is(err, user.ErrMalformed) {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}
