package e2e

import (
	"fmt"
	"strings"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// On PostgreSQL, service accounts wait until an operator has finished the upgrade, and the
// refusal names the command. The command waits for the end of servers of an earlier version.
// Servers of this version continue to work.
func TestServiceAccountsWaitForTheUpgrade(t *testing.T) {
	in := install(t)
	r := in.replicate(t)
	c := r.dial(t)
	admin := c.login(t, "admin", in.admin, "watchword")
	create := func(name string) (*watchwordv1.CreateUserResponse, error) {
		return c.CreateUser(bearer(callCtx(t), admin), &watchwordv1.CreateUserRequest{Username: name, Kind: watchwordv1.UserKind_USER_KIND_SERVICE})
	}
	says := func(status int, text string, args ...string) {
		t.Helper()
		p := run(t, in.command(args...))
		if wantExit(t, status, p); !strings.Contains(p.stderr, text) {
			t.Errorf("watchword %q says %q, want %q", args, p.stderr, text)
		}
	}
	_, err := create("search")
	wantRefusal(t, "a service account before the end of the upgrade", err, "UPGRADE_UNFINISHED")
	const command = "when every server is of this version, run `watchword migrate --finish`"
	if !strings.Contains(fmt.Sprint(err), command) {
		t.Errorf("the refusal says %v", err)
	}
	says(1, "UPGRADE_UNFINISHED: ", "service", "create", "search")

	in.asSuperuser(`INSERT INTO replicas (id, address, answered, written_at, summary)
		VALUES (1, 'host-of-an-earlier-version:50051', 0, CAST(extract(epoch FROM now()) * 1000000 AS BIGINT), '')`)
	says(1, "host-of-an-earlier-version:50051; replace these servers by this version, and run the command again", "migrate", "--finish")
	_, err = create("search")
	wantRefusal(t, "with a server of an earlier version", err, "UPGRADE_UNFINISHED")
	in.asSuperuser(`DELETE FROM replicas WHERE id = 1`)
	says(0, "earlier versions of Watchword cannot use the database any more", "migrate", "--finish")

	made, err := create("search")
	wantOK(t, "a service account after the end of the upgrade", err)
	wantOK(t, "readiness", ready(r.now()))
	_, err = c.SetPassword(bearer(callCtx(t), admin), &watchwordv1.SetPasswordRequest{Id: made.GetUser().GetId(), Password: newPassword()})
	wantRefusal(t, "a password of a service account", err, "INVALID_REQUEST")
	wantRefusal(t, "a login as a service account", c.tryLogin(callCtx(t), "search", newPassword()), "INVALID_CREDENTIALS")
	says(1, "search is a service account, which has no password and no session: use the commands of watchword service", "user", "disable", "search")
	p := run(t, in.command("service", "list"))
	if wantExit(t, 0, p); !strings.Contains(p.stdout, made.GetUser().GetId()) {
		t.Errorf("service list prints %q", p.stdout)
	}
}
