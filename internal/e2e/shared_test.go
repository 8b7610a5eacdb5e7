package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// TestTenReplicasStartAtOnce starts ten replicas at once on a database without users. A
// single replica must print a password, and the password must work at each. Each replica
// must accept the tokens of the others.
func TestTenReplicasStartAtOnce(t *testing.T) {
	in := install(t)
	var servers []*server
	for range 10 {
		servers = append(servers, launch(t, "", in.serveCommand(in.uri)))
	}
	password := ""
	for _, s := range servers {
		s.await(t)
		if s.admin != "" && password != "" {
			t.Error("a second replica printed a password")
		}
		password += s.admin
	}
	var pairs []*watchwordv1.TokenPair
	for _, s := range servers {
		pairs = append(pairs, dial(t, s.grpcAddr).login(t, "admin", password, "watchword"))
	}
	for i, s := range servers {
		c := dial(t, s.grpcAddr)
		for _, pair := range pairs {
			if _, err := c.verify(callCtx(t), pair); err != nil {
				t.Fatalf("replica %d refused another replica's token: %v", i, err)
			}
		}
		c.refresh(t, pairs[(i+1)%len(pairs)])
	}
	users, err := dial(t, servers[0].grpcAddr).ListUsers(bearer(callCtx(t), pairs[0]), &watchwordv1.ListUsersRequest{})
	if err != nil || len(users.GetUsers()) != 1 {
		t.Errorf("ListUsers returned %v, error %v; want the admin alone", users, err)
	}
}

// asSuperuser runs statements in the installation's database.
func (in *installation) asSuperuser(statements ...string) {
	in.t.Helper()
	conn, err := pgx.Connect(context.Background(), in.superuser())
	if err != nil {
		in.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, statement := range statements {
		if _, err := conn.Exec(context.Background(), statement); err != nil {
			in.t.Fatal(err)
		}
	}
}

// replicateBlind adds a replica with a PostgreSQL role of its own, "blind". A test may
// revoke the role's right to read events: then the replica lags, with a working connection
// to the database.
func (in *installation) replicateBlind(t *testing.T) *replica {
	t.Helper()
	password := strings.TrimPrefix(newPassword(), "e2e-")
	in.asSuperuser("CREATE ROLE blind LOGIN PASSWORD '"+password+"'", "GRANT ALL ON ALL TABLES IN SCHEMA public TO blind",
		"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO blind")
	_, place, _ := strings.Cut(in.uri, "@")
	return in.replicateOver(t, "postgres://blind:"+password+"@"+place)
}

// TestDemotedAdminAtALaggingReplica demotes, logs out and disables admins at a replica.
// Another replica does not know yet, and still verifies the admins' tokens. But an admin
// must not change anything there.
func TestDemotedAdminAtALaggingReplica(t *testing.T) {
	in := install(t, "--access-ttl", "1h")
	a := in.replicate(t).dial(t)
	b := in.replicateBlind(t).dial(t)
	admin := a.login(t, "admin", in.admin, "watchword")
	victim := a.create(t, admin, "victim", newPassword())
	ended := map[string]*watchwordv1.TokenPair{}
	for name, reason := range map[string]string{"demoted": "TOKEN_STALE", "logged-out": "TOKEN_REVOKED", "disabled": "TOKEN_REVOKED"} {
		password := newPassword()
		u := a.create(t, admin, name, password, "admin")
		pair := a.login(t, name, password, "watchword")
		if _, err := b.verify(callCtx(t), pair); err != nil {
			t.Fatal(err)
		}
		ended[reason+" "+u.GetId()] = pair
	}
	in.asSuperuser("REVOKE SELECT ON events FROM blind")
	for key, pair := range ended {
		reason, id, _ := strings.Cut(key, " ")
		var err error
		switch user, _ := a.verify(callCtx(t), pair); user.GetUsername() {
		case "demoted":
			_, err = a.UpdateUser(bearer(callCtx(t), admin), &watchwordv1.UpdateUserRequest{
				User: &watchwordv1.User{Id: id}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"roles"}}})
		case "logged-out":
			err = a.logout(callCtx(t), pair)
		case "disabled":
			_, err = a.UpdateUser(bearer(callCtx(t), admin), &watchwordv1.UpdateUserRequest{
				User: &watchwordv1.User{Id: id, Disabled: true}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"disabled"}}})
		}
		if err != nil {
			t.Fatal(err)
		}
		before := in.everything(t, a, admin)
		if _, err := b.verify(callCtx(t), pair); err != nil {
			t.Fatalf("the lagging replica knows already: %v", err)
		}
		for what, err := range tryChanges(t, b, pair, victim.GetId(), admin.GetSessionId()) {
			wantRefusal(t, what+" with a token that must be refused with "+reason, err, reason)
		}
		if after := in.everything(t, a, admin); !slices.Equal(before, after) {
			t.Errorf("a refused call has changed data; before:\n%v\nafter:\n%v", before, after)
		}
	}
	in.asSuperuser("GRANT SELECT ON events TO blind")
	for key, pair := range ended {
		reason, _, _ := strings.Cut(key, " ")
		eventually(t, propagation, "refusing at the other replica", func() error {
			_, err := b.verify(callCtx(t), pair)
			return checkRefusal(err, reason)
		})
	}
}

