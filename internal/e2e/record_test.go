package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
)

// auditLine holds some fields of a line of `watchword audit --json`.
type auditLine struct {
	Type, Reason, Source, Detail string
	ActorID                      string `json:"actor_id"`
	ActorName                    string `json:"actor_name"`
	UserID                       string `json:"user_id"`
	UserName                     string `json:"user_name"`
	Success                      bool
	Count                        int64
}

// audit runs `watchword audit --json --limit 0` on the database of a server.
func (s *server) audit(t *testing.T, flags ...string) (lines []auditLine) {
	t.Helper()
	out := wantExit(t, 0, cli(t, s.dir, "", append([]string{"audit", "--json", "--limit", "0", "--datastore-uri", database(s.dir)}, flags...)...))
	for text := range strings.Lines(out) {
		var line auditLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		lines = append(lines, line)
	}
	return lines
}

// Strangers call from 700 addresses, and each address makes four kinds of refused calls.
// The record must still name the guesses at the user admin, which begin later and are far
// fewer, with their source and their exact number. No refused call may be missing.
func TestStrangersDoNotHideGuesses(t *testing.T) {
	s := serve(t, t.TempDir(), "--throttle-free-tries", "100") // more free tries than the test makes guesses
	const strangers, kinds, guesses = 700, 4, 12
	guesser := dialFrom(t, "127.0.0.9", s.grpcAddr)
	guessed := 0
	for i := range strangers {
		c := dialFrom(t, fmt.Sprintf("127.9.%d.%d", i/250, 1+i%250), s.grpcAddr)
		ctx := callCtx(t)
		_, err1 := c.ListUsers(ctx, &watchwordv1.ListUsersRequest{})
		_, err2 := c.DeleteUser(ctx, &watchwordv1.DeleteUserRequest{Id: "x"})
		_, err3 := c.ListSessions(ctx, &watchwordv1.ListSessionsRequest{})
		_, err4 := c.Refresh(ctx, &watchwordv1.RefreshRequest{RefreshToken: "wwrt_rubbish"})
		for _, err := range []error{err1, err2, err3} {
			wantRefusal(t, "a call without a token", err, "TOKEN_MISSING")
		}
		wantRefusal(t, "a refresh with a forged token", err4, "REFRESH_TOKEN_INVALID")
		c.conn.Close()
		if i >= strangers/2 && guessed < guesses {
			_, err := guesser.Login(callCtx(t), &watchwordv1.LoginRequest{Username: "admin", Password: newPassword()})
			wantRefusal(t, "a guess", err, "INVALID_CREDENTIALS")
			guessed++
		}
	}
	var lines []auditLine
	eventually(t, runTimeout, "recording every refused call", func() error {
		lines = s.audit(t)
		var refused int64
		for _, line := range lines {
			if !line.Success {
				refused += line.Count
			}
		}
		if want := int64(strangers*kinds + guesses); refused != want {
			return fmt.Errorf("%d refused calls on record, want %d", refused, want)
		}
		return nil
	})
	named := 0
	for _, line := range lines {
		if line.Type == "login" && line.Reason == "INVALID_CREDENTIALS" {
			named++
			if line.UserName != "admin" || line.UserID == "" || line.Source != "127.0.0.9" || line.Count != guesses {
				t.Errorf("the guesses are on record as %+v, want %d at admin from 127.0.0.9", line, guesses)
			}
		}
	}
	if named != 1 {
		t.Errorf("%d records of guesses, want 1", named)
	}
	if most := 64 + 5; len(lines) > most { // 64 entries of strangers, and five more: one for each type and reason, the start of the server, and the guesses
		t.Errorf("%d records, want at most %d", len(lines), most)
	}
}

// The record finds a user by every name that the user had, also after the user's deletion,
// and tells users that had the same name apart by their ids.
func TestTheRecordFindsDeletedAndRenamedUsers(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	as := bearer(callCtx(t), admin)
	create := func(name string) string {
		t.Helper()
		resp, err := c.CreateUser(as, &watchwordv1.CreateUserRequest{Username: name, Password: newPassword()})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetUser().GetId()
	}
	remove := func(id string) {
		t.Helper()
		if _, err := c.DeleteUser(as, &watchwordv1.DeleteUserRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
	}
	first := create("carol")
	remove(first)
	second := create("carol")
	rename := &watchwordv1.UpdateUserRequest{User: &watchwordv1.User{Id: second, Username: "dave"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"username"}}}
	if _, err := c.UpdateUser(as, rename); err != nil {
		t.Fatal(err)
	}
	remove(second)
	brief := func(lines []auditLine) string {
		var text string
		for _, l := range lines { // the newest first
			text = fmt.Sprintf("%s by %s: %s, user %d; ", l.Type, l.ActorName, l.UserName, map[string]int{first: 1, second: 2}[l.UserID]) + text
			if l.Type == "user.updated" && !strings.HasPrefix(l.Detail, "username: carol → dave, ") {
				t.Errorf("the detail of the new name is %q", l.Detail)
			}
		}
		return text
	}
	ofFirst := "user.created by admin: carol, user 1; user.deleted by admin: carol, user 1; "
	ofSecond := "user.created by admin: carol, user 2; user.updated by admin: carol, user 2; user.deleted by admin: dave, user 2; "
	for name, want := range map[string]string{"carol": ofFirst + ofSecond, "DAVE": ofSecond} {
		if got := brief(s.audit(t, "--user", name)); got != want {
			t.Errorf("audit --user %s shows:\n%s\nwant:\n%s", name, got, want)
		}
	}
	r := cli(t, s.dir, "", "audit", "--user", "nobody", "--datastore-uri", database(s.dir))
	if wantExit(t, 1, r); !strings.Contains(r.stderr, "nobody") {
		t.Errorf("audit of an unknown user: %v", r)
	}
}
