package e2e

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/token"
)

// TestMasterKeyLost deletes the master key file, and begins again with new keys. Users and
// passwords stay; every session ends.
func TestMasterKeyLost(t *testing.T) {
	writtenOnBothEngines(t, func(t *testing.T, w *written) {
		c, password := dial(t, w.grpcAddr), newPassword()
		admin := c.login(t, "admin", w.admin, "watchword")
		c.create(t, admin, "alice", password, "writer")
		alice := c.login(t, "alice", password)
		rekey := []string{"datastore", "rekey", "--master-key-is-lost"}
		if r := run(t, w.command(rekey...)); r.code != 1 || !strings.Contains(r.stderr, "no master key is lost") {
			t.Errorf("rekey with the master key: got %v, want status 1", r)
		}
		c.refresh(t, alice) // nothing has changed
		alice = c.login(t, "alice", password)
		w.stop(t)
		if err := os.Remove(masterKeyOf(w.dir)); err != nil {
			t.Fatal(err)
		}
		if r := run(t, w.command("datastore", "rekey")); r.code != 2 || !strings.Contains(r.stderr, "--master-key-is-lost") {
			t.Errorf("rekey without a confirmation: got %v, want status 2", r)
		}
		if _, err := os.Stat(masterKeyOf(w.dir)); err == nil {
			t.Error("rekey without a confirmation made a master key file")
		}
		if out := wantExit(t, 0, run(t, w.command(rekey...))); !strings.Contains(out, "2 users raised") {
			t.Errorf("rekey printed %q, want two raised users", out)
		}
		if info, err := os.Stat(masterKeyOf(w.dir)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the new master key file: %v, %v", info, err)
		}
		w.serve()
		c = dial(t, w.grpcAddr)
		_, err := c.verify(callCtx(t), alice)
		wantRefusal(t, "verify of a token of before", err, "TOKEN_INVALID")
		_, err = c.tryRefresh(callCtx(t), alice)
		wantRefusal(t, "refresh with a token of before", err, "REFRESH_TOKEN_INVALID")
		after := c.refresh(t, c.login(t, "alice", password))
		principal, err := c.verify(callCtx(t), after)
		if err != nil || principal.GetSubject() == "" || strings.Join(principal.GetRoles(), " ") != "writer" {
			t.Errorf("verify of a new token: %v, %v", principal, err)
		}
		for _, command := range []string{"key rotate", "key reseal --new-master-key", "audit --type datastore.rekeyed"} {
			if out := wantExit(t, 0, run(t, w.command(strings.Fields(command)...))); strings.HasPrefix(command, "audit") && strings.Count(out, "\n") != 2 {
				t.Errorf("%s printed %s, want one record", command, out)
			}
		}
	})
}

// TestLastAdmin tries to take the only admin away, by every RPC and every command.
func TestLastAdmin(t *testing.T) {
	s := serve(t, t.TempDir())
	c := dial(t, s.grpcAddr)
	admin := c.login(t, "admin", s.admin, "watchword")
	principal, err := c.verify(callCtx(t), admin)
	if err != nil {
		t.Fatal(err)
	}
	id := principal.GetSubject()
	update := func(u *watchwordv1.User, path string) error {
		u.Id = id
		_, err := c.UpdateUser(bearer(callCtx(t), admin), &watchwordv1.UpdateUserRequest{User: u, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{path}}})
		return err
	}
	wantRefusal(t, "disabling the only admin", update(&watchwordv1.User{Disabled: true}, "disabled"), "LAST_ADMIN")
	wantRefusal(t, "demoting the only admin", update(&watchwordv1.User{Roles: []string{"reader"}}, "roles"), "LAST_ADMIN")
	_, err = c.DeleteUser(bearer(callCtx(t), admin), &watchwordv1.DeleteUserRequest{Id: id})
	wantRefusal(t, "deleting the only admin", err, "LAST_ADMIN")
	for _, command := range []string{"disable", "delete"} {
		if r := cli(t, s.dir, "", "user", command, "admin", "--datastore-uri", database(s.dir)); r.code != 1 || !strings.Contains(r.stderr, "last enabled admin") {
			t.Errorf("user %s admin: got %v, want status 1", command, r)
		}
	}
	_, err = c.verify(callCtx(t), admin) // no token was revoked
	wantOK(t, "verify of the admin's token", err)
	c.create(t, admin, "root", newPassword(), "admin")
	wantOK(t, "disabling one of two admins", update(&watchwordv1.User{Disabled: true}, "disabled"))
}

// unknownKidCache verifies tokens as most libraries do (go-oidc, jose, jwks-rsa): it reads the
// JWKS again only for a token with an unknown kid, and otherwise keeps the keys.
type unknownKidCache struct {
	url   string
	reads int
	keys  map[string]*token.PublicKey
}

func (c *unknownKidCache) verify(t *testing.T, raw string) error {
	t.Helper()
	if c.keys[kidOf(raw)] == nil {
		c.reads++
		resp, err := http.Get(c.url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var set struct {
			Keys []*watchwordv1.JsonWebKey `json:"keys"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&set); err != nil {
			t.Fatal(err)
		}
		c.keys = map[string]*token.PublicKey{}
		for _, jwk := range set.Keys {
			if c.keys[jwk.GetKid()], err = token.FromJWK(jwk); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := token.Parse(raw, func(kid string) *token.PublicKey { return c.keys[kid] })
	return err
}

// TestAWithdrawnKeyDiesInCaches withdraws the key that signs, and then a key that signs no
// more. A cache that reads the JWKS for an unknown kid alone must refuse the withdrawn key as
// soon as --jwks-max-age has passed, and must refuse no good token.
func TestAWithdrawnKeyDiesInCaches(t *testing.T) {
	s := serve(t, t.TempDir(), "--jwks-max-age", "2s")
	c := dial(t, s.grpcAddr)
	cache := &unknownKidCache{url: "http://" + s.httpAddr + "/.well-known/jwks.json"}
	pair := c.login(t, "admin", s.admin)
	refresh := func() string {
		pair = c.refresh(t, pair)
		if err := cache.verify(t, pair.GetAccessToken()); err != nil {
			t.Errorf("the cache refuses a good token: %v", err)
		}
		return pair.GetAccessToken()
	}
	withdraw := func(leaked string) {
		wantExit(t, 0, cli(t, s.dir, "", "key", "revoke", "--datastore-uri", database(s.dir), "--", kidOf(leaked)))
		withdrawn, reads := time.Now(), cache.reads
		eventually(t, runTimeout, "refusing the withdrawn key at the cache", func() error {
			if refresh(); cache.verify(t, leaked) == nil {
				return errors.New("the cache trusts the withdrawn key")
			}
			return nil
		})
		t.Logf("the cache refused the withdrawn key after %v, and had read the JWKS %d times", time.Since(withdrawn), cache.reads-reads)
	}
	withdraw(refresh())
	retired := refresh()
	wantExit(t, 0, cli(t, s.dir, "", "key", "rotate", "--datastore-uri", database(s.dir)))
	eventually(t, runTimeout, "signing with another key", func() error {
		if kidOf(refresh()) == kidOf(retired) {
			return errors.New("the key still signs")
		}
		return nil
	})
	if err := cache.verify(t, retired); err != nil {
		t.Errorf("a token of a key that signs no more: %v", err)
	}
	withdraw(retired)
}
