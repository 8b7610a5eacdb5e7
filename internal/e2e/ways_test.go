package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestAdministrationBothWays runs the commands of administration on a running server, by a
// kept login, and on its database. Each command sees what the others have done, and refusals
// have one text.
func TestAdministrationBothWays(t *testing.T) {
	s := serve(t, t.TempDir())
	onServer := []string{"--plaintext", "--addr", s.grpcAddr}
	onDatabase := []string{"--datastore-uri", database(s.dir)}
	if out := wantExit(t, 0, cli(t, s.dir, s.admin, append([]string{"login", "admin", "--audience", "watchword"}, onServer...)...)); out != "" {
		t.Errorf("login printed %q", out)
	}
	for i, way := range [][]string{onServer, onDatabase} {
		other := [][]string{onDatabase, onServer}[i]
		name, password := []string{"alice", "bob"}[i], newPassword()
		step := func(code int, way []string, stdin string, args ...string) result {
			t.Helper()
			r := cli(t, s.dir, stdin, append(args, way...)...)
			wantExit(t, code, r)
			return r
		}
		shows := func(say string, args ...string) {
			t.Helper()
			here, there := step(0, way, "", args...), step(0, other, "", args...)
			if here != there || !strings.Contains(here.stdout, say) {
				t.Errorf("watchword %q shows %v and %v, want %q on both", args, here, there, say)
			}
		}
		step(0, way, password, "user", "create", name, "--role", "reader")
		step(0, way, "", "user", "set-roles", name, "--role", "writer")
		shows("writer", "user", "show", name)
		shows(`"username":"`+name+`"`, "user", "list", "--json")
		c := dial(t, s.grpcAddr)
		first, second := c.login(t, name, password), c.login(t, name, password)
		shows(first.GetSessionId(), "session", "list", name)
		step(0, way, "", "session", "revoke", first.GetSessionId())
		step(0, way, "", "session", "revoke-all", name)
		eventually(t, runTimeout, "knowing the end of the session", func() error {
			_, err := c.verify(callCtx(t), second)
			return checkRefusal(err, "TOKEN_REVOKED")
		})
		step(0, way, "", "key", "rotate")
		shows("signing", "key", "list")
		shows("session.revoked", "audit", "--session", first.GetSessionId())
		for _, refused := range [][]string{{"user", "disable", "admin"}, {"user", "rename", name, "admin"}, {"user", "show", "nobody"}, {"session", "revoke", "no-such-session"}} {
			if here, there := step(1, way, "", refused...), step(1, other, "", refused...); here.stderr != there.stderr {
				t.Errorf("watchword %q says %q and %q", refused, here.stderr, there.stderr)
			}
		}
		explained := step(0, way, second.GetAccessToken(), "explain").stdout
		if !strings.Contains(explained, "TOKEN_REVOKED") || len(leaks(explained)) > 0 {
			t.Errorf("explain says %s", explained)
		}
		step(0, way, "", "user", "delete", name)
	}
}

// TestProcessesShareALogin runs commands at the same time, each of which finds that the kept
// access token has expired. None of them may send a refresh token that another one has spent.
func TestProcessesShareALogin(t *testing.T) {
	s := serve(t, t.TempDir(), "--refresh-grace", "0s", "--refresh-repeats", "1")
	addr := []string{"--plaintext", "--addr", s.grpcAddr}
	settings := t.TempDir()
	run := func(stdin string, args ...string) result {
		cmd := cliCommand(t, s.dir, stdin, append(args, addr...)...)
		cmd.Env = environment("XDG_CONFIG_HOME=" + settings)
		return run(t, cmd)
	}
	wantExit(t, 0, run(s.admin, "login", "admin", "--audience", "watchword"))
	kept, err := filepath.Glob(filepath.Join(settings, "watchword", "logins", "*.json"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("the login left %q, %v", kept, err)
	}
	for range 3 {
		text, err := os.ReadFile(kept[0])
		if err != nil {
			t.Fatal(err)
		}
		var logins []map[string]any
		if err := json.Unmarshal(text, &logins); err != nil {
			t.Fatal(err)
		}
		noteSecret(logins[0]["refresh_token"].(string))
		noteSecret(logins[0]["access_token"].(string))
		logins[0]["until"] = time.Now().Add(-time.Hour)
		if text, err = json.Marshal(logins); err == nil {
			err = os.WriteFile(kept[0], text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		results := make([]result, 6)
		for i := range results {
			all.Go(func() { results[i] = run("", "user", "list") })
		}
		all.Wait()
		if i := slices.IndexFunc(results, func(r result) bool { return r.code != 0 }); i >= 0 {
			t.Fatal(results[i])
		}
	}
}
