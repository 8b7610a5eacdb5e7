package user_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/watchword-auth/watchword/internal/caller"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/store/storetest"
	"github.com/watchword-auth/watchword/internal/user"
)

// demotions are the changes after which an enabled admin is none.
var demotions = map[string]func(ctx context.Context, u *user.Users, id string) error{
	"disable": func(ctx context.Context, u *user.Users, id string) error {
		disabled := true
		_, err := u.Update(ctx, operator, id, user.Change{Disabled: &disabled})
		return err
	},
	"demote": func(ctx context.Context, u *user.Users, id string) error {
		roles := user.Roles{"reader"}
		_, err := u.Update(ctx, operator, id, user.Change{Roles: &roles})
		return err
	},
	"delete": func(ctx context.Context, u *user.Users, id string) error { return u.Delete(ctx, operator, id) },
}

// The last enabled admin stays. Disabled and deleted admins, and roles with a similar name,
// do not count.
func TestTheLastAdminStays(t *testing.T) {
	eachEngine(t, func(t *testing.T, f *fixture) {
		last := f.create(t, "admin", caller.Admin, "reader")
		f.create(t, "similar", "admin2", "my-admin")
		enabled := f.create(t, "other", caller.Admin)
		for _, name := range []string{"disable", "delete"} {
			if err := demotions[name](t.Context(), f.Users, f.create(t, user.Name("was-"+name), caller.Admin).ID); err != nil {
				t.Fatal(err)
			}
		}
		if err := demotions["disable"](t.Context(), f.Users, enabled.ID); err != nil {
			t.Fatal(err)
		}
		before := f.row(t, last.ID)
		for name, demote := range demotions {
			if err := demote(t.Context(), f.Users, last.ID); !errors.Is(err, user.ErrLastAdmin) {
				t.Errorf("%s the last admin: %v", name, err)
			}
		}
		if after := f.row(t, last.ID); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("the row was %+v, and is %+v", before, after)
		}
		on := false
		if _, err := f.Update(t.Context(), operator, enabled.ID, user.Change{Disabled: &on}); err != nil {
			t.Fatal(err)
		}
		if err := demotions["delete"](t.Context(), f.Users, last.ID); err != nil {
			t.Errorf("with another admin: %v", err)
		}
	})
}

// Ten admins, each demoted at a replica of its own at the same time: one stays.
func TestOneOfTenAdminsStays(t *testing.T) {
	t.Parallel()
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri := new(t)
		var replicas []*fixture
		var admins []*store.User
		for i := range 10 {
			replicas = append(replicas, newFixture(t, uri))
			admins = append(admins, replicas[0].create(t, user.Name(fmt.Sprint("admin", i)), caller.Admin))
		}
		names := []string{"disable", "demote", "delete"}
		results := make([]error, len(admins))
		var tasks sync.WaitGroup
		for i := range admins {
			tasks.Go(func() { results[i] = demotions[names[i%3]](context.Background(), replicas[i].Users, admins[i].ID) })
		}
		tasks.Wait()
		refused := 0
		for i, err := range results {
			switch {
			case errors.Is(err, user.ErrLastAdmin):
				refused++
			case err != nil:
				t.Errorf("admin %d: %v", i, err)
			}
		}
		if refused != 1 {
			t.Errorf("%d of ten admins stay", refused)
		}
	})
}
