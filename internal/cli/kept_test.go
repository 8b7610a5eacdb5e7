package cli_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/server"
)

// keptAt returns the file of the one server in the folder of the settings.
func keptAt(t *testing.T, files func() []string) string {
	t.Helper()
	found := files()
	if len(found) != 1 {
		t.Fatalf("the files are %q, want one", found)
	}
	return found[0]
}

// change changes the fields of every login in a file.
func change(t *testing.T, path string, set func(map[string]any)) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, login := range all {
		set(login)
	}
	if text, err = json.Marshal(all); err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// expire makes the kept access tokens look old, so that the next command refreshes.
func expire(login map[string]any) { login["until"] = time.Now().Add(-time.Hour) }

// A login keeps its tokens for the commands that follow, until a logout. Nothing is
// printed. Without a standard input verify and logout use the kept tokens, and an empty
// standard input is an error.
func TestKeptLogin(t *testing.T) {
	flags, password, _ := serve(t)
	files := settings(t, t.TempDir())
	with := func(args ...string) []string { return append(args, flags...) }
	addr := strings.TrimPrefix(flags[1], "--addr=")
	fails(t, 1, "no login at "+addr+" is kept; log in: watchword login NAME --audience watchword --addr "+addr+" --plaintext\n", "", with("user", "list")...)
	if r := run(t, password, with("login", "admin", "--audience=watchword")...); r != (result{}) {
		t.Errorf("login printed %+v", r)
	}
	path := keptAt(t, files)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v, want mode 0600", info.Mode(), err)
	}
	done(t, "", with("user", "list")...)
	change(t, path, expire)
	out := done(t, "", with("session", "list")...) // the sessions of the user itself
	if rows := table(t, out); len(rows) != 2 || !strings.HasPrefix(rows[1][1], "admin/") {
		t.Errorf("session list shows\n%s", out)
	}
	change(t, path, func(login map[string]any) { login["access_token"] = "rubbish" })
	done(t, "", with("user", "list")...) // refused, renewed and called again

	r := runIn(t, os.DevNull, with("verify", "--audience=watchword")...)
	if r.status != 0 || !strings.Contains(r.out, `"username": "admin"`) {
		t.Errorf("verify of the kept token: %+v", r)
	}
	fails(t, 2, "standard input is empty", "", with("verify")...)
	fails(t, 2, "standard input is empty", "", with("logout")...)

	// A login that prints tokens for another program leaves the kept login unchanged.
	printed := &watchwordv1.TokenPair{}
	if err := protojson.Unmarshal([]byte(done(t, password, with("login", "admin", "--print", "--audience=watchword")...)), printed); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), printed.GetAccessToken()) {
		t.Errorf("login --print keeps the access token, or %v", err)
	}
	done(t, printed.GetAccessToken(), with("user", "list", "--token-stdin")...)

	if r := runIn(t, os.DevNull, with("logout")...); r != (result{}) {
		t.Errorf("logout of the kept session: %+v", r)
	}
	fails(t, 1, "log in: watchword login NAME", "", with("user", "list")...)
	if r := runIn(t, os.DevNull, with("logout")...); r.status != 1 {
		t.Errorf("a second logout: %+v", r)
	}
	done(t, printed.GetAccessToken(), with("verify")...)
}

// A login for another audience does not administer, and the login for administration stays.
func TestKeptLoginsOfTwoKinds(t *testing.T) {
	flags, password, _ := serve(t)
	files := settings(t, t.TempDir())
	with := func(args ...string) []string { return append(args, flags...) }
	done(t, password, with("login", "admin")...)
	fails(t, 1, "log in: watchword login NAME --audience watchword", "", with("user", "list")...)
	done(t, password, with("login", "admin", "--audience=watchword")...)
	done(t, password, with("login", "admin")...)
	change(t, keptAt(t, files), expire)
	done(t, "", with("user", "list")...) // a renewal makes no login newer
	if r := runIn(t, os.DevNull, with("verify", "--audience=internal")...); r.status != 0 {
		t.Errorf("the newest login counts for verify: %+v", r)
	}
}

// If a kept session has ended, the error names the command that begins a new session.
func TestKeptSessionIsOver(t *testing.T) {
	flags, password, db, _ := serveWith(t, func(*server.Config) {})
	files := settings(t, t.TempDir())
	with := func(args ...string) []string { return append(args, flags...) }
	again := "; log in again: watchword login admin --audience watchword --addr " + strings.TrimPrefix(flags[1], "--addr=") + " --plaintext\n"
	for _, old := range []bool{false, true} {
		done(t, password, with("login", "admin", "--audience=watchword")...)
		done(t, "", "session", "revoke-all", "admin", db)
		if old {
			change(t, keptAt(t, files), expire)
		}
		var r result
		for deadline := time.Now().Add(20 * time.Second); r.err == "" && time.Now().Before(deadline); {
			r = run(t, "", with("user", "list")...)
		}
		if r.status != 1 || !strings.HasPrefix(r.err, "watchword: SESSION_REVOKED: ") || !strings.HasSuffix(r.err, again) {
			t.Errorf("%+v, want SESSION_REVOKED and %q", r, again)
		}
	}
	change(t, keptAt(t, files), func(login map[string]any) { expire(login); login["refresh_token"] = "wwrt_rubbish" })
	if r := run(t, "", with("user", "list")...); !strings.HasPrefix(r.err, "watchword: REFRESH_TOKEN_INVALID: ") || !strings.HasSuffix(r.err, again) {
		t.Errorf("a damaged token: %+v", r)
	}
}

// Several commands run at the same time, and each finds an expired access token. The commands
// use each refresh token once: with the shortest grace, a second use would end the session.
func TestCommandsAtOnceKeepTheSession(t *testing.T) {
	flags, password, _, _ := serveWith(t, func(cfg *server.Config) { cfg.RefreshGrace, cfg.RefreshRepeats = 0, 1 })
	files := settings(t, t.TempDir())
	done(t, password, append([]string{"login", "admin", "--audience=watchword"}, flags...)...)
	path := keptAt(t, files)
	for range 3 {
		change(t, path, expire)
		var all sync.WaitGroup
		results := make([]result, 6)
		for i := range results {
			all.Go(func() { results[i] = run(t, "", append([]string{"user", "list"}, flags...)...) })
		}
		all.Wait()
		if i := slices.IndexFunc(results, func(r result) bool { return r.status != 0 }); i >= 0 {
			t.Fatalf("%+v", results[i])
		}
	}
}
