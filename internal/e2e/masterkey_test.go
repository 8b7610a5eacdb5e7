package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestACommandWithAForeignMasterKey gives commands the master key file of another installation.
// No command may write anything, since no server could open both the earlier keys and the keys
// of the command.
func TestACommandWithAForeignMasterKey(t *testing.T) {
	writtenOnBothEngines(t, func(t *testing.T, w *written) {
		dir := t.TempDir()
		foreign := filepath.Join(dir, "foreign")
		wantExit(t, 0, cli(t, dir, "", "key", "create-master-key", foreign))
		content := readFile(t, foreign)
		c := dial(t, w.grpcAddr)
		kid := kidOf(c.login(t, "admin", w.admin).GetAccessToken())
		before := wantExit(t, 0, run(t, w.command("key", "list")))
		for _, command := range []string{"key list", "key rotate", "key rotate --alg ES256", "key revoke", "key reseal", "key reseal --new-master-key", "datastore restored"} {
			args := append(strings.Fields(command), "--master-key-file", foreign)
			if command == "key revoke" {
				args = append(args, "--", kid)
			}
			if r := run(t, w.command(args...)); r.code != 1 || !strings.Contains(r.stderr, foreign) || !strings.Contains(r.stderr, "--master-key-file") {
				t.Errorf("%s with a foreign master key: got %v, want status 1 and the name of the file", command, r)
			}
		}
		if after := wantExit(t, 0, run(t, w.command("key", "list"))); after != before {
			t.Errorf("the keys are now\n%s\nbefore they were\n%s", after, before)
		}
		if readFile(t, foreign) != content {
			t.Error("a command that failed has changed the master key file")
		}
		w.stop(t)
		w.serve()
	})
}

// TestAKeySetUnderAMissingMasterKey rotates keys on a machine whose master key file has one
// master key more than the file of the server. The server must say so at once, must go on
// with tokens that its own Verify accepts, and must use the new keys once the file has the
// master key.
func TestAKeySetUnderAMissingMasterKey(t *testing.T) {
	writtenOnBothEngines(t, func(t *testing.T, w *written) {
		c := dial(t, w.grpcAddr)
		ours := readFile(t, masterKeyOf(w.dir))
		newer := filepath.Join(t.TempDir(), "newer")
		wantExit(t, 0, cli(t, w.dir, "", "key", "create-master-key", newer))
		both := readFile(t, newer) + ours
		writeFile(t, newer, both)
		old := kidOf(c.login(t, "admin", w.admin).GetAccessToken())
		wantExit(t, 0, run(t, w.command("key", "revoke", "--master-key-file", newer, "--", old)))
		w.awaitLog(t, alarm("sealed under a master key that is not in this file"))
		pair := c.login(t, "admin", w.admin)
		_, err := c.verify(callCtx(t), pair)
		wantOK(t, "verify of a new token, with the keys of before", err)

		writeFile(t, masterKeyOf(w.dir), both)
		eventually(t, runTimeout, "using the new keys", func() error {
			_, err := c.verify(callCtx(t), pair)
			return checkRefusal(err, "TOKEN_INVALID")
		})
		_, err = c.verify(callCtx(t), c.login(t, "admin", w.admin))
		wantOK(t, "verify of a new token, with the new keys", err)
	})
}

// TestNoUsableSigningKey starts a server on a database in which the row of the key that signs
// was changed by hand. The server must say that it is not ready, and why, and must make no
// token; after `datastore restored` it is ready.
func TestNoUsableSigningKey(t *testing.T) {
	writtenOnBothEngines(t, func(t *testing.T, w *written) {
		w.stop(t)
		w.exec(t, `UPDATE signing_keys SET signs_from = signs_from - 1 WHERE signs_from IS NOT NULL`)
		s := w.serve()
		s.awaitLog(t, alarm("changed by somebody without the master key"))
		ready := func() string {
			resp, err := http.Get("http://" + w.httpAddr + "/readyz")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(resp.StatusCode, " ", strings.TrimSpace(string(text)))
		}
		if got, want := ready(), "503 no access token can be made: no signing key is usable"; got != want {
			t.Errorf("/readyz is %q, want %q", got, want)
		}
		healthy := func() error {
			if r := cli(t, w.dir, "", "healthcheck", "--addr", w.grpcAddr, "--plaintext"); r.code != 0 {
				return fmt.Errorf("healthcheck: %v", r)
			}
			return nil
		}
		if healthy() == nil {
			t.Error("healthcheck succeeds while no token can be made")
		}
		c := dial(t, w.grpcAddr)
		if err := c.tryLogin(callCtx(t), "admin", w.admin); err == nil {
			t.Error("a login got a token")
		}
		if !strings.Contains(s.stderr.String(), "no signing key signs now") {
			t.Error("the log does not say why no token was made")
		}
		wantExit(t, 0, run(t, w.command("datastore", "restored")))
		eventually(t, runTimeout, "being ready after datastore restored", func() error {
			if got := ready(); got != "200 ok" {
				return fmt.Errorf("/readyz is %q", got)
			}
			return healthy()
		})
		_, err := c.verify(callCtx(t), c.login(t, "admin", w.admin))
		wantOK(t, "verify after datastore restored", err)
	})
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
