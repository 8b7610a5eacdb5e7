package e2e

import (
	"strings"
	"testing"
)

// TestDamagedKeyRows damages the rows of the keys by one SQL statement, in several ways. The
// command that docs/recovery.md names must mend each of them, and a command that fails must end
// no session.
func TestDamagedKeyRows(t *testing.T) {
	writtenOnBothEngines(t, func(t *testing.T, w *written) {
		c := dial(t, w.grpcAddr)
		tagOfNobody := append([]byte{1}, make([]byte, 60)...) // a tag under a master key that is in no file
		damages := []struct {
			query string
			args  []any
		}{
			{`UPDATE signing_keys SET algorithm = 'x'`, nil},
			{`UPDATE signing_keys SET algorithm = 'x', tag = $1`, []any{tagOfNobody}},
			{`DELETE FROM signing_keys`, nil},
			{`UPDATE signing_keys SET kid = kid || CAST($1 AS TEXT), revoked_at = 1`, []any{strings.Repeat("x", 100)}},
		}
		for _, damage := range damages {
			w.exec(t, damage.query, damage.args...)
			for _, args := range []string{"key rotate", "key rotate --alg EdDSA"} {
				if r := run(t, w.command(strings.Fields(args)...)); r.code != 1 || strings.Contains(r.stderr, "generating a key") {
					t.Errorf("%s after %s: got %v, want status 1 and the reason", args, damage.query, r)
				}
			}
			before := c.login(t, "admin", w.admin) // the server continues with the keys that it knows
			wantExit(t, 0, run(t, w.command("datastore", "restored")))
			eventually(t, runTimeout, "withdrawing all keys", func() error {
				_, err := c.verify(callCtx(t), before)
				return checkRefusal(err, "TOKEN_INVALID")
			})
			_, err := c.verify(callCtx(t), c.login(t, "admin", w.admin))
			wantOK(t, "verify after datastore restored", err)
			wantExit(t, 0, run(t, w.command("key", "rotate")))
		}
		pair := c.login(t, "admin", w.admin)
		w.exec(t, `UPDATE mac_keys SET sealed_key = $1`, []byte("damaged"))
		if r := run(t, w.command("datastore", "restored")); r.code != 1 || !strings.Contains(r.stderr, "mac_keys") || !strings.Contains(r.stderr, "datastore rekey") {
			t.Errorf("restored with a damaged MAC key: got %v, want status 1 and the command that mends", r)
		}
		_, err := c.verify(callCtx(t), pair)
		wantOK(t, "verify after a command that failed", err)
		w.stop(t)
		wantExit(t, 0, run(t, w.command("datastore", "rekey", "--master-key-is-lost")))
		c = dial(t, w.serve().grpcAddr)
		_, err = c.verify(callCtx(t), c.login(t, "admin", w.admin))
		wantOK(t, "verify after datastore rekey", err)
	})
}