// tryChanges calls every method that changes data for an admin, and returns the errors.
func tryChanges(t *testing.T, c *client, by *watchwordv1.TokenPair, userID, sessionID string) map[string]error {
	t.Helper()
	ctx, keys := bearer(callCtx(t), by), watchwordv1.NewKeyServiceClient(c.conn)
	list, err := keys.ListKeys(ctx, &watchwordv1.ListKeysRequest{})
	if err != nil || len(list.GetKeys()) == 0 {
		t.Fatalf("ListKeys returned %v, error %v; want keys", list, err)
	}
	tried := map[string]error{}
	_, tried["create"] = c.CreateUser(ctx, &watchwordv1.CreateUserRequest{Username: "mine", Password: newPassword(), Roles: []string{"admin"}})
	_, tried["update"] = c.UpdateUser(ctx, &watchwordv1.UpdateUserRequest{
		User: &watchwordv1.User{Id: userID, Roles: []string{"admin"}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"roles"}}})
	_, tried["delete"] = c.DeleteUser(ctx, &watchwordv1.DeleteUserRequest{Id: userID})
	_, tried["set password"] = c.SetPassword(ctx, &watchwordv1.SetPasswordRequest{Id: userID, Password: newPassword()})
	_, tried["revoke session"] = c.RevokeSession(ctx, &watchwordv1.RevokeSessionRequest{SessionId: sessionID})
	_, tried["revoke sessions"] = c.RevokeUserSessions(ctx, &watchwordv1.RevokeUserSessionsRequest{UserId: userID})
	_, tried["rotate key"] = keys.RotateKey(ctx, &watchwordv1.RotateKeyRequest{})
	_, tried["revoke key"] = keys.RevokeKey(ctx, &watchwordv1.RevokeKeyRequest{Kid: list.GetKeys()[0].GetKid()})
	return tried
}

// everything returns all users, sessions and keys in the database, as text.
func (in *installation) everything(t *testing.T, c *client, admin *watchwordv1.TokenPair) (all []string) {
	t.Helper()
	ctx := bearer(callCtx(t), admin)
	users, err := c.ListUsers(ctx, &watchwordv1.ListUsersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := watchwordv1.NewKeyServiceClient(c.conn).ListKeys(ctx, &watchwordv1.ListKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range users.GetUsers() {
		sessions, err := c.ListSessions(ctx, &watchwordv1.ListSessionsRequest{UserId: u.GetId()})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprint(u), fmt.Sprint(sessions))
	}
	return append(all, fmt.Sprint(keys))
}
