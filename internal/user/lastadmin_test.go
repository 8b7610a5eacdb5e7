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

// Two admins, each demoted at a replica of its own at the same time: one stays. The demoted
// admin is then an admin again, for the next of several rounds.
func TestOneOfTwoAdminsStays(t *testing.T) {
	t.Parallel()
	storetest.EachEngine(t, func(t *testing.T, new func(testing.TB) string) {
		uri := new(t)
		replicas := [2]*fixture{newFixture(t, uri), newFixture(t, uri)}
		admins := [2]*store.User{replicas[0].create(t, "one", caller.Admin), replicas[1].create(t, "two", caller.Admin)}
		for round := range 50 {
			name := []string{"disable", "demote"}[round%2]
			var results [2]error
			var tasks sync.WaitGroup
			begin := make(chan struct{})
			for i := range admins {
				tasks.Go(func() {
					<-begin
					results[i] = demotions[name](context.Background(), replicas[i].Users, admins[i].ID)
				})
			}
			close(begin)
			tasks.Wait()
			if first, second := errors.Is(results[0], user.ErrLastAdmin), errors.Is(results[1], user.ErrLastAdmin); first == second {
				t.Fatalf("%s both: %v and %v, want one refusal", name, results[0], results[1])
			}
			on, roles := false, user.Roles{caller.Admin}
			for i := range admins {
				if _, err := replicas[i].Update(t.Context(), operator, admins[i].ID, user.Change{Disabled: &on, Roles: &roles}); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
