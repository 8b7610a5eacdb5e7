package e2e

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// randomPassword returns a random password of n characters.
func randomPassword(n int) string { return noteSecret((rand.Text() + rand.Text())[:n]) }

// TestNewPasswords sets passwords by every way that there is: all refuse a password of 14
// characters and common passwords, and say why.
func TestNewPasswords(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	password := randomPassword(15)
	carol := c.create(t, admin, "carol", password)
	for rule, weak := range map[string]string{
		"fewer than 15 characters": randomPassword(14),
		"repeats a part":           "carolcarolcarol",
		"at most four parts":       "watchword1234567",
	} {
		_, create := c.CreateUser(bearer(callCtx(t), admin), &watchwordv1.CreateUserRequest{Username: "dave", Password: weak})
		_, set := c.SetPassword(bearer(callCtx(t), admin), &watchwordv1.SetPasswordRequest{Id: carol.GetId(), Password: weak})
		_, change := c.ChangePassword(bearer(callCtx(t), c.login(t, "carol", password)),
			&watchwordv1.ChangePasswordRequest{CurrentPassword: password, NewPassword: weak})
		for what, err := range map[string]error{"CreateUser": create, "SetPassword": set, "ChangePassword": change} {
			wantRefusal(t, what, err, "PASSWORD_TOO_WEAK")
			if !strings.Contains(err.Error(), rule) || strings.Contains(err.Error(), weak) {
				t.Errorf("%s: %v, want an error with %q and without the password", what, err, rule)
			}
		}
		for _, command := range [][]string{{"create", "dave"}, {"set-password", "carol"}} {
			r := cli(t, s.dir, weak+"\n", append([]string{"user", command[0], command[1]}, "--password-stdin", "--datastore-uri", database(s.dir))...)
			if r.code != 1 || !strings.Contains(r.stderr, rule) || strings.Contains(r.stderr, weak) {
				t.Errorf("user %v: %v, want status 1 and %q", command, r, rule)
			}
		}
	}
	c.login(t, "carol", password)

	r := cli(t, s.dir, "open\tthe door, sesame\n", "user", "create", "dave", "--password-stdin", "--datastore-uri", database(s.dir))
	if r.code != 1 || !strings.Contains(r.stderr, "character 5 is not allowed: a control character") || strings.Contains(r.stderr, "sesame") {
		t.Errorf("a password with a tab: %v, want status 1 and the position", r)
	}
}

// TestPasswordRules changes the rules by flags and by variables, for the server and for the
// commands on the database. A password from before a stricter rule still logs in.
func TestPasswordRules(t *testing.T) {
	dir, list := t.TempDir(), filepath.Join(t.TempDir(), "list")
	listed, short := newPassword(), randomPassword(8)
	if err := os.WriteFile(list, []byte("123456\r\n"+strings.ToUpper(listed)+"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	create := func(name, password string, variables ...string) result {
		t.Helper()
		cmd := cliCommand(t, dir, password+"\n", "user", "create", name, "--password-stdin", "--datastore-uri", database(dir))
		cmd.Env = append(cmd.Env, variables...)
		return run(t, cmd)
	}
	wantRule := func(r result, rule string) {
		t.Helper()
		if r.code != 1 || !strings.Contains(r.stderr, rule) {
			t.Errorf("got %v, want status 1 and %q", r, rule)
		}
	}
	s := serve(t, dir, "--min-password-length", "8", "--password-list", list)
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	c.create(t, admin, "alice", short)
	for _, weak := range []string{randomPassword(7), listed} {
		_, err := c.CreateUser(bearer(callCtx(t), admin), &watchwordv1.CreateUserRequest{Username: "bob", Password: weak})
		wantRefusal(t, "CreateUser", err, "PASSWORD_TOO_WEAK")
	}
	wantRule(create("bob", short), "fewer than 15 characters")
	wantExit(t, 0, create("bob", short, "WATCHWORD_MIN_PASSWORD_LENGTH=8"))
	wantRule(create("carol", listed, "WATCHWORD_PASSWORD_LIST="+list), "list of common passwords")
	wantExit(t, 0, create("carol", listed))
	s.stop(t)

	c = dial(t, serve(t, dir).grpcAddr)
	for name, password := range map[string]string{"alice": short, "bob": short, "carol": listed} {
		c.login(t, name, password)
	}
}

// TestPasswordRulesRefuseToStart gives settings that cannot be used. No start leaves a
// database behind.
func TestPasswordRulesRefuseToStart(t *testing.T) {
	dir, folder := t.TempDir(), t.TempDir()
	garbage := filepath.Join(folder, "garbage")
	if err := os.WriteFile(garbage, []byte{0x1f, 0x8b, 8, 0, 0xff, '\n', 0xfe}, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(folder, "missing")
	for path, says := range map[string]string{missing: "no such file", folder: "is a directory", garbage: "holds no password"} {
		refusesToStart(t, dir, "--password-list: ", "--password-list", path)
		refusesToStart(t, dir, says, "--password-list", path)
		r := cli(t, dir, newPassword()+"\n", "user", "create", "alice", "--password-stdin", "--datastore-uri", database(dir), "--password-list", path)
		if r.code != 1 || !strings.Contains(r.stderr, says) {
			t.Errorf("user create with the list %s: %v, want status 1 and %q", path, r, says)
		}
	}
	for _, length := range []string{"7", "65", "-1"} {
		for _, command := range [][]string{serveArgs(dir), {"user", "create", "alice", "--password-stdin", "--datastore-uri", database(dir)}} {
			r := cli(t, dir, newPassword()+"\n", append(command, "--min-password-length="+length)...)
			if r.code != 2 || !strings.Contains(r.stderr, "--min-password-length: must be between 8 and 64") {
				t.Errorf("%v with a least length of %s: %v, want status 2 and the bounds", command, length, r)
			}
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("the refused starts left %v, error %v", left, err)
	}
}
